"""Figure 4 of the paper: selectivity by importance metric and site, with the runs of several seeds as one bar."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sp_lens.errors import SpLensError
from sp_lens.plots._labels import SITE_NAMES
from sp_lens.plots._layout import category_ticks, finish, make_panels
from sp_lens.plots._text import escape_plotly, hover_name
from sp_lens.plots.runs._run_labels import as_runs, common_settings, differing_settings, run_facts
from sp_lens.plots.themes import PALETTE

if TYPE_CHECKING:
    from sp_lens.pruning.run import Run

METRIC_ORDER = ("freq", "abs", "rms", "std", "random")  # as in the paper's caption, with the control last
SITE_COLOURS = {"mlp": PALETTE[0], "attn": PALETTE[1], "both": PALETTE[2]}
COLUMNS = 2
MAX_PANELS = 12


def selectivity(runs: "Run | Iterable[Run] | Mapping[str, Run]") -> go.Figure:
    """Plot Figure 4 of arXiv 2403.01267: the selectivity of each importance metric at each site.

    A bar is the difference at the best step between the drop in forget accuracy and the drop in retain accuracy. The
    best step is chosen on one half of the held-out documents and measured on the other (our choice, see
    `Run.best_hits`; the paper takes the largest difference). Runs that differ only in their seed are combined into one
    bar, whose height is their mean. Error bars are 95 % confidence intervals of that mean over held-out documents, or,
    for runs that do not record their documents, the sample standard deviation over seeds (n - 1). If the runs differ in
    more than metric, site and seed (in the model, as in the paper, or in the corpora), there is one panel per
    combination.

    Args:
        runs: Result of `prune`, a list of runs, or a mapping from label to run. Bars are named after the settings of
            the runs and not after labels, which would not show which runs differ only in their seed.

    Returns:
        Figure with the metric on the x axis and `run.selectivity` in percentage points of next-token top-1 accuracy
        on the y axis. There is one trace per panel and site.

    Raises:
        SpLensError: If there is no run, an item is not a run, a run pruned nothing or does not record its metric and
            site, the runs need more than 12 panels, or the runs of a bar were evaluated on different documents.

    Example:
        >>> import sp_lens as sp
        >>> sp.plots.selectivity([])
        Traceback (most recent call last):
            ...
        sp_lens.errors.SpLensError: there are no runs to draw: expected a PruneRun, a list of runs, or {label: run}.
    """
    labelled = as_runs(runs)
    bars = _bar_table(labelled)
    titles = list(bars["panel"].unique())
    if len(titles) > MAX_PANELS:
        raise SpLensError(
            f"these {len(labelled)} runs differ in more than metric, site and seed and need {len(titles)} panels "
            f"({titles[0]!r}, {titles[1]!r}, ...), but at most {MAX_PANELS} can be drawn: pass fewer runs."
        )
    figure, cells = make_panels(titles, columns=COLUMNS, gap=0.33)
    for site in (site for site in SITE_COLOURS if site in set(bars["site"])):
        of_site = bars.loc[bars["site"] == site]
        for title, (row, column) in zip(titles, cells, strict=True):
            in_panel = of_site.loc[of_site["panel"] == title]
            if len(in_panel):
                figure.add_trace(_bar(in_panel, site, showlegend=title == of_site["panel"].iloc[0]), row, column)
    metrics = sorted(bars["metric"].unique(), key=_metric_order)
    half = max(len(metrics), 4) / 2  # keeps a small number of bars from becoming as wide as the figure
    ends = [(len(metrics) - 1) / 2 - half, (len(metrics) - 1) / 2 + half]
    figure.update_xaxes(
        title_text="importance metric",
        categoryorder="array",
        categoryarray=[escape_plotly(metric) for metric in metrics],
        range=ends,
        **category_ticks(metrics, 60 / (len(cells) if len(cells) < COLUMNS else COLUMNS) / (2 * half)),
    )
    figure.update_yaxes(rangemode="tozero")
    figure.update_yaxes(title_text="selectivity (percentage points)", col=1)
    figure.update_layout(height=200 + 330 * cells[-1][0], showlegend=True, bargroupgap=0.08)
    finish(figure, "Selectivity by importance metric and site", _subtitle(labelled, bars))
    return figure


def _subtitle(labelled: "Mapping[str, Run]", bars: pd.DataFrame) -> str:
    steps = sorted({run.steps for run in labelled.values()})
    over = f"{steps[0]} steps" if len(steps) == 1 else f"{steps[0]} to {steps[-1]} steps"
    errors = ""
    if bars["above"].notna().any():
        intervals = all(run.documents for run in labelled.values())
        kind = "95 % confidence intervals over held-out documents" if intervals else "standard deviation over seeds"
        errors = f"; error bars: {kind}"
    nothing = "" if bars["mean"].any() else "; no run has a larger drop on forget than on retain data"
    protected = "".join(f", {number} ({site})" for site, number in _protected_by_site(labelled).items())
    return (
        f"difference between the drops in forget and retain top-1 accuracy at the best of {over}{errors}{nothing}; "
        f"{common_settings(labelled.values())}{protected}"
    )


def _bar_table(labelled: "Mapping[str, Run]") -> pd.DataFrame:
    """Return one row per bar.

    Columns are panel, metric, site, mean, std, min and max of the selectivity in percentage points, the number of
    runs, and the lengths of the error bar below and above the mean.
    """
    facts = {label: run_facts(run) for label, run in labelled.items()}
    not_in_panel = {"metric", "site", "seed", *(["protected"] if _protected_by_site(labelled) else [])}
    panel_keys = [key for key in differing_settings(facts.values()) if key not in not_in_panel]
    rows: list[dict[str, Any]] = []
    for label, run in labelled.items():
        settings = facts[label]
        if not run.steps:
            raise SpLensError(f"run {label!r} only has step 0: it pruned nothing and therefore has no selectivity.")
        if settings.get("site") not in SITE_COLOURS or "metric" not in settings:
            raise SpLensError(
                f"run {label!r} has metric {settings.get('metric')!r} and site {settings.get('site')!r} in its "
                f"settings: expected a metric and one of {tuple(SITE_COLOURS)}, as recorded by prune()."
            )
        panel = ", ".join(settings[key] for key in panel_keys if key in settings)
        rows.append(
            {
                "panel": panel or ("not recorded" if panel_keys else ""),
                "metric": settings["metric"],
                "site": settings["site"],
                "points": 100 * run.selectivity,
            }
        )
    grouped = pd.DataFrame(rows, index=list(labelled)).groupby(["panel", "metric", "site"], sort=False)["points"]
    bars = grouped.agg(["mean", "std", "min", "max", "count"]).reset_index()
    bars = bars.rename(columns={"count": "runs"})
    if not all(run.documents for run in labelled.values()):
        return bars.assign(below=bars["std"], above=bars["std"])
    from sp_lens.evaluation.document_hits import mean_hits  # imported here because it imports torch

    # The runs of a bar are evaluated on the same documents.
    means = [mean_hits([labelled[str(label)].best_hits() for label in points.index]) for _, points in grouped]
    low, high = 100 * np.array([mean.interval()[1:] for mean in means]).T
    return bars.assign(below=bars["mean"] - low, above=high - bars["mean"])


def _protected_by_site(labelled: "Mapping[str, Run]") -> dict[str, str]:
    """Return the number of protected neurons at each site if it differs between sites, as text.

    Attention sinks, for example, are neurons of one site only. Return an empty mapping if all runs protect equally
    many neurons, or if runs at the same site differ.
    """
    facts = [run_facts(run) for run in labelled.values()]
    pairs = {(settings.get("site", ""), settings.get("protected")) for settings in facts}
    if len(pairs) > len({site for site, _ in pairs}) or len({number for _, number in pairs}) == 1:
        return {}
    return {site: number for site, number in sorted(pairs) if number}


def _bar(bars: pd.DataFrame, site: str, *, showlegend: bool) -> go.Bar:
    """Return the bars of one site in one panel."""
    ends = {"array": bars["above"], "arrayminus": bars["below"], "symmetric": False, "thickness": 1.5, "width": 5}
    return go.Bar(
        x=[escape_plotly(metric) for metric in bars["metric"]],
        y=bars["mean"],
        error_y=ends if bars["above"].notna().any() else None,
        name=f"{SITE_NAMES[site]} neurons",
        legendgroup=site,
        showlegend=showlegend,
        marker_color=SITE_COLOURS[site],
        customdata=bars[["runs", "min", "max"]].to_numpy(),
        hovertext=[hover_name(metric) for metric in bars["metric"]],
        hovertemplate=(
            f"<b>%{{hovertext}}, {SITE_NAMES[site]}</b><br>"
            "%{y:.1f} percentage points, mean of %{customdata[0]} runs<br>"
            "%{customdata[1]:.1f} to %{customdata[2]:.1f}<extra></extra>"
        ),
    )


def _metric_order(metric: str) -> tuple[int, str]:
    return (METRIC_ORDER.index(metric) if metric in METRIC_ORDER else len(METRIC_ORDER), metric)
