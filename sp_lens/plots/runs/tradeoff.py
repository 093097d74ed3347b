"""What pruning costs on the one corpus against what it costs on the other (Figure 2)."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from sp_lens.plots._shared import as_runs, set_title
from sp_lens.plots.runs._runs import Floats, add_diagonal, draw_runs, ends_of, intervals_of, runs_subtitle, set_axes

if TYPE_CHECKING:
    from sp_lens.evaluation.bootstrap import DocumentHits
    from sp_lens.pruning.run import Run

DROPS = ("retain_drop", "forget_drop")  # x and y


def tradeoff(
    runs: "Run | Iterable[Run] | Mapping[str, Run]", *, hits: "Mapping[str, DocumentHits] | None" = None
) -> go.Figure:
    """Figure 2 of arXiv 2403.01267: accuracy lost on the forget corpus against accuracy lost on the retain corpus.

    One colour a run: a dot for each step, as it was measured, and a smoothed curve through them. The
    curve is the moving mean over a step and up to two steps on either side (fewer at the ends, so it
    starts and ends on a dot), drawn as a spline; which smoothing is our choice, the paper says "smoothed".
    On the dashed diagonal both corpora lose alike; selective pruning is above it.

    Args:
        runs: what `prune` or one of `unlearning` returns, a list of it, or a mapping from a label to it. Runs
            without a label are called after the settings in which they differ. A random control is one more run.
        hits: label of a run -> `document_hits` of it, for bars, the 95 % intervals over held-out documents at the step
            that the hits are of:
            `document_hits(model, corpora, ablate(model, run.mask_at(run.best_step)))`.

    Returns:
        x and y are the drops in next-token top-1 accuracy since step 0, in percentage points; each run is
        two traces, curve and dots, and clicking its name hides both. Beyond 21 runs there is no legend,
        and only the hover names them.

    Raises:
        SpLensError: when there is no run, something that is no `PruneRun`, or hits of no run.

    Example:
        >>> import sp_lens as sp
        >>> sp.plots.tradeoff([])
        Traceback (most recent call last):
            ...
        sp_lens.errors.SpLensError: no runs to draw: expected a PruneRun, a list of them, or {label: PruneRun}.
    """
    named = as_runs(runs)
    histories = {
        label: run.history.assign(**{side: 100 * run.history[side] for side in DROPS}) for label, run in named.items()
    }
    bars = intervals_of(histories, hits, lambda one, side: one.drop(side), scale=100)
    figure = draw_runs(
        histories,
        x="retain_drop",
        y="forget_drop",
        intervals=bars,
        columns=["step", "share", "forget_top1", "retain_top1"],
        hover=(
            "step %{customdata[0]}, %{customdata[1]:.1%} pruned<br>"
            "forget: top-1 %{customdata[2]:.1%}, drop %{y:.1f} points<br>"
            "retain: top-1 %{customdata[3]:.1%}, drop %{x:.1f} points"
        ),
    )
    _set_axes(figure, np.concatenate([*(one[list(DROPS)].to_numpy() for one in histories.values()), *ends_of(bars)]))
    set_title(figure, "Selective pruning: accuracy lost on forget against retain data", runs_subtitle(named, bars))
    return figure


def _set_axes(figure: go.Figure, drops: Floats) -> None:
    """Axes that hold all drops [point axis], and the diagonal."""
    low, high = drops.min(axis=0), drops.max(axis=0)
    # The shorter axis spans at least a quarter of the longer one: the diagonal stays well off the horizontal and
    # the vertical. At least a point: where nothing was lost, there is no span at all.
    span = np.maximum(high - low, max(1.0, float((high - low).max()) / 4))
    low, high = low - 0.06 * span, low + 1.06 * span
    set_axes(figure, "drop in {side} top-1 accuracy (percentage points)", low, high)
    figure.update_xaxes(zeroline=True)
    figure.update_yaxes(zeroline=True)
    start, end = float(low.max()), float((high - 0.04 * span).min())
    add_diagonal(figure, (start, start), (end, end), "no selectivity")
