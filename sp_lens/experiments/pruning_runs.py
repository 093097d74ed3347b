"""Experiments that compare pruning runs: Figures 2 to 4, attention heads, and vision."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from sp_lens import plots
from sp_lens.evaluation.document_hits import DocumentHits
from sp_lens.evaluation.intervals import Interval
from sp_lens.experiments.registry import Pair
from sp_lens.experiments.result import Finding, Outcome, difference_finding, offline_origins
from sp_lens.experiments.setting import Setting, path_component
from sp_lens.pruning.run import PruneRun

Runs = Mapping[str, PruneRun]
Hits = Mapping[str, DocumentHits]


def pruning(setting: Setting) -> Outcome:
    """Run every variant of the experiment on every pair of corpora, and draw one figure per pair."""
    outcome = Outcome()
    experiment = setting.experiment
    for index, pair in enumerate(setting.pairs):
        corpora = setting.corpora(pair)
        if index == 0:
            passes = [setting.passes(options) for options in experiment.variants.values()]
            setting.log_time(corpora, passes * len(setting.pairs))
        runs = {label: setting.run(pair, label, corpora, **options) for label, options in experiment.variants.items()}
        hits = {label: run.best_hits() for label, run in runs.items()}
        outcome.corpora |= offline_origins(corpora)
        outcome.table += [run_row(pair, label, runs[label], hits[label]) for label in runs]
        outcome.findings += FINDINGS[experiment.name](pair, runs, hits)
        for figure in experiment.figures:
            name = path_component(f"{experiment.name}-{pair.forget}-{pair.retain}")
            outcome.figures[name] = getattr(plots, figure)(runs)
            outcome.data[name] = pd.concat([run.history.assign(run=label) for label, run in runs.items()])
    return outcome


def run_row(pair: Pair, label: str, run: PruneRun, hits: DocumentHits) -> dict[str, Any]:
    """Return the row of the results table that describes a run at its best step."""
    before, after = run.history.iloc[0], run.history.iloc[run.best_step]
    return {
        "pair": str(pair),
        "run": label,
        "pruned at the best step": f"{after['share']:.0%}",
        "forget top-1": f"{before['forget_top1']:.3f} -> {after['forget_top1']:.3f}",
        "retain top-1": f"{before['retain_top1']:.3f} -> {after['retain_top1']:.3f}",
        "selectivity (points)": str(hits.interval()),
        "documents": " + ".join(str(len(hits.tensors[f"{side}_counts"])) for side in ("forget", "retain")),
    }


def tradeoff_findings(pair: Pair, runs: Runs, hits: Hits) -> list[Finding]:
    """Judge whether pruning by score (`abs`) is more selective than random pruning."""
    difference = hits["abs"].more_than(hits["random"])
    claim = f"{pair}: more selective than random pruning"
    return [difference_finding(claim, "selectivity, abs minus random", difference)]


def perplexity_findings(pair: Pair, runs: Runs, hits: Hits) -> list[Finding]:
    """Judge whether the forget perplexity rises by a larger factor than the retain perplexity at the best step."""
    run = runs["abs"]
    before, after = run.history.iloc[0], run.history.iloc[max(run.best_step, 1)]
    forget, retain = (after[f"{side}_perplexity"] / before[f"{side}_perplexity"] for side in ("forget", "retain"))
    measured = (
        f"with {after['share']:.0%} of the neurons pruned, the forget perplexity is multiplied by {forget:.3g} and the "
        f"retain perplexity by {retain:.3g}"
    )
    return [Finding(f"{pair}: the perplexity of the forgotten corpus rises more", measured, bool(forget > retain))]


def metric_findings(pair: Pair, runs: Runs, hits: Hits) -> list[Finding]:
    """Compare the importance metrics with random pruning, with `freq`, and between the two sites (Figure 4)."""
    findings = []
    for site, name in (("mlp", "feed-forward"), ("attn", "attention")):
        random = [item for label, item in hits.items() if label.startswith(f"random {site}")]
        for metric in ("freq", "abs", "rms", "std"):
            findings.append(
                difference_finding(
                    f"{name}: {metric} beats random",
                    f"selectivity, {metric} minus the mean of {len(random)} random runs",
                    hits[f"{metric} {site}"].more_than(*random),
                )
            )
        for metric in ("abs", "rms", "std"):
            difference = hits[f"{metric} {site}"].more_than(hits[f"freq {site}"])
            measured = f"selectivity, {metric} minus freq: {difference} points"
            findings.append(Finding(f"{name}: {metric} beats freq or matches it", measured, _not_below(difference)))
    difference = hits["abs mlp"].more_than(hits["abs attn"])
    claim = "feed-forward neurons separate better than attention neurons"
    return [
        *findings,
        difference_finding(claim, "selectivity with abs, feed-forward minus attention neurons", difference),
    ]


def head_findings(pair: Pair, runs: Runs, hits: Hits) -> list[Finding]:
    """Compare pruning whole attention heads with random heads and with single attention neurons."""
    random = [item for label, item in hits.items() if label.startswith("heads at random")]
    by_score = [label for label in hits if label.startswith("heads by")]
    findings = [
        difference_finding(
            f"{label}: more selective than random heads",
            f"selectivity, minus the mean of {len(random)} random runs",
            hits[label].more_than(*random),
        )
        for label in by_score
    ]
    difference = hits["neurons"].more_than(hits[by_score[0]])
    claim = "single neurons separate better than whole heads"
    return [*findings, difference_finding(claim, "selectivity, neurons minus heads", difference)]


def _not_below(difference: Interval) -> bool | None:
    """Return whether the confidence interval of a difference reaches 0 or more, or None if there is no interval."""
    return None if np.isnan(difference.high) else difference.high >= 0


FINDINGS = {
    "figure-2": tradeoff_findings,
    "figure-3": perplexity_findings,
    "figure-4": metric_findings,
    "attention-heads": head_findings,
    "vision": tradeoff_findings,
}
