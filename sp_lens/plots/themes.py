"""Plotly templates for notebooks, print and dark backgrounds, and colours that are legible on all of them."""

import html
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import plotly.graph_objects as go

from sp_lens.errors import SpLensError
from sp_lens.plots._text import ems, refit

Variant = Literal["notebook", "print", "dark"]

# Traces set their colours themselves, so these must be visible on white and on dark backgrounds: each has a contrast of
# at least 3 with both (WCAG 2.2). With every kind of colour vision, any two are about as distinguishable as those of
# Okabe & Ito (2008). The first four are theirs; their yellows, light blue and black have too little contrast with
# one of the backgrounds.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8C6EFA", "#E60046", "#8C00FA")
NEUTRAL = "#808080"  # for reference lines and neurons that are not highlighted

PIXELS_PER_MM = 96 / 25.4  # in the SVG and PDF files that plotly writes
COLUMN, PAGE = 86, 178  # mm (3.4 and 7 inches): widths of one and two columns of a paper
MIN_HEIGHT = 240  # pixels, without a legend; the title of the y axis needs this much
LEGEND_LINE = 1.6  # height of a line of the legend relative to its font size


class _Look(NamedTuple):
    """Colours and sizes (in pixels) in which the variants differ.

    Attributes:
        background: Colour of the paper and the plot.
        ink: Colour of text and axis lines.
        muted: Colour of subtitles and reference lines.
        grid: Colour of grid lines.
        text: Font size of axis titles and legends.
        small: Font size of ticks and subtitles.
        title: Font size of titles.
        space: Factor for margins and distances.
        width: Width of a figure.
    """

    background: str
    ink: str
    muted: str
    grid: str
    text: float = 14
    small: float = 12
    title: float = 18
    space: float = 1
    width: float = 900


def _template(look: _Look) -> go.layout.Template:
    axis = {
        "automargin": True,
        "gridcolor": look.grid,
        "linecolor": look.ink,
        "showline": True,
        "tickcolor": look.ink,
        "tickfont": {"size": look.small},
        "ticks": "outside",
        "title": {"font": {"size": look.text}, "standoff": 8 * look.space},
        "zeroline": False,
        "zerolinecolor": look.muted,
    }
    colorbar = {
        "outlinewidth": 0,
        "thickness": 14 * look.space,
        "tickfont": {"size": look.small},
        "title": {"font": {"size": look.text}},
    }
    return go.layout.Template(
        data={"heatmap": [{"colorbar": colorbar}], "scatter": [{"marker": {"colorbar": colorbar}}]},
        layout={
            "annotationdefaults": {"font": {"size": look.text}},
            "colorway": PALETTE,
            "font": {"family": "Helvetica, Arial, DejaVu Sans, sans-serif", "size": look.text, "color": look.ink},
            "hoverlabel": {"align": "left", "bgcolor": look.background, "font": {"color": look.ink}},
            "hovermode": "closest",
            "legend": {  # below the axes
                "bgcolor": "rgba(0,0,0,0)",
                "orientation": "h",
                "tracegroupgap": 0,
                "x": 0,
                "xanchor": "left",
                "y": 0,
                "yanchor": "bottom",
                "yref": "container",
            },
            # Plotly enlarges these margins if titles, ticks or the legend need more space.
            "margin": {side: size * look.space for side, size in {"l": 70, "r": 30, "t": 30, "b": 30}.items()},
            "paper_bgcolor": look.background,
            "plot_bgcolor": look.background,
            "shapedefaults": {"label": {"font": {"color": look.muted, "size": look.small}}, "line_color": look.muted},
            "title": {
                "automargin": True,
                "font": {"size": look.title},
                "pad": {"t": 18 * look.space, "b": 24 * look.space},
                "subtitle": {"font": {"size": look.small, "color": look.muted}},
                "x": 0.01,
                "y": 1,
                "yanchor": "top",
                "yref": "container",
            },
            "width": look.width,
            "xaxis": axis,
            "yaxis": axis,
        },
    )


# One point is 4/3 pixels, so text in print has 8 points and the smallest text 7 points.
_PRINT = {"text": 10.7, "small": 9.4, "title": 12, "space": 0.6, "width": round(PAGE * PIXELS_PER_MM)}

