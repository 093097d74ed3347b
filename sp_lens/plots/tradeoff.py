"""What pruning costs on the one corpus against what it costs on the other (Figure 2)."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd
import plotly.graph_objects as go

from sp_lens.plots._shared import MUTED, PALETTE, TEMPLATE, as_runs, common_settings, set_title

if TYPE_CHECKING:
    from sp_lens.runs import PruneRun

Floats = npt.NDArray[np.floating]

# Runs past the last colour take the next symbol and dash; more runs than this can't be told apart by a legend.
SYMBOLS = ("circle", "square", "diamond")
DASHES = ("solid", "dash", "dot")
MOST_IN_LEGEND = len(PALETTE) * len(SYMBOLS)


def tradeoff(runs: "PruneRun | Iterable[PruneRun] | Mapping[str, PruneRun]") -> go.Figure:
    """Figure 2 of arXiv 2403.01267: accuracy lost on the forget corpus against accuracy lost on the retain corpus.

    One colour a run: a dot for each step, as it was measured, and a smoothed curve through them. The
    curve is the moving mean over a step and up to two steps on either side (fewer at the ends, so it
    starts and ends on a dot), drawn as a spline; which smoothing is our choice, the paper says "smoothed".
    On the dashed diagonal both corpora lose alike; selective pruning is above it.

    Args:
        runs: what `prune` returns, a list of it, or a mapping from a label to it. Runs without a label
            are called after the settings in which they differ. A random control is one more run.

    Returns:
        x and y are the drops in next-token top-1 accuracy since step 0, in percentage points; each run is
        two traces, curve and dots, and clicking its name hides both. Beyond 21 runs there is no legend,
        and only the hover names them.

    Raises:
        SpLensError: when there is no run, or something that is no `PruneRun`.

    Example:
        >>> import sp_lens as sp
        >>> sp.plots.tradeoff([])
        Traceback (most recent call last):
            ...
        sp_lens.errors.SpLensError: no runs to draw: expected a PruneRun, a list of them, or {label: PruneRun}.
    """
    named = as_runs(runs)
    crowded = len(named) > MOST_IN_LEGEND
    figure = go.Figure()
    for place, (label, run) in enumerate(named.items()):
        turn, colour = divmod(place, len(PALETTE))
        style = turn % len(SYMBOLS)
        history = run.history
        drops = 100 * history[["retain_drop", "forget_drop"]].to_numpy()
        curve = _moving_mean(drops)
        figure.add_scatter(
            x=curve[:, 0],
            y=curve[:, 1],
            mode="lines",
            line={"shape": "spline", "color": PALETTE[colour], "width": 1 if crowded else 2, "dash": DASHES[style]},
            hoverinfo="skip",
            legendgroup=label,
            showlegend=False,
        )
        figure.add_scatter(
            x=drops[:, 0],
            y=drops[:, 1],
            mode="markers",
            marker={"color": PALETTE[colour], "size": 3 if crowded else 8, "symbol": SYMBOLS[style]},
            name=label,
            legendgroup=label,
            showlegend=not crowded,
            customdata=history[["step", "share", "forget_top1", "retain_top1"]].to_numpy(),
            hovertemplate=(
                f"<b>{label}</b><br>step %{{customdata[0]}}, %{{customdata[1]:.1%}} pruned<br>"
                "forget: top-1 %{customdata[2]:.1%}, drop %{y:.1f} points<br>"
                "retain: top-1 %{customdata[3]:.1%}, drop %{x:.1f} points<extra></extra>"
            ),
        )
    _set_axes(figure, pd.concat([run.history for run in named.values()]))
    legend_lines = -(-len(named) // max(1, 800 // (60 + 8 * max(map(len, named)))))  # by the width of the longest label
    figure.update_layout(template=TEMPLATE, height=560 if crowded else 520 + 31 * legend_lines)
    number = f"{len(named)} runs, named on hover; " if crowded else ""
    set_title(
        figure,
        "Selective pruning: accuracy lost on forget against retain text",
        f"{number}dots are steps, curves their moving mean; {common_settings(named.values())}",
    )
    return figure


def _moving_mean(points: Floats) -> Floats:
    """The mean of each step and of up to two steps on either side, as many before as after."""
    last = len(points) - 1
    reach = [min(2, step, last - step) for step in range(len(points))]
    return np.array([points[step - r : step + r + 1].mean(axis=0) for step, r in enumerate(reach)])


def _set_axes(figure: go.Figure, history: pd.DataFrame) -> None:
    """Axes that hold every step of `history`, and the diagonal, its name written along it."""
    drops = 100 * history[["retain_drop", "forget_drop"]].to_numpy()
    low, high = drops.min(axis=0), drops.max(axis=0)
    # The shorter axis spans at least a quarter of the longer one: the diagonal stays well off the horizontal and
    # the vertical. At least a point: where nothing was lost, there is no span at all.
    span = np.maximum(high - low, max(1.0, float((high - low).max()) / 4))
    low, high = low - 0.06 * span, low + 1.06 * span
    for axis, side, ends in zip(("xaxis", "yaxis"), ("retain", "forget"), zip(low, high, strict=True), strict=True):
        title = f"drop in {side} top-1 accuracy (percentage points)"
        figure.update_layout({axis: {"range": ends, "title_text": title, "zeroline": True, "zerolinecolor": MUTED}})
    start, end = float(low.max()), float((high - 0.04 * span).min())
    figure.add_shape(
        type="line",
        layer="below",
        line={"color": MUTED, "dash": "dash", "width": 1.5},
        label={"text": "no selectivity", "textposition": "end", "yanchor": "top", "font": {"color": MUTED, "size": 13}},
        x0=start,
        y0=start,
        x1=end,
        y1=end,
    )
