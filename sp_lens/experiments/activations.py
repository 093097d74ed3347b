"""Experiments that look at neurons and prune nothing: figures 1 and 5."""

from collections import Counter
from typing import Any

import pandas as pd

from sp_lens import plots
from sp_lens.data.text import load_corpus
from sp_lens.evaluation.bootstrap import bootstrap_mean
from sp_lens.experiments.result import Finding, Found, compared, origins
from sp_lens.experiments.setting import Setting
from sp_lens.scoring.score import score
from sp_lens.scoring.significance import SpecialisationTest, specialisation_test
from sp_lens.scoring.specialisation import specialisation
from sp_lens.scoring.uncertainty import uncertainty
from sp_lens.statistics.collect import collect, collect_histograms
from sp_lens.typing import Site, Split

LAYER, NEURONS = 2, range(100)  # of Figure 5
NAMES: dict[Site, str] = {"mlp": "feed-forward", "attn": "attention"}
TIMES = 2.0  # a neuron is specialised when its mean |z| differs by more than this factor


def illustration(setting: Setting) -> Found:
    """The importance of each neuron on both corpora: those far above the diagonal are pruned."""
    found = Found()
    (pair,) = setting.pairs
    corpora = setting.corpora(pair)
    setting.tell_time(corpora, [Counter(forget=1, retain=1)])
    sides = [corpora[side] for side in ("forget", "retain")]
    options: dict[str, Any] = {"folds": setting.folds(*sides), "progress": setting.progress}
    forget, retain = (collect(setting.model, corpus, **options) for corpus in sides)
    found.corpora = origins(corpora)
    scores = score(forget, retain, metric="abs").select("mlp").frame()
    low, middle, high = scores["value"].quantile([0.05, 0.5, 0.95])
    measured = f"scores by abs, 5 %, median, 95 % of the feed-forward neurons: {low:.2f}, {middle:.2f}, {high:.2f}"
    found.findings.append(Finding("neurons differ in what they matter for", measured, bool(high > TIMES * low)))
    if options["folds"]:
        test = specialisation_test(forget, retain, progress=setting.progress)
        scores = (
            uncertainty(forget, retain)
            .select("mlp")
            .frame()
            .assign(adjusted=test.adjusted.select("mlp").frame()["value"])
        )
        found.findings.append(_beyond_chance(test))
    found.figures["figure-1"] = plots.importance_scatter(forget, retain, site="mlp")
    found.data["figure-1"] = scores
    return found


def _beyond_chance(test: SpecialisationTest) -> Finding:
    """How many neurons differ surely: folds of documents swapped between the corpora."""
    chosen = test.mask()
    said = " and ".join(f"{chosen.share(site):.0%} of the {name} neurons" for site, name in NAMES.items())
    claim = "neurons are specialised beyond chance"
    return Finding(claim, f"{said}, at a false discovery rate of {test.rate:.0%}", chosen.count() > 0)


def densities(setting: Setting) -> Found:
    """Activation densities on three corpora, and how many neurons are specialised beyond chance."""
    found = Found()
    names = ("pile_codeless", "code", "python") if setting.offline else ("pile_codeless", "pile", "code")

    def read(name: str, split: Split = "collect") -> Any:
        return load_corpus(name, setting.model, tokens=setting.scale.tokens, split=split, offline=setting.offline)

    corpora = {name: read(name) for name in names}
    found.corpora = origins(corpora)
    layer = min(LAYER, setting.model.cfg.n_layers - 1)
    options: dict[str, Any] = {"folds": setting.folds(*corpora.values()), "progress": setting.progress}
    stats = collect_histograms(setting.model, corpora, site="attn", layer=layer, **options)
    neurons = range(min(len(NEURONS), stats["code"].layout.select("attn")[layer].width))
    found.figures["figure-5"] = plots.density(stats, site="attn", layer=layer, neurons=neurons)
    frames = [one.histogram_frame("attn", layer, neurons).assign(corpus=name) for name, one in stats.items()]
    found.data["figure-5"] = pd.concat(frames).query("tokens > 0")
    more_code = collect(setting.model, read("code", "evaluate"), progress=setting.progress)
    between = specialisation({"code": stats["code"], "prose": stats["pile_codeless"]}).frame()
    within = specialisation({"code": stats["code"], "more code": more_code}).frame()
    for site, name in NAMES.items():
        of_site = between["site"] == site
        twice, by_chance = ((frame.loc[of_site, "specificity"] > TIMES).to_numpy(float) for frame in (between, within))
        said = (
            f"{twice.mean():.1%} of {len(twice)} neurons, {by_chance.mean():.1%} between two samples of code; more by"
        )
        claim = f"{name} neurons are specialised: for some, code and prose differ more than {TIMES:g} times"
        found.findings.append(compared(claim, bootstrap_mean(twice - by_chance), said))
        found.table.append(
            {"site": name, "neurons": len(twice), "code / prose": f"{twice.mean():.1%}",
             "code / more code": f"{by_chance.mean():.1%}"}
        )  # fmt: skip
    return found
