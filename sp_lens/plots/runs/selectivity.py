"""How selectively each metric prunes each site, the runs of several seeds as one bar (Figure 4)."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sp_lens.errors import SpLensError
from sp_lens.plots._shared import SITE_NAMES, as_runs, common_settings, panels, run_facts, set_title
from sp_lens.plots._text import plain
from sp_lens.plots.themes import PALETTE

if TYPE_CHECKING:
    from sp_lens.evaluation.bootstrap import DocumentHits
    from sp_lens.pruning.run import Run

METRIC_ORDER = ("freq", "abs", "rms", "std", "random")  # as the paper's caption lists them, the control last
SITE_COLOURS = {"mlp": PALETTE[0], "attn": PALETTE[1], "both": PALETTE[2]}
COLUMNS = 2
MOST_PANELS = 12


def selectivity(
    runs: "Run | Iterable[Run] | Mapping[str, Run]", *, hits: "Mapping[str, DocumentHits] | None" = None
) -> go.Figure:
    """Figure 4 of arXiv 2403.01267: how selectively each importance metric prunes, at each site.

    A bar is the largest difference, over the steps, between the drop in forget accuracy and the drop in
    retain accuracy. Runs that agree in everything but their seed are one bar: its height is their mean, and
    its error bar their standard deviation (of a sample, n - 1; our choice, the paper shows one run each).
    With `hits` of the runs, error bars are 95 % intervals of that mean over held-out documents instead.
    Where runs differ in more than metric, site and seed (in the model, as in the paper, or in the corpora),
    there is one panel for each.

    Args:
        runs: what `prune` returns, a list of it, or a mapping from a label to it. Bars are named after the
            settings of the runs, never after labels: labels could not be told apart from seeds.
        hits: label of each run -> `document_hits` at its best step,
            `document_hits(model, corpora, ablate(model, run.mask_at(run.best_step)))`; all runs or none.

    Returns:
        y is `run.selectivity` in percentage points of next-token top-1 accuracy, never below 0, as the
        largest is taken over step 0 too; x the metric; one trace a panel and site.

    Raises:
        SpLensError: when there is no run, something that is no `PruneRun`, a run that pruned nothing or does
            not say its metric and site, runs that need more than 12 panels, or hits that are not of these runs.

    Example:
        >>> import sp_lens as sp
        >>> sp.plots.selectivity([])
        Traceback (most recent call last):
            ...
        sp_lens.errors.SpLensError: no runs to draw: expected a PruneRun, a list of them, or {label: PruneRun}.
    """
    named = as_runs(runs)
    if hits is not None and set(hits) != set(named):
        raise SpLensError(f"hits are of {sorted(hits)}, and the runs are {sorted(named)}: give hits of each run.")
    bars = _bars(named, hits)
    titles = list(bars["panel"].unique())
    if len(titles) > MOST_PANELS:
        raise SpLensError(
            f"these {len(named)} runs differ in more than metric, site and seed and need {len(titles)} panels "
            f"({titles[0]!r}, {titles[1]!r}, ...), at most {MOST_PANELS} are drawn: give fewer runs at once."
        )
    figure, places = panels([plain(title) for title in titles], columns=COLUMNS, gap=0.33)
    sites = [site for site in SITE_COLOURS if site in set(bars["site"])]
    for site in sites:
        of_site = bars.loc[bars["site"] == site]
        for title, (row, column) in zip(titles, places, strict=True):
            chosen = of_site.loc[of_site["panel"] == title]
            if len(chosen):
                figure.add_trace(_bar(chosen, site, first=title == of_site["panel"].iloc[0]), row, column)
    metrics = [plain(metric) for metric in sorted(bars["metric"].unique(), key=_place_of_metric)]
    half = max(len(metrics), 4) / 2  # so that few bars don't grow as wide as the figure
    ends = [(len(metrics) - 1) / 2 - half, (len(metrics) - 1) / 2 + half]
    figure.update_xaxes(title_text="importance metric", categoryorder="array", categoryarray=metrics, range=ends)
    figure.update_yaxes(rangemode="tozero")
    figure.update_yaxes(title_text="selectivity (percentage points)", col=1)
    figure.update_layout(height=200 + 330 * places[-1][0], showlegend=True, bargroupgap=0.08)
    steps = sorted({run.steps for run in named.values()})
    over = f"{steps[0]} steps" if len(steps) == 1 else f"{steps[0]} to {steps[-1]} steps"
    errors = "; error bars: standard deviation over seeds" if (bars["runs"] > 1).any() else ""
    if hits is not None:
        errors = "; error bars: 95 % intervals over held-out documents" if bars["above"].notna().any() else ""
    nothing = "" if bars["mean"].any() else "; no run lost more on forget than on retain data"
    protected = "".join(f", {one} ({site})" for site, one in _protected(named).items())
    set_title(
        figure,
        "Selectivity: forget drop less retain drop in top-1 accuracy, by metric and site",
        f"the largest over {over}{errors}{nothing}; {common_settings(named.values())}{protected}",
    )
    return figure


def _bars(named: "Mapping[str, Run]", hits: "Mapping[str, DocumentHits] | None") -> pd.DataFrame:
    """One row a bar: panel, metric, site, mean, std, min, max (points) and number of its runs, below and above it."""
    facts = {label: run_facts(run) for label, run in named.items()}
    no_panel = {"metric", "site", "seed", *(["protected"] if _protected(named) else [])}
    keys = dict.fromkeys(key for one in facts.values() for key in one if key not in no_panel)
    differing = [key for key in keys if len({one.get(key) for one in facts.values()}) > 1]
    rows: list[dict[str, Any]] = []
    for label, run in named.items():
        own = facts[label]
        if not run.steps:
            raise SpLensError(f"run {label!r} has step 0 alone: nothing was pruned, so it has no selectivity.")
        if own.get("site") not in SITE_COLOURS or "metric" not in own:
            raise SpLensError(
                f"run {label!r} has metric {own.get('metric')!r} and site {own.get('site')!r} in its settings: "
                f"expected a metric and one of {tuple(SITE_COLOURS)}, as prune() records them."
            )
        panel = ", ".join(own[key] for key in differing if key in own) or ("not recorded" if differing else "")
        rows.append({"panel": panel, "metric": own["metric"], "site": own["site"], "points": 100 * run.selectivity})
    grouped = pd.DataFrame(rows, index=list(named)).groupby(["panel", "metric", "site"], sort=False)["points"]
    bars = grouped.agg(["mean", "std", "min", "max", "count"]).reset_index()
    bars = bars.rename(columns={"count": "runs"})
    if hits is None:
        return bars.assign(below=bars["std"], above=bars["std"])
    # The runs of a bar are of the same documents, which are drawn alike for each: the mean is taken draw by draw.
    draws = [np.mean([100 * hits[str(label)].draws() for label in points.index], axis=0) for _, points in grouped]
    low, high = np.percentile(draws, [2.5, 97.5], axis=1)
    return bars.assign(below=bars["mean"] - low, above=high - bars["mean"])


def _protected(named: "Mapping[str, Run]") -> dict[str, str]:
    """Site -> how many neurons are protected there, where it is another number, or none, at another site.

    Attention sinks for instance are neurons of one site. Nothing where runs of the same site differ.
    """
    facts = [run_facts(run) for run in named.values()]
    found = {(one.get("site", ""), one.get("protected")) for one in facts}
    if len(found) > len({site for site, _ in found}) or len({number for _, number in found}) == 1:
        return {}
    return {site: number for site, number in sorted(found) if number}


def _bar(bars: pd.DataFrame, site: str, *, first: bool) -> go.Bar:
    """The bars of one site in one panel; `first`: this one stands in the legend."""
    ends = {"array": bars["above"], "arrayminus": bars["below"], "symmetric": False, "thickness": 1.5, "width": 5}
    return go.Bar(
        x=[plain(metric) for metric in bars["metric"]],
        y=bars["mean"],
        error_y=ends if bars["above"].notna().any() else None,
        name=f"{SITE_NAMES[site]} neurons",
        legendgroup=site,
        showlegend=first,
        marker_color=SITE_COLOURS[site],
        customdata=bars[["runs", "min", "max"]].to_numpy(),
        hovertemplate=(
            f"<b>%{{x}}, {SITE_NAMES[site]}</b><br>%{{y:.1f}} points, mean of %{{customdata[0]}} runs<br>"
            "%{customdata[1]:.1f} to %{customdata[2]:.1f}<extra></extra>"
        ),
    )


def _place_of_metric(metric: str) -> tuple[int, str]:
    known = metric in METRIC_ORDER
    return (METRIC_ORDER.index(metric) if known else len(METRIC_ORDER), metric)
