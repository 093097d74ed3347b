"""How perplexity rises on the one corpus and on the other as neurons are pruned (Figure 3)."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sp_lens.errors import SpLensError
from sp_lens.plots._shared import as_runs, log_ticks, set_title
from sp_lens.plots.runs._runs import add_diagonal, draw_runs, ends_of, intervals_of, runs_subtitle, set_axes

if TYPE_CHECKING:
    from sp_lens.evaluation.bootstrap import DocumentHits
    from sp_lens.pruning.run import Run

SIDES = ["retain_perplexity", "forget_perplexity"]  # x and y


def perplexity(
    runs: "Run | Iterable[Run] | Mapping[str, Run]", *, hits: "Mapping[str, DocumentHits] | None" = None
) -> go.Figure:
    """Figure 3 of arXiv 2403.01267: perplexity on the forget corpus against perplexity on the retain corpus.

    Drawn as `tradeoff` draws runs, on logarithmic axes: a dot for each step, and a smoothed curve, the
    geometric mean over a step and up to two steps on either side (our choice). Where all runs begin at one
    point, a dashed line (ours) leads from it on which both perplexities rise by the same factor; selective
    pruning is above it.

    Args:
        runs: what `prune` or one of `unlearning` returns, a list of it, or a mapping from a label to it. Runs
            without a label are called after the settings in which they differ.
        hits: label of a run -> `document_hits` of it, for bars, the 95 % intervals over held-out documents at the step
            that the hits are of:
            `document_hits(model, corpora, ablate(model, run.mask_at(run.best_step)))`.

    Returns:
        x and y are perplexities, exp(mean loss in nats per token); each run is two traces, curve and dots.
        Steps of infinite perplexity (a loss above 700 nats) are left out, and the subtitle counts them.

    Raises:
        SpLensError: when there is no run, something that is no `PruneRun`, a run without a step of finite
            perplexity, or hits of no run.

    Example:
        >>> import sp_lens as sp
        >>> sp.plots.perplexity([])
        Traceback (most recent call last):
            ...
        sp_lens.errors.SpLensError: no runs to draw: expected a PruneRun, a list of them, or {label: PruneRun}.
    """
    named = as_runs(runs)
    histories = {label: _finite(label, run) for label, run in named.items()}
    bars = intervals_of(histories, hits, lambda one, side: one.perplexity(side))
    figure = draw_runs(
        histories,
        x=SIDES[0],
        y=SIDES[1],
        intervals=bars,
        columns=["step", "share", "forget_top1", "retain_top1"],
        hover=(
            "step %{customdata[0]}, %{customdata[1]:.1%} pruned<br>"
            "forget: perplexity %{y:,.1f}, top-1 %{customdata[2]:.1%}<br>"
            "retain: perplexity %{x:,.1f}, top-1 %{customdata[3]:.1%}"
        ),
        log=True,
    )
    everything = pd.concat(list(histories.values()))
    drawn = np.concatenate([everything[SIDES].to_numpy(), *ends_of(bars)])
    low, high = drawn.min(axis=0), drawn.max(axis=0)
    margin = 0.06 * np.log10(high / low) + 0.02  # where nothing was lost, there is no span
    set_axes(figure, "perplexity on {side} data (log)", np.log10(low) - margin, np.log10(high) + margin)
    figure.update_xaxes(type="log", **log_ticks(low[0], high[0]))
    figure.update_yaxes(type="log", **log_ticks(low[1], high[1]))
    starts = np.array([history[SIDES].iloc[0] for history in histories.values()])
    factor = float((everything[SIDES].max() / starts[0]).min())
    if np.allclose(starts, starts[0]) and factor > 1:
        x, y = starts[0]
        add_diagonal(figure, (x, y), (x * factor, y * factor), "both rise alike")
    subtitle = runs_subtitle(named, bars)
    if left_out := sum(len(run.records) for run in named.values()) - sum(map(len, histories.values())):
        subtitle += f"; left out, steps of infinite perplexity: {left_out}"
    set_title(figure, "Selective pruning: perplexity on forget against retain data", subtitle)
    return figure


def _finite(label: str, run: "Run") -> pd.DataFrame:
    """The steps that have a place on logarithmic axes."""
    history = run.history
    if missing := [column for column in SIDES if column not in history]:
        raise SpLensError(f"run {label!r} has no {missing[0]} in its records: expected a run that prune() evaluated.")
    finite = history.loc[np.isfinite(history[SIDES]).all(axis=1)]
    if finite.empty:
        raise SpLensError(f"run {label!r} has no step of finite perplexity: draw its accuracy with tradeoff() instead.")
    return finite
