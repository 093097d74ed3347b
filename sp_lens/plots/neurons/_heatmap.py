"""Heatmaps of layers or corpora: colour scales, annotations, axes and missing cells."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from sp_lens.errors import SpLensError
from sp_lens.plots._layout import category_ticks, log_ticks
from sp_lens.plots._text import escape_plotly
from sp_lens.plots.themes import TEMPLATES

Floats = npt.NDArray[np.floating]

# ColorBrewer scales, distinguishable with every kind of colour vision and in greyscale print.
SEQUENTIAL, DIVERGING = "Blues", "RdBu_r"
MISSING = "#D0D0D0"
MAX_ANNOTATED = 150  # cells; more numbers than this are illegible
TICK_WIDTH = 12  # width of the names of rows and columns relative to their font size


def pad_rows(rows: Sequence[npt.NDArray[np.number]]) -> Floats:
    """Stack rows of different lengths into a matrix; shorter rows end in NaN, which is drawn grey."""
    matrix = np.full((len(rows), max(map(len, rows), default=0)), np.nan)
    for target, row in zip(matrix, rows, strict=True):
        target[: len(row)] = row
    return matrix


def heatmap(
    values: Floats,
    *,
    rows: Sequence[str],
    unit: str,
    hover: str,
    x_title: str,
    y_title: str = "layer",
    columns: Sequence[str] | None = None,
    hovertext: Sequence[Sequence[str]] | None = None,
    customdata: Sequence[Floats] = (),
    ratio: bool = False,
) -> go.Figure:
    """Create a figure with one heatmap, whose row 0 is at the top.

    For scores (`ratio`) the colour scale is logarithmic around 1. Otherwise it is symmetric around 0 if there are
    negative values, and runs from 0 upwards if there are none. Diverging scales are blue below the middle and red
    above it; the sequential scale is white to blue.

    Args:
        values: Values [row column]; NaN cells are grey.
        rows: Name of each row. Long names are broken into lines and shortened.
        unit: Title of the colour bar.
        hover: Hover text of a cell, in which %{y} is its row and %{customdata[0]} its value. If names can be long,
            use `hovertext` instead of %{x} and %{y}, which show the shortened names.
        x_title: Title of the x axis.
        y_title: Title of the y axis.
        columns: Name of each column; by default columns are numbered from 0.
        hovertext: Text of each cell, which `hover` refers to as %{hovertext}.
        customdata: Further arrays of the shape of `values`, which `hover` refers to as %{customdata[1]} and so on.
        ratio: Whether the values are scores.

    Raises:
        SpLensError: If no value is finite.
    """
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise SpLensError(f"none of the {values.size} values is finite: there is nothing to draw.")
    shown, colours = _log_colours(values, finite) if ratio and finite.max() > 0 else _linear_colours(values, finite)
    figure = go.Figure(
        go.Heatmap(
            z=shown.astype(np.float32),
            x=None if columns is None else [escape_plotly(column) for column in columns],
            y=[escape_plotly(row) for row in rows],
            customdata=np.dstack([values, *customdata]).astype(np.float32),
            **_annotations(values),
            hovertext=hovertext,
            hovertemplate=f"{hover}<extra></extra>",
            hoverongaps=False,
            colorbar={"title": {"text": escape_plotly(unit), "side": "right"}, **colours.pop("ticks")},
            **colours,
        )
    )
    figure.update_layout(
        template=TEMPLATES["notebook"], plot_bgcolor=MISSING, height=min(1200, 230 + max(200, 22 * len(rows)))
    )
    figure.update_xaxes(showgrid=False, constrain="domain", title_text=x_title)
    figure.update_yaxes(showgrid=False, type="category", autorange="reversed", title_text=y_title)
    figure.update_yaxes(category_ticks(rows, TICK_WIDTH))
    if columns is not None:
        figure.update_xaxes(type="category", **category_ticks(columns, TICK_WIDTH))
    return figure


def _annotations(values: Floats) -> dict[str, Any]:
    """Write the value into each cell if there are few cells, with three significant digits for the largest value."""
    finite = values[np.isfinite(values)]
    if values.size > MAX_ANNOTATED:
        return {}
    decimals = int(np.clip(2 - np.floor(np.log10(np.abs(finite).max() or 1)), 0, 6))
    texts = [["" if np.isnan(value) else f"{value:,.{decimals}f}" for value in row] for row in values]
    return {"text": texts, "texttemplate": "%{text}"}


def _linear_colours(values: Floats, finite: Floats) -> tuple[Floats, dict[str, Any]]:
    largest = float(np.abs(finite).max()) or 1.0  # if all values are 0, any scale will do
    if finite.min() < 0:
        return values, {"colorscale": DIVERGING, "zmin": -largest, "zmax": largest, "ticks": {}}
    return values, {"colorscale": SEQUENTIAL, "zmin": 0, "zmax": largest, "ticks": {}}


def _log_colours(values: Floats, finite: Floats) -> tuple[Floats, dict[str, Any]]:
    """Return log10 of the values and a scale symmetric around 1.

    The scale ends at the value that is furthest from 1, or at a factor of 1000, so that a score of 0 does not use up
    the whole scale.
    """
    positive = finite[finite > 0]
    reach = float(np.clip(np.abs(np.log10([positive.min(), positive.max()])).max(), 0.3, 3))
    shown = np.log10(np.clip(values, 10**-reach, 10**reach))
    ticks = log_ticks(10**-reach, 10**reach)
    log_positions = {"tickvals": np.log10(ticks["tickvals"]).tolist(), "ticktext": ticks["ticktext"]}
    return shown, {"colorscale": DIVERGING, "zmin": -reach, "zmax": reach, "ticks": log_positions}
