"""Figure 3 of the paper: perplexity on the forget corpus against perplexity on the retain corpus."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sp_lens.errors import SpLensError
from sp_lens.plots._layout import finish, log_ticks
from sp_lens.plots.runs._run_labels import as_runs
from sp_lens.plots.runs._runs import add_diagonal, draw_runs, ends_of, error_bars_of, runs_subtitle, set_axes

if TYPE_CHECKING:
    from sp_lens.pruning.run import Run

PERPLEXITIES = ["retain_perplexity", "forget_perplexity"]  # x and y


def perplexity(runs: "Run | Iterable[Run] | Mapping[str, Run]") -> go.Figure:
    """Plot Figure 3 of arXiv 2403.01267: perplexity on forget data against perplexity on retain data.

    Runs are drawn as in `tradeoff`, but on logarithmic axes: a point for every step and a smoothed curve, the
    geometric mean over a step and up to two steps on either side (our choice). If all runs start at the same point, a
    dashed line (our addition) starts there, along which both perplexities rise by the same factor; selective pruning
    lies above it.

    Args:
        runs: Result of `prune` or of a method in `unlearning`, a list of runs, or a mapping from label to run. Runs
            without a label are labelled by the settings in which they differ.

    Returns:
        Figure with perplexities, exp(mean loss in nats per token), on both axes. Each run has two traces (curve and
        points). Steps with infinite perplexity (a loss above 700 nats) are omitted, and the subtitle counts them.

    Raises:
        SpLensError: If there is no run, an item is not a run, a run has no step with finite perplexity.

    Example:
        >>> import sp_lens as sp
        >>> sp.plots.perplexity([])
        Traceback (most recent call last):
            ...
        sp_lens.errors.SpLensError: there are no runs to draw: expected a PruneRun, a list of runs, or {label: run}.
    """
    labelled = as_runs(runs)
    histories = {label: _finite_steps(label, run) for label, run in labelled.items()}
    error_bars = error_bars_of(labelled, lambda run_hits, side: run_hits.perplexity(side))
    figure = draw_runs(
        histories,
        x="retain_perplexity",
        y="forget_perplexity",
        error_bars=error_bars,
        hover=(
            "forget: perplexity %{y:,.1f}, top-1 accuracy %{customdata[2]:.1%}<br>"
            "retain: perplexity %{x:,.1f}, top-1 accuracy %{customdata[3]:.1%}"
        ),
        log=True,
    )
    steps = pd.concat(list(histories.values()))[PERPLEXITIES]
    points = np.concatenate([steps.to_numpy(), *ends_of(error_bars)])
    low, high = points.min(axis=0), points.max(axis=0)
    margin = 0.06 * np.log10(high / low) + 0.02  # the constant is for runs whose perplexity never changes
    set_axes(figure, "perplexity on {side} data (log scale)", np.log10(low) - margin, np.log10(high) + margin)
    figure.update_xaxes(type="log", **log_ticks(low[0], high[0]))
    figure.update_yaxes(type="log", **log_ticks(low[1], high[1]))
    starts = np.array([history[PERPLEXITIES].iloc[0] for history in histories.values()])
    factor = float((steps.max() / starts[0]).min())
    if np.allclose(starts, starts[0]) and factor > 1:
        x, y = starts[0]
        add_diagonal(figure, (x, y), (x * factor, y * factor), "same relative increase")
    subtitle = runs_subtitle(labelled, error_bars)
    if omitted := sum(len(run.records) for run in labelled.values()) - len(steps):
        subtitle += f"; steps with infinite perplexity, not drawn: {omitted}"
    finish(figure, "Selective pruning: perplexity on forget and retain data", subtitle)
    return figure


def _finite_steps(label: str, run: "Run") -> pd.DataFrame:
    """Return the steps of a run with finite perplexities, which logarithmic axes can show."""
    history = run.history
    if missing := [column for column in PERPLEXITIES if column not in history]:
        raise SpLensError(f"run {label!r} has no {missing[0]} in its records: expected a run evaluated by prune().")
    finite = history.loc[np.isfinite(history[PERPLEXITIES]).all(axis=1)]
    if finite.empty:
        raise SpLensError(f"run {label!r} has no step with finite perplexity: plot its accuracy with tradeoff().")
    return finite
