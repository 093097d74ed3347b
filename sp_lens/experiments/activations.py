"""Experiments that compare activations without pruning: Figure 1 (importances) and Figure 5 (densities)."""

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from sp_lens import plots
from sp_lens.data.text import load_corpus
from sp_lens.evaluation.intervals import mean_interval
from sp_lens.experiments.result import Finding, Outcome, difference_finding, offline_origins
from sp_lens.experiments.setting import Setting
from sp_lens.scoring.score import score
from sp_lens.scoring.significance import SpecialisationTest, specialisation_test
from sp_lens.scoring.specialisation import specialisation
from sp_lens.scoring.uncertainty import uncertainty
from sp_lens.statistics.collect import collect, collect_histograms
from sp_lens.typing import Site, Split

LAYER, NEURONS = 2, range(100)  # shown in Figure 5 of the paper
SITE_NAMES: dict[Site, str] = {"mlp": "feed-forward", "attn": "attention"}
FACTOR = 2.0  # a neuron counts as specialised if its mean |z| on two corpora differs by more than this factor


def illustration(setting: Setting) -> Outcome:
    """Run Figure 1: plot the importance of each neuron for both corpora. Neurons far above the diagonal are pruned."""
    (pair,) = setting.pairs
    corpora = setting.corpora(pair)
    setting.log_time(corpora, [Counter(forget=1, retain=1)])
    fold_documents = setting.fold_documents(corpora.forget, corpora.retain)
    forget, retain = (
        collect(setting.model, corpus, fold_documents=fold_documents, progress=setting.progress)
        for corpus in (corpora.forget, corpora.retain)
    )
    scores = score(forget, retain, metric="abs").select("mlp").frame()
    outcome = Outcome(findings=[score_range_finding(scores["value"])], corpora=offline_origins(corpora))
    if fold_documents:
        test = specialisation_test(forget, retain, progress=setting.progress)
        adjusted = test.adjusted.select("mlp").frame()["value"]
        scores = uncertainty(forget, retain).select("mlp").frame().assign(adjusted=adjusted)
        outcome.findings.append(significance_finding(test))
    outcome.figures["figure-1"] = plots.importance_scatter(forget, retain, site="mlp")
    outcome.data["figure-1"] = scores
    return outcome


def score_range_finding(scores: pd.Series) -> Finding:
    """Judge whether the scores of feed-forward neurons (metric `abs`) spread over more than a factor of 2."""
    low, median, high = scores.quantile([0.05, 0.5, 0.95])
    measured = (
        "5th percentile, median and 95th percentile of the scores of feed-forward neurons (metric abs): "
        f"{low:.2f}, {median:.2f}, {high:.2f}"
    )
    return Finding("neurons differ in which corpus they matter for", measured, bool(high > FACTOR * low))


def significance_finding(test: SpecialisationTest) -> Finding:
    """Judge whether a permutation test over folds of documents finds any specialised neuron."""
    specialised = test.mask()
    shares = " and ".join(f"{specialised.share(site):.0%} of the {name} neurons" for site, name in SITE_NAMES.items())
    measured = f"{shares}, at a false discovery rate of {test.rate:.0%}"
    return Finding("neurons are specialised beyond chance", measured, specialised.count() > 0)


def densities(setting: Setting) -> Outcome:
    """Run Figure 5: plot activation densities on three corpora, and compare code with prose and with other code."""
    names = ("pile_codeless", "code", "python") if setting.offline else ("pile_codeless", "pile", "code")

    def load(name: str, split: Split = "collect") -> Any:
        return load_corpus(name, setting.model, tokens=setting.scale.tokens, split=split, offline=setting.offline)

    corpora = {name: load(name) for name in names}
    outcome = Outcome(corpora=offline_origins(corpora))
    layer = min(LAYER, setting.model.cfg.n_layers - 1)
    fold_documents = setting.fold_documents(*corpora.values())
    options: dict[str, Any] = {"fold_documents": fold_documents, "progress": setting.progress}
    stats = collect_histograms(setting.model, corpora, site="attn", layer=layer, **options)
    neurons = range(min(len(NEURONS), stats["code"].layout.select("attn")[layer].width))
    outcome.figures["figure-5"] = plots.density(stats, site="attn", layer=layer, neurons=neurons)
    frames = [item.histogram_frame("attn", layer, neurons).assign(corpus=name) for name, item in stats.items()]
    outcome.data["figure-5"] = pd.concat(frames).query("tokens > 0")
    more_code = collect(setting.model, load("code", "evaluate"), progress=setting.progress)
    between = specialisation({"code": stats["code"], "prose": stats["pile_codeless"]}).frame()
    within = specialisation({"code": stats["code"], "more code": more_code}).frame()
    for site, name in SITE_NAMES.items():
        differs, control = (
            (frame.loc[frame["site"] == site, "specificity"] > FACTOR).to_numpy(float) for frame in (between, within)
        )
        outcome.findings.append(specialised_finding(name, differs, control))
        outcome.table.append(
            {"site": name, "neurons": len(differs), "code / prose": f"{differs.mean():.1%}",
             "code / more code": f"{control.mean():.1%}"}
        )  # fmt: skip
    return outcome


def specialised_finding(
    name: str, differs: Float[np.ndarray, " neuron"], control: Float[np.ndarray, " neuron"]
) -> Finding:
    """Judge whether more neurons are specialised between code and prose than between two samples of code.

    Args:
        name: Name of the site, "feed-forward" or "attention".
        differs: 1 for each neuron whose mean |z| on code and on prose differs by more than a factor of 2, else 0.
        control: The same for two samples of code.
    """
    claim = (
        f"{name} neurons are specialised: mean |z| differs by more than a factor of {FACTOR:g} between code and prose "
        "for more neurons than between two samples of code"
    )
    compared = (
        f"{differs.mean():.1%} of {len(differs)} neurons, {control.mean():.1%} between two samples of code; difference"
    )
    return difference_finding(claim, compared, mean_interval(differs - control))
