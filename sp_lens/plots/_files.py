"""Write a figure to a file, with an error message that names the missing dependency."""

from pathlib import Path

import plotly.graph_objects as go

from sp_lens.errors import SpLensError


def write_figure(figure: go.Figure, file: str | Path, *, scale: float = 1) -> None:
    """Write a figure as HTML or as an image (.png, .svg, .pdf, ...).

    Images are rendered by kaleido, which needs a Chrome.

    Args:
        figure: Figure to write.
        file: Path whose suffix selects the format. Missing parent folders are created.
        scale: Number of image pixels per pixel of the figure.

    Raises:
        SpLensError: If kaleido or Chrome is missing, or the suffix is unknown.
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
            f"cannot write {file}: images (.png, .svg, .pdf) need pip install 'sp_lens[export]' and a Chrome "
            "(apt-get install chromium, or plotly_get_chrome); .html needs neither. "
            f"{str(error).strip().splitlines()[0]}"
        ) from error
