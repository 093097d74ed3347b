"""What the maps share: how values become colours, and how their axes and missing cells look."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from sp_lens.errors import SpLensError
from sp_lens.plots._shared import log_ticks
from sp_lens.plots._text import plain
from sp_lens.plots.themes import TEMPLATES

Floats = npt.NDArray[np.floating]

# Of ColorBrewer, told apart by every kind of colour vision and on a grey print.
SEQUENTIAL, DIVERGING = "Blues", "RdBu_r"
MISSING = "#D0D0D0"
MOST_ANNOTATED = 150  # cells; more numbers than this can't be read


_MAKE = {  # how to come by what a map draws
    "NeuronValues": "make them with score(forget, retain) or stats.importance('abs')",
    "HeadValues": "make them with scores.heads('mean') or ablation_effect(model, corpus, unit='head')",
}


def is_score(values: Any) -> bool:
    """Whether values of neurons or heads are scores (Definition 2): `score` records its eps."""
    return "eps" in values.about


def require_values(values: Any, kind: str, function: str) -> None:
    """Refuse anything that is no `kind` ("NeuronValues" or "HeadValues")."""
    if kind not in {one.__name__ for one in type(values).__mro__}:  # the class itself would bring torch
        raise SpLensError(f"{function} draws {kind}, got {type(values).__name__}: {_MAKE[kind]}.")


def in_rows(values: Sequence[npt.NDArray[np.number]]) -> Floats:
    """One row a layer; layers of fewer values than the widest end in NaN, which is drawn grey."""
    matrix = np.full((len(values), max(map(len, values), default=0)), np.nan)
    for row, layer in zip(matrix, values, strict=True):
        row[: len(layer)] = layer
    return matrix


def heatmap(
    values: Floats, *, rows: Sequence[str], unit: str, hover: str, more: Sequence[Floats] = (), ratio: bool = False
) -> go.Figure:
    """A figure with one heatmap; row 0 is at the top.

    The colours are blue (below) over white to red (above) around 0 where there are negative values, around 1
    and logarithmic for a `ratio`, and else white (0) to blue.

    Args:
        values: [row column]; NaN cells are grey.
        rows: the name of each row.
        unit: what the colour bar says.
        hover: what a cell says, with %{y} (its row) and %{customdata[0]} (its value).
        more: as large as `values`, the further %{customdata} of `hover`.
        ratio: the values are scores.

    Raises:
        SpLensError: when there is no finite value.
    """
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise SpLensError(f"none of the {values.size} values is finite: expected numbers to draw.")
    shown, colours = _log_colours(values, finite) if ratio and finite.max() > 0 else _linear_colours(values, finite)
    figure = go.Figure(
        go.Heatmap(
            z=shown.astype(np.float32),
            y=[plain(row) for row in rows],
            customdata=np.dstack([values, *more]).astype(np.float32),
            **_annotations(values),
            hovertemplate=f"{hover}<extra></extra>",
            hoverongaps=False,
            colorbar={"title": {"text": plain(unit), "side": "right"}, **colours.pop("ticks")},
            **colours,
        )
    )
    figure.update_layout(
        template=TEMPLATES["notebook"],
        plot_bgcolor=MISSING,
        height=min(1200, 230 + max(200, 22 * len(rows))),
        xaxis={"showgrid": False, "constrain": "domain"},
        yaxis={"showgrid": False, "type": "category", "autorange": "reversed", "title_text": "layer"},
    )
    return figure


def _annotations(values: Floats) -> dict[str, Any]:
    """The value of each cell, where there are few: three digits of the largest, as many decimals in all of them."""
    finite = values[np.isfinite(values)]
    if values.size > MOST_ANNOTATED:
        return {}
    decimals = int(np.clip(2 - np.floor(np.log10(np.abs(finite).max() or 1)), 0, 6))
    texts = [["" if np.isnan(value) else f"{value:,.{decimals}f}" for value in row] for row in values]
    return {"text": texts, "texttemplate": "%{text}"}


def _linear_colours(values: Floats, finite: Floats) -> tuple[Floats, dict[str, Any]]:
    largest = float(np.abs(finite).max()) or 1.0  # all zero: any scale
    if finite.min() < 0:
        return values, {"colorscale": DIVERGING, "zmin": -largest, "zmax": largest, "ticks": {}}
    return values, {"colorscale": SEQUENTIAL, "zmin": 0, "zmax": largest, "ticks": {}}


def _log_colours(values: Floats, finite: Floats) -> tuple[Floats, dict[str, Any]]:
    """Logarithms around 1, as far as the values go on the side that goes further; beyond three powers the
    colour stays the same, so that a score of 0 does not take all of it."""
    positive = finite[finite > 0]
    reach = float(np.clip(np.abs(np.log10([positive.min(), positive.max()])).max(), 0.3, 3))
    shown = np.log10(np.clip(values, 10**-reach, 10**reach))
    ticks = log_ticks(10**-reach, 10**reach)
    where = {"tickvals": np.log10(ticks["tickvals"]).tolist(), "ticktext": ticks["ticktext"]}
    return shown, {"colorscale": DIVERGING, "zmin": -reach, "zmax": reach, "ticks": where}
