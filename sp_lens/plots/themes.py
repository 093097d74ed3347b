"""How figures look: one template in three variants, and the colours that are right on each of them."""

import textwrap
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import plotly.graph_objects as go

from sp_lens.errors import SpLensError

Variant = Literal["notebook", "print", "dark"]

# Traces name their colours, so these must be seen on white and on dark: each has a contrast of 3 or more with both
# (WCAG 2.2), and any two are told apart by every kind of colour vision about as well as those of Okabe & Ito (2008),
# of whom the first four are; their yellows, light blue and black are too faint on one side or the other.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8C6EFA", "#E60046", "#8C00FA")
NEUTRAL = "#808080"  # of what is drawn for comparison

PIXELS_PER_MM = 96 / 25.4  # of an SVG or PDF, as plotly writes them
COLUMN, PAGE = 86, 178  # mm: 3.4 and 7 inches, one and two columns of a paper
SHORTEST = 240  # pixels, without a legend: less has no room for the title of an axis
LEGEND_LINE = 1.6  # of the height of its font


class _Look(NamedTuple):
    """What the variants differ in: colours, and sizes in pixels.

    Attributes:
        muted: the colour of text of lesser weight.
        text: of axis titles and legends; small, of ticks and subtitles; title, of titles.
        space: what margins and distances are multiples of.
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
            "legend": {  # at the bottom, below the axes
                "bgcolor": "rgba(0,0,0,0)",
                "orientation": "h",
                "tracegroupgap": 0,
                "x": 0,
                "xanchor": "left",
                "y": 0,
                "yanchor": "bottom",
                "yref": "container",
            },
            # Titles, ticks and legend make themselves the room that they need beyond this.
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


# A point is 4/3 of these pixels: in print text is of 8 points, the smallest of 7.
_PRINT = {"text": 10.7, "small": 9.4, "title": 12, "space": 0.6, "width": round(PAGE * PIXELS_PER_MM)}

TEMPLATES: Mapping[Variant, go.layout.Template] = MappingProxyType(
    {
        "notebook": _template(_Look("#FFFFFF", "#222222", "#666666", "#E6E6E6")),
        "print": _template(_Look("#FFFFFF", "#000000", "#595959", "#E6E6E6", **_PRINT)),
        "dark": _template(_Look("#111111", "#E6E6E6", "#A6A6A6", "#333333")),
    }
)
"""The look of the figures: `figure.update_layout(template=sp.plots.TEMPLATES["dark"])`.

"notebook" is what figures come with; "print" is a page of a paper wide, its text of 7 and 8 points. Handed to each
figure, never registered with plotly, whose default template stays the user's.
"""


def for_paper(figure: go.Figure, *, width: float = COLUMN) -> go.Figure:
    """A copy of a figure as papers print it: as wide as a column, text of 7 to 8 points, without its title.

    What the title and subtitle say belongs into the caption: `figure.layout.title` still has it. Axis
    titles are broken into lines that fit. Figures of several panels side by side want the width of a page.

    Args:
        figure: any of `sp_lens.plots`.
        width: in millimetres, of a column (86, the default), of a page (178), or what the journal asks for.

    Returns:
        A figure whose `write_image("figure.pdf")` has that width, in the template "print".

    Raises:
        SpLensError: when the width is too small for anything to be read.

    Example:
        >>> column = for_paper(go.Figure(layout={"title": {"text": "In the caption"}, "width": 900, "height": 520}))
        >>> column.layout.width, column.layout.height, column.layout.title.text
        (325, 240, None)
    """
    if not width >= 40:
        raise SpLensError(f"width {width}: expected millimetres, 40 or more; a column has {COLUMN}, a page {PAGE}.")
    copy: Any = go.Figure(figure)  # of no type, as plotly's are not understood by type checkers
    pixels, before = width * PIXELS_PER_MM, copy.layout
    height = max(pixels * (before.height or 450) / (before.width or before.template.layout.width or 700), SHORTEST)
    labels = [trace.name for trace in copy.data if trace.name and trace.showlegend is not False]
    full = height
    if before.showlegend is not False:
        full += LEGEND_LINE * _PRINT["text"] * legend_lines(labels, pixels / _PRINT["text"])
    copy.update_layout(template=TEMPLATES["print"], title=None, width=round(pixels), height=round(full))
    for axis in copy.select_xaxes():
        _break(axis, 0.7 * pixels)
    for axis in copy.select_yaxes():
        _break(axis, 0.65 * height)
    return copy


def _break(axis: Any, room: float) -> None:
    """Break the title of an axis into lines that fit beside its part of the `room` (pixels) of all axes."""
    start, end = axis.domain or (0, 1)
    letters = max(8, int((end - start) * room / (0.5 * _PRINT["text"])))
    lines = [line for part in (axis.title.text or "").split("<br>") for line in textwrap.wrap(part, letters)]
    axis.title.text = "<br>".join(lines)


def legend_lines(labels: Sequence[str], ems: float) -> int:
    """How many lines a legend of these labels takes that is so many times as wide as its font is high.

    Each entry is as wide as the one with the longest label.
    """
    if not labels:
        return 0
    longest = max(map(len, labels))
    return -(-len(labels) // max(1, int(ems / (4 + 0.55 * longest))))