TEMPLATES: Mapping[Variant, go.layout.Template] = MappingProxyType(
    {
        "notebook": _template(_Look("#FFFFFF", "#222222", "#666666", "#E6E6E6")),
        "print": _template(_Look("#FFFFFF", "#000000", "#595959", "#E6E6E6", **_PRINT)),
        "dark": _template(_Look("#111111", "#E6E6E6", "#A6A6A6", "#333333")),
    }
)
"""Templates by name, for `figure.update_layout(template=sp.plots.TEMPLATES["dark"])`.

"notebook" is the default of all figures, "dark" has a dark background, and "print" has the width of a page of a paper
and text of 7 and 8 points. The templates are set on each figure and not registered with plotly, so the default
template of the user stays unchanged.
"""


def for_paper(figure: go.Figure, *, width: float = COLUMN) -> go.Figure:
    """Return a copy of a figure for a paper: as wide as a column, with text of 7 to 8 points and without a title.

    Title and subtitle belong in the caption; the original figure still has them in `figure.layout.title`. Axis titles
    are broken into lines that fit. Figures with several panels side by side need the width of a page.

    Args:
        figure: Any figure of `sp_lens.plots`.
        width: Width in millimetres: 86 for a column (default), 178 for a page, or the width that the journal requires.

    Returns:
        Figure with the template "print" whose `write_image("figure.pdf")` has this width.

    Raises:
        SpLensError: If the width is less than 40 mm, too small for legible text.

    Example:
        >>> column = for_paper(go.Figure(layout={"title": {"text": "In the caption"}, "width": 900, "height": 520}))
        >>> column.layout.width, column.layout.height, column.layout.title.text
        (325, 240, None)
    """
    if not width >= 40:
        raise SpLensError(
            f"width {width}: expected at least 40 millimetres; a column has {COLUMN} mm and a page {PAGE} mm."
        )
    copy: Any = go.Figure(figure)  # Any, because type checkers do not understand the types of plotly
    pixels, before = width * PIXELS_PER_MM, copy.layout
    height = max(pixels * (before.height or 450) / (before.width or before.template.layout.width or 700), MIN_HEIGHT)
    copy.update_layout(template=TEMPLATES["print"], title=None, width=round(pixels))
    lines = fit_labels(copy, height=height)
    return copy.update_layout(height=round(height + LEGEND_LINE * _PRINT["text"] * lines))


def fit_labels(figure: Any, *, height: float) -> int:
    """Break the names in the legend and the titles of axes and colour bars into lines that fit the figure.

    Args:
        figure: Figure with a template, whose names and titles are escaped.
        height: Height of the figure in pixels, without the legend if it has more than one line.

    Returns:
        Number of lines of the legend.
    """
    layout = figure.layout
    width, size = layout.width or layout.template.layout.width, layout.template.layout.font.size
    margins = 100 * size / 14  # left and right of the axes
    upright = 0.7 * height / size
    for titled, length, max_lines in (
        *((axis, _share(axis) * (width - margins) / size, 4) for axis in figure.select_xaxes()),
        *((axis, _share(axis) * upright, 4) for axis in figure.select_yaxes()),
        *((trace.colorbar, upright, 2) for trace in figure.select_traces("heatmap")),
    ):
        if titled.title.text:
            titled.title.text = refit(titled.title.text, length, max_lines=max_lines)
    if layout.showlegend is False:
        return 0
    entries = [trace for trace in figure.data if trace.name and trace.showlegend is not False]
    for trace in entries:
        trace.name = refit(trace.name, (width - margins) / size - 4, max_lines=2)
    vertical = layout.legend.orientation == "v"
    return legend_lines([trace.name for trace in entries], 0 if vertical else width / size)


def _share(axis: Any) -> float:
    """Return the length of an axis as a share of the length of all axes side by side."""
    start, end = axis.domain or (0, 1)
    return end - start


def legend_lines(labels: Sequence[str], width: float) -> int:
    """Return the number of lines of a horizontal legend, in which all entries are as wide as the longest.

    Args:
        labels: Labels of the entries, with "<br>" between lines.
        width: Width of the legend relative to its font size.
    """
    if not labels:
        return 0
    longest = max(ems(html.unescape(line)) for label in labels for line in label.split("<br>"))
    side_by_side = max(1, int(width / (4 + longest)))
    return -(-len(labels) // side_by_side) * max(label.count("<br>") + 1 for label in labels)
