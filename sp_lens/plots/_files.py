"""Write a figure to a file, and say what is missing where that can't be."""

from pathlib import Path

import plotly.graph_objects as go

from sp_lens.errors import SpLensError


def write_figure(figure: go.Figure, file: str | Path, *, scale: float = 1) -> None:
    """Write .html, or an image (.png, .svg, .pdf, ...), which kaleido and a Chrome draw.

    Args:
        figure: any.
        file: its ending says the format; folders are made.
        scale: pixels of an image for each pixel of the figure.

    Raises:
        SpLensError: when kaleido or its Chrome is missing, or the ending is unknown.
    """
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".html":
        figure.write_html(file)
        return
    try:
        figure.write_image(file, scale=scale)
    except (ValueError, RuntimeError) as error:
        raise SpLensError(
            f"cannot write {file}: .html always works; .png, .svg and .pdf need pip install 'sp_lens[export]' and a "
            f"Chrome (apt-get install chromium, or plotly_get_chrome). {str(error).strip().splitlines()[0]}"
        ) from error
