"""Figure 2 of the paper: drop in accuracy on the forget corpus against the drop on the retain corpus."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from sp_lens.plots._layout import finish
from sp_lens.plots.runs._run_labels import as_runs
from sp_lens.plots.runs._runs import Floats, add_diagonal, draw_runs, ends_of, error_bars_of, runs_subtitle, set_axes

if TYPE_CHECKING:
    from sp_lens.pruning.run import Run

DROPS = ["retain_drop", "forget_drop"]  # x and y


def tradeoff(runs: "Run | Iterable[Run] | Mapping[str, Run]") -> go.Figure:
    """Plot Figure 2 of arXiv 2403.01267: drop in forget accuracy against drop in retain accuracy.

    Each run has one colour, with a point for every step and a smoothed curve. The curve is the moving mean over a
    step and up to two steps on either side (fewer at the ends, so it starts and ends at a point), drawn as a spline;
    the paper only says "smoothed", so this smoothing is our choice. On the dashed diagonal both accuracies drop by
    the same amount; selective pruning lies above it. Error bars at the best step of a run are 95 % confidence intervals
    over its held-out documents.

    Args:
        runs: Result of `prune` or of a method in `unlearning`, a list of runs, or a mapping from label to run. Runs
            without a label are labelled by the settings in which they differ. A random control is one more run.

    Returns:
        Figure with the drops in next-token top-1 accuracy since step 0, in percentage points, on both axes. Each run
        has two traces (curve and points), and a click on its name hides both. For more than 21 runs there is no
        legend, and only the hover text names the runs.

    Raises:
        SpLensError: If there is no run, or an item is not a run.

    Example:
        >>> import sp_lens as sp
        >>> sp.plots.tradeoff([])
        Traceback (most recent call last):
            ...
        sp_lens.errors.SpLensError: there are no runs to draw: expected a PruneRun, a list of runs, or {label: run}.
    """
    labelled = as_runs(runs)
    histories = {
        label: run.history.assign(**{drop: 100 * run.history[drop] for drop in DROPS})
        for label, run in labelled.items()
    }
    error_bars = error_bars_of(labelled, lambda run_hits, side: run_hits.drop(side), scale=100)
    figure = draw_runs(
        histories,
        x="retain_drop",
        y="forget_drop",
        error_bars=error_bars,
        hover=(
            "forget: top-1 accuracy %{customdata[2]:.1%}, drop of %{y:.1f} percentage points<br>"
            "retain: top-1 accuracy %{customdata[3]:.1%}, drop of %{x:.1f} percentage points"
        ),
    )
    points = [history[DROPS].to_numpy() for history in histories.values()]
    _set_drop_axes(figure, np.concatenate([*points, *ends_of(error_bars)]))
    finish(figure, "Selective pruning: drop in accuracy on forget and retain data", runs_subtitle(labelled, error_bars))
    return figure


def _set_drop_axes(figure: go.Figure, drops: Floats) -> None:
    """Set axes that include all drops [point axis], and draw the diagonal."""
    low, high = drops.min(axis=0), drops.max(axis=0)
    # The shorter axis spans at least a quarter of the longer one, so that the diagonal is neither flat nor upright, and
    # at least one percentage point, because runs without any drop have no span.
    span = np.maximum(high - low, max(1.0, float((high - low).max()) / 4))
    low, high = low - 0.06 * span, low + 1.06 * span
    set_axes(figure, "drop in {side} top-1 accuracy (percentage points)", low, high)
    figure.update_xaxes(zeroline=True)
    figure.update_yaxes(zeroline=True)
    start, end = float(low.max()), float((high - 0.04 * span).min())
    add_diagonal(figure, (start, start), (end, end), "no selectivity")
