"""Titles, panels, colours and axis ticks that all figures share."""

import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from sp_lens.errors import SpLensError
from sp_lens.plots._text import escape_plotly
from sp_lens.plots.themes import PALETTE, TEMPLATES


def set_title(figure: go.Figure, text: str, subtitle: str) -> None:
    """Set the title and a subtitle that is wrapped to the width of the figure.

    Both are escaped, except that "<br>" breaks a line of the subtitle.
    """
    layout: Any = figure["layout"]  # not figure.layout, whose type is too large for pyright
    characters = round(0.15 * (layout.width or layout.template.layout.width))
    wrap = textwrap.TextWrapper(characters, break_on_hyphens=False).wrap
    lines = [escape_plotly(line) for part in subtitle.split("<br>") for line in wrap(part)]
    figure.update_layout(title={"text": escape_plotly(text), "subtitle": {"text": "<br>".join(lines)}})


def make_panels(titles: Sequence[str], *, columns: int, gap: float) -> tuple[go.Figure, list[tuple[int, int]]]:
    """Create a figure with one titled panel per title, all with the same y axis.

    Args:
        titles: Title of each panel, with "<br>" between lines. Escape names that come from outside.
        columns: Maximum number of panels side by side.
        gap: Vertical space between rows, relative to the height of a row.

    Returns:
        The figure, and the row and column of each panel.
    """
    columns = min(len(titles), columns)
    rows = -(-len(titles) // columns)
    figure = make_subplots(
        rows, columns, subplot_titles=titles, horizontal_spacing=0.06 / columns, vertical_spacing=gap / rows
    )
    lines = max((title.count("<br>") + 1 for title in titles if title), default=0)
    figure.update_annotations(yshift=6, font=None)  # make_subplots sets a font size; leave it to the template
    figure.update_yaxes(matches="y", showticklabels=False)
    figure.update_yaxes(showticklabels=True, col=1)
    figure.update_layout(yaxis_matches=None)  # plotly warns about an axis that matches itself
    figure.update_layout(template=TEMPLATES["notebook"], margin_t=30 + 20 * lines, title_pad_b=24 + 20 * lines)
    return figure, [(index // columns + 1, index % columns + 1) for index in range(len(titles))]


def ordered_colours(count: int) -> list[str]:
    """Return colours for an ordered series, from blue through pink to vermilion, visible on white and on dark."""
    samples = [index / max(1, count - 1) for index in range(count)]
    return [str(colour) for colour in sample_colorscale([PALETTE[0], PALETTE[3], PALETTE[1]], samples)]


def corpus_colours(corpora: Iterable[str], *, function: str) -> dict[str, str]:
    """Assign a colour to each corpus.

    Args:
        corpora: Labels of the corpora.
        function: Name of the plotting function, for the error message.

    Raises:
        SpLensError: If there are more corpora than colours.
    """
    labels = list(corpora)
    if len(labels) > len(PALETTE):
        raise SpLensError(
            f"{function} was given {len(labels)} corpora, but only has {len(PALETTE)} distinguishable colours: "
            f"pass at most {len(PALETTE)}."
        )
    return dict(zip(labels, PALETTE, strict=False))


def colour_bar(colours: list[str], numbers: list[int], title: str) -> go.Scatter:
    """Return a trace without points whose colour bar maps the colour of each curve to a number (neuron or layer)."""
    last = len(colours) - 1
    ticks = sorted({round(last * fifth / 5) for fifth in range(6)})
    return go.Scatter(
        x=[None],
        y=[None],
        mode="markers",
        hoverinfo="skip",
        marker={
            "color": [0],
            "cmin": 0,
            "cmax": last,
            "colorscale": [[index / last, colour] for index, colour in enumerate(colours)],
            "colorbar": {"title": title, "tickvals": ticks, "ticktext": [str(numbers[tick]) for tick in ticks]},
        },
    )


def log_ticks(low: float, high: float) -> dict[str, Any]:
    """Return ticks at round numbers, written out, for a logarithmic axis or colour bar.

    Plotly labels a long axis "10², 2, 3, ...", with only the leading digit between powers of ten.

    Args:
        low: Smallest value on the axis.
        high: Largest value on the axis.

    Returns:
        `tickvals` and `ticktext`; empty if the axis spans less than a factor of 3, where plotly's ticks are fine.
    """
    if high < 3 * low:
        return {}
    decades = math.log10(high / low)
    digits = (1,) if decades > 3 else (1, 2, 5) if decades > 1 else (1, 1.5, 2, 3, 4, 5, 6, 8)
    step = math.ceil(decades / 8)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [digit * 10.0**power for power in powers if power % step == 0 for digit in digits]
    ticks = [tick for tick in ticks if 0.9 * low <= tick <= 1.1 * high]
    texts = [
        f"{tick:,.6g}" if 1e-3 <= tick < 1e5 or decades <= 3 else f"10<sup>{round(math.log10(tick))}</sup>"
        for tick in ticks
    ]
    return {"tickvals": ticks, "ticktext": texts}
