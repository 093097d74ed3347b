"""Experiments that look at neurons and prune nothing: figures 1 and 5."""

from typing import Any

import numpy as np
import pandas as pd

from sp_lens import plots
from sp_lens.collect import collect, collect_histograms
from sp_lens.confidence import Interval, interval
from sp_lens.corpus import load_corpus
from sp_lens.importance import score
from sp_lens.reproduction.result import Finding, compared
from sp_lens.reproduction.setting import Setting
from sp_lens.reproduction.writing import Found, origins
from sp_lens.sites import SITES
from sp_lens.stats import ActivationStats

LAYER, NEURONS = 2, range(100)  # of Figure 5
TIMES = 2.0  # a neuron is specialised when its mean |z| differs by this factor
DRAWS = 2000


def illustration(setting: Setting) -> Found:
    """The importance of each neuron on both corpora: those far above the diagonal are pruned."""
    found = Found()
    (pair,) = setting.pairs
    corpora = setting.corpora(pair)
    setting.tell_time(corpora, 1)
    forget, retain = (collect(setting.model, corpora[side], progress=setting.progress) for side in ("forget", "retain"))
    found.corpora = origins(corpora)
    scores = score(forget, retain, metric="abs").of("mlp").frame()
    low, middle, high = scores["value"].quantile([0.05, 0.5, 0.95])
    measured = f"scores by abs, 5 %, median, 95 % of the feed-forward neurons: {low:.2f}, {middle:.2f}, {high:.2f}"
    found.findings.append(Finding("neurons differ in what they matter for", measured, bool(high > TIMES * low)))
    found.figures["figure-1"] = plots.importance_scatter(forget, retain, site="mlp")
    found.data["figure-1"] = scores
    return found


def densities(setting: Setting) -> Found:
    """Activation densities on three corpora, and how many neurons are specialised beyond chance."""
    found = Found()
    names = ["pile_codeless", "code"] if setting.offline else ["pile_codeless", "pile", "code"]
    names += ["python"] if setting.offline else []
    read: dict[str, Any] = {
        name: load_corpus(name, setting.model, tokens=setting.scale.tokens, offline=setting.offline) for name in names
    }
    found.corpora = origins(read)
    layer = min(LAYER, setting.model.cfg.n_layers - 1)
    stats = collect_histograms(setting.model, read, site="attn", layer=layer, progress=setting.progress)
    neurons = range(min(len(NEURONS), stats["code"].layout.of("attn")[layer].width))
    found.figures["figure-5"] = plots.density(stats, site="attn", layer=layer, neurons=neurons)
    frames = [one.histogram_frame("attn", layer, neurons).assign(corpus=name) for name, one in stats.items()]
    found.data["figure-5"] = pd.concat(frames).query("tokens > 0")
    again = load_corpus("code", setting.model, tokens=setting.scale.tokens, split="evaluate", offline=setting.offline)
    samples = {"code": stats["code"], "prose": stats["pile_codeless"], "more code": collect(setting.model, again)}
    for site, name in zip(SITES, ("feed-forward", "attention"), strict=True):
        between, within = (_specialised(samples["code"], samples[other], site) for other in ("prose", "more code"))
        said = (
            f"{between.mean():.1%} of {len(between)} neurons, {within.mean():.1%} between two samples of code; more by"
        )
        claim = f"{name} neurons are specialised: for some, code and prose differ {TIMES:g} times or more"
        found.findings.append(compared(claim, _difference(between, within), said))
        found.table.append(
            {"site": name, "neurons": len(between), "code / prose": f"{between.mean():.1%}",
             "code / more code": f"{within.mean():.1%}"}
        )  # fmt: skip
    return found


def _specialised(one: ActivationStats, other: ActivationStats, site: Any) -> np.ndarray:
    """Of each neuron of a site, whether its mean |z| on the two differs by the factor."""
    sides = [stats.importance("abs").of(site).frame()["value"].to_numpy() for stats in (one, other)]
    return np.maximum(*sides) >= TIMES * np.minimum(*sides)


def _difference(between: np.ndarray, within: np.ndarray) -> Interval:
    """The difference of two shares of the same neurons, over neurons drawn anew."""
    each = between.astype(float) - within
    draws = np.random.default_rng(0).choice(each, size=(DRAWS, len(each))).mean(axis=1)
    return interval(float(each.mean()), draws)
