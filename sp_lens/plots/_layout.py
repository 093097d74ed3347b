"""Titles, panels, colours and axis ticks that all figures share."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from sp_lens.errors import SpLensError
from sp_lens.plots._text import escape_plotly, fit, hover_name
from sp_lens.plots.themes import PALETTE, TEMPLATES, fit_labels

SUBTITLE_LINES = 3  # for which the heights of the figures have space
LINE = 24  # pixels for a further line of a title, subtitle or legend


def finish(figure: go.Figure, title: str, subtitle: str) -> None:
    """Set the title and subtitle, and break all texts into lines that fit the figure, whose height grows with them.

    Title and subtitle are escaped, except that "<br>" breaks a line of the subtitle. A figure without names of
    corpora, models or runs that are longer than a line has its height unchanged.
    """
    layout: Any = figure["layout"]  # not figure.layout, whose type is too large for pyright
    fonts, width = layout.template.layout, (layout.width or layout.template.layout.width) - 20
    title = fit(title, width / fonts.title.font.size, max_lines=3)
    parts = [fit(part, width / fonts.title.subtitle.font.size) for part in subtitle.split("<br>")]
    figure.update_layout(title={"text": title, "subtitle": {"text": "<br>".join(parts)}})
    height = layout.height or 450
    if further := title.count("<br>"):  # plotly.js moves a title of several lines up by their height
        shift = (1.35 + 1.3 * further) * fonts.title.font.size
        below = layout.title.pad.b or fonts.title.pad.b
        figure.update_layout(title_pad={"t": fonts.title.pad.t + shift, "b": below - shift})
    lines = further + max(0, layout.title.subtitle.text.count("<br>") - SUBTITLE_LINES + 1)
    lines += max(0, fit_labels(figure, height=height) - 1)
    if lines:
        figure.update_layout(height=height + LINE * lines)


def make_panels(
    titles: Sequence[str], *, columns: int, gap: float, notes: Sequence[str] | None = None
) -> tuple[go.Figure, list[tuple[int, int]]]:
    """Create a figure with one titled panel per title, all with the same y axis.

    Args:
        titles: Title of each panel; none if empty. A long title is broken into lines and shortened, and shown in full
            on hover.
        columns: Maximum number of panels side by side.
        gap: Vertical space between rows, relative to the height of a row.
        notes: Text below each title in a smaller font, with "<br>" between lines.

    Returns:
        The figure, and the row and column of each panel.
    """
    columns = min(len(titles), columns)
    rows = -(-len(titles) // columns)
    template: Any = TEMPLATES["notebook"].layout
    width = 0.85 * template.width / columns / template.annotationdefaults.font.size
    shown = [fit(title, width, max_lines=3) for title in titles]
    for index, note in enumerate(notes or ()):
        shown[index] += f"<br><span style='font-size:0.85em'>{note}</span>"
    lines = max((title.count("<br>") + 1 for title in shown if title), default=0)
    figure = make_subplots(
        rows,
        columns,
        subplot_titles=shown,
        horizontal_spacing=0.06 / columns,
        vertical_spacing=(gap + 0.06 * max(0, lines - 2)) / rows,
    )
    for annotation, title in zip(figure.select_annotations(), filter(None, titles), strict=True):
        annotation.hovertext = hover_name(title)
    figure.update_annotations(yshift=6, font=None)  # make_subplots sets a font size; leave it to the template
    figure.update_yaxes(matches="y", showticklabels=False)
    figure.update_yaxes(showticklabels=True, col=1)
    figure.update_layout(yaxis_matches=None)  # plotly warns about an axis that matches itself
    figure.update_layout(template=TEMPLATES["notebook"], margin_t=30 + 20 * lines, title_pad_b=24 + 20 * lines)
    return figure, [(index // columns + 1, index % columns + 1) for index in range(len(titles))]


def category_ticks(names: Sequence[str], width: float) -> dict[str, Any]:
    """Return ticks for an axis whose categories are the names, escaped; empty if all names fit in one line.

    Args:
        names: Names of the categories, which are not escaped.
        width: Width of a line relative to the font size of the ticks.
    """
    texts = [fit(name, width, max_lines=3) for name in names]
    categories = [escape_plotly(name) for name in names]
    return {} if texts == categories else {"tickvals": categories, "ticktext": texts}


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
