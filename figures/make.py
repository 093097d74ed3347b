"""Draw the pictures of the README from the bundled model: PNG, and the data as CSV.

Run by `make figures`; static images need kaleido and a Chrome.
"""

from pathlib import Path
from typing import Any

import pandas as pd

import sp_lens as sp
from sp_lens.plots._files import write_figure

HERE = Path(__file__).parent
LAYER = 2
RUNS: dict[str, dict[str, Any]] = {
    "MLP neurons, by abs": {"site": "mlp", "metric": "abs"},
    "attention neurons, by abs": {"site": "attn", "metric": "abs"},
    "MLP neurons, at random": {"site": "mlp", "metric": "random"},
    "attention neurons, at random": {"site": "attn", "metric": "random"},
}


def read(model: Any, name: str, split: Any, tokens: int) -> Any:
    """Offline text."""
    return sp.load_corpus(name, model, tokens=tokens, split=split, offline=True)


def tradeoff(model: Any) -> None:
    """Figure 2 on the bundled model: code forgotten, prose kept."""
    corpora = {
        f"{prefix}{side}": read(model, name, split, 20_000)
        for prefix, split in (("", "collect"), ("eval_", "evaluate"))
        for side, name in (("forget", "code"), ("retain", "prose"))
    }
    runs = {label: sp.prune(model, **corpora, fraction=0.05, steps=10, **options) for label, options in RUNS.items()}
    history = pd.concat([run.history.assign(run=label) for label, run in runs.items()])
    history.to_csv(HERE / "tradeoff-demo.csv", index=False)
    write_figure(sp.plots.tradeoff(runs), HERE / "tradeoff-demo.png", scale=2)


def density(model: Any) -> None:
    """Figure 5 on the bundled model: attention pre-out neurons of one layer on three corpora."""
    names = {"prose": "prose", "Python": "python", "C and C++": "non_python"}
    corpora = {label: read(model, name, "collect", 10_000) for label, name in names.items()}
    stats = sp.collect_histograms(model, corpora, site="attn", layer=LAYER)
    frames = [one.histogram_frame("attn", LAYER, range(100)).assign(corpus=name) for name, one in stats.items()]
    pd.concat(frames).query("tokens > 0").to_csv(HERE / "density-demo.csv", index=False)
    figure = sp.plots.density(stats, site="attn", layer=LAYER, neurons=range(100))
    write_figure(figure, HERE / "density-demo.png", scale=2)


if __name__ == "__main__":
    bundled = sp.load_model("demo", device="cpu")
    density(bundled)
    tradeoff(bundled)
