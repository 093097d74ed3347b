"""Experiments that are pruning runs: figures 2 to 4, attention heads, vision."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from sp_lens import plots
from sp_lens.evaluation.bootstrap import DocumentHits, Interval, interval
from sp_lens.experiments.registry import Pair
from sp_lens.experiments.result import Finding, Found, compared, origins
from sp_lens.experiments.setting import Setting, plain
from sp_lens.pruning.run import PruneRun

Runs = Mapping[str, PruneRun]
Hits = Mapping[str, DocumentHits]


def pruning(setting: Setting) -> Found:
    """Every pair forgotten by every variant; one figure a pair."""
    found = Found()
    variants, steps = setting.experiment.variants, setting.steps
    passes = [setting.passes(options) for _ in setting.pairs for options in variants.values()]
    for place, pair in enumerate(setting.pairs):
        corpora = setting.corpora(pair)
        if place == 0:
            setting.tell_time(corpora, passes)
        runs = {label: setting.run(pair, label, corpora, **steps, **options) for label, options in variants.items()}
        hits = {label: setting.hits(pair, label, corpora, run) for label, run in runs.items()}
        found.corpora |= origins(corpora)
        found.table += [as_row(pair, label, runs[label], hits[label]) for label in runs]
        found.findings += FINDINGS[setting.experiment.name](pair, runs, hits)
        for figure in setting.experiment.figures:
            name = plain(f"{setting.experiment.name}-{pair.forget}-{pair.retain}")
            found.figures[name] = getattr(plots, figure)(runs, hits=hits)
            found.data[name] = pd.concat([run.history.assign(run=label) for label, run in runs.items()])
    return found


def as_row(pair: Pair, label: str, run: PruneRun, hits: DocumentHits) -> dict[str, Any]:
    """A run as a row of the page's table, at its best step."""
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


def tradeoff_finding(pair: Pair, runs: Runs, hits: Hits) -> list[Finding]:
    """Whether scored neurons separate better than random ones."""
    difference = hits["abs"].more_than(hits["random"])
    return [compared(f"{pair}: more selectively than at random", difference, "abs less random")]


def _perplexity(pair: Pair, runs: Runs, hits: Hits) -> list[Finding]:
    run = runs["abs"]
    best = max(run.best_step, 1)
    before, after = run.history.iloc[0], run.history.iloc[best]
    forget, retain = (after[f"{side}_perplexity"] / before[f"{side}_perplexity"] for side in ("forget", "retain"))
    measured = f"at {after['share']:.0%}, forget perplexity times {forget:.3g}, retain perplexity times {retain:.3g}"
    return [Finding(f"{pair}: the perplexity of what is forgotten rises more", measured, bool(forget > retain))]


def _metrics(pair: Pair, runs: Runs, hits: Hits) -> list[Finding]:
    findings = []
    for site, name in (("mlp", "feed-forward"), ("attn", "attention")):
        control = [one for label, one in hits.items() if label.startswith("random") and f" {site}" in label]
        for metric in ("freq", "abs", "rms", "std"):
            findings.append(
                compared(
                    f"{name}: {metric} beats random",
                    _above_mean(hits[f"{metric} {site}"], control),
                    f"{metric} less the mean of {len(control)} random runs",
                )
            )
        for metric in ("abs", "rms", "std"):
            difference = hits[f"{metric} {site}"].more_than(hits[f"freq {site}"])
            measured = f"{metric} less freq: {difference} points"
            findings.append(Finding(f"{name}: {metric} beats freq or matches it", measured, _not_below(difference)))
    difference = hits["abs mlp"].more_than(hits["abs attn"])
    findings.append(compared("feed-forward neurons separate better than attention neurons", difference, "by abs"))
    return findings


def _heads(pair: Pair, runs: Runs, hits: Hits) -> list[Finding]:
    control = [one for label, one in hits.items() if label.startswith("heads at random")]
    scored = [label for label in hits if label.startswith("heads by")]
    findings = [
        compared(f"{label}: more selectively than at random", _above_mean(hits[label], control), "less random")
        for label in scored
    ]
    difference = hits["neurons"].more_than(hits[scored[0]])
    return [*findings, compared("single neurons separate better than whole heads", difference, "neurons less heads")]


def _not_below(difference: Interval) -> bool | None:
    """Whether a difference is 0 or more, as far as its interval says."""
    return None if np.isnan(difference.high) else difference.high >= 0


FINDINGS = {
    "figure-2": tradeoff_finding,
    "figure-3": _perplexity,
    "figure-4": _metrics,
    "attention-heads": _heads,
    "vision": tradeoff_finding,
}


def _above_mean(one: DocumentHits, others: list[DocumentHits]) -> Interval:
    """By how much the selectivity of one is above the mean of others, of the same documents."""
    value = one.selectivity - float(np.mean([other.selectivity for other in others]))
    draws = one.draws() - np.mean([other.draws() for other in others], axis=0)
    return interval(value, draws)
