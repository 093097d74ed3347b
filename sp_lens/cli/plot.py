"""`sp-lens plot`: the figures of saved runs and statistics."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

_OUT = ".html, or .png, .svg, .pdf, which need pip install 'sp_lens[export]' and a Chrome"


def add_plot(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add `plot` to the commands; `command` makes one."""
    plot = commands.add_parser(
        "plot", help="a figure of saved results", epilog="example: sp-lens plot tradeoff runs/demo --out tradeoff.html"
    )
    figures = plot.add_subparsers(required=True, metavar="FIGURE")

    def figure(name: str, function: Any, what: str, example: str) -> argparse.ArgumentParser:
        parser = command(figures, name, function, what, f"sp-lens plot {name} {example} --out {name}.html")
        parser.add_argument("--out", required=True, help=_OUT)
        parser.set_defaults(figure=name)
        return parser

    _add_of_runs(figure)
    _add_of_two_corpora(figure)
    _add_of_corpora(figure)


def _add_of_runs(figure: Callable[..., argparse.ArgumentParser]) -> None:
    for name, what in {
        "tradeoff": "Figure 2: accuracy lost on forget against accuracy lost on retain data",
        "perplexity": "Figure 3: perplexity on forget against perplexity on retain data",
        "selectivity": "Figure 4: the largest difference of the two accuracy drops, by metric and site",
    }.items():
        parser = figure(name, _of_runs, what, "runs/a runs/b")
        parser.add_argument("runs", nargs="+", help="folders of runs")
    what = "the share of each layer's neurons that is pruned, step by step"
    figure("pruned-by-layer", _of_run, what, "runs/demo").add_argument("run", help="folder of a run")


def _add_of_two_corpora(figure: Callable[..., argparse.ArgumentParser]) -> None:
    for name, what in {
        "score-map": "the score of every neuron, a row a layer",
        "head-map": "the score of every attention head",
        "importance-scatter": "importance on forget against importance on retain data",
        "metric-agreement": "the rank correlation of the scores by each metric",
        "rank-stability": "how much of the top by score stays the same, against the tokens collected (needs --folds)",
    }.items():
        parser = figure(name, _of_two_corpora, what, "code.safetensors prose.safetensors")
        parser.add_argument("forget", help="statistics of the forget corpus, a file of sp-lens collect")
        parser.add_argument("retain", help="statistics of the retain corpus")
        if name != "metric-agreement":
            parser.add_argument("--metric", default="abs", choices=("abs", "rms", "std", "freq"))
        if name != "head-map":
            parser.add_argument("--site", default="mlp", choices=("mlp", "attn"))


def _add_of_corpora(figure: Callable[..., argparse.ArgumentParser]) -> None:
    for name, what in {
        "density": "Figure 5: activation densities of many neurons, one panel a corpus",
        "neuron-density": "activation densities of one neuron, the corpora one over the other",
        "specialisation-by-layer": "the share of each layer's neurons that is for each corpus",
        "cross-importance": "what the neurons of one corpus hold of the importance on another",
    }.items():
        own = {"density": " --layer 2", "neuron-density": " --layer 2 --neuron 17"}.get(name, "")
        parser = figure(name, _of_corpora, what, f"prose.safetensors code.safetensors{own}")
        bins = " --bins, with the same --range" if own else ""
        parser.add_argument("stats", nargs="+", help=f"files of sp-lens collect{bins}; named after the files")
        if name != "specialisation-by-layer":
            parser.add_argument("--site", default="mlp" if not own else "attn", choices=("mlp", "attn"))
        if own:
            parser.add_argument("--layer", type=int, default=2, help="default: %(default)s")
        else:
            parser.add_argument("--metric", default="abs", choices=("abs", "rms", "std", "freq"))
        if name == "density":
            parser.add_argument("--neurons", type=int, nargs=2, default=(0, 99), metavar=("FIRST", "LAST"))
            parser.add_argument("--highlight", type=int, nargs="+", default=(), help="neurons that stand out")
        elif own:
            parser.add_argument("--neuron", type=int, required=True, help="index into the layer")


def _of_runs(arguments: argparse.Namespace) -> None:
    import sp_lens as sp

    runs = {str(folder): sp.PruneRun.load(folder) for folder in arguments.runs}
    # Selectivity groups runs by their settings, and has no use for the names of folders.
    _write(_function(arguments)(runs.values() if arguments.figure == "selectivity" else runs), arguments.out)


def _of_run(arguments: argparse.Namespace) -> None:
    import sp_lens as sp

    _write(sp.plots.pruned_by_layer(sp.PruneRun.load(arguments.run)), arguments.out)


def _of_two_corpora(arguments: argparse.Namespace) -> None:
    import sp_lens as sp

    sides = [sp.ActivationStats.load(file) for file in (arguments.forget, arguments.retain)]
    chosen = {key: value for key, value in vars(arguments).items() if key in ("metric", "site")}
    if arguments.figure == "score-map":
        figure = sp.plots.score_map(sp.score(*sides, metric=arguments.metric), site=arguments.site)
    elif arguments.figure == "head-map":  # Definition 3 before Definition 2, as in `prune`
        figure = sp.plots.head_map(sp.score(*(side.importance(arguments.metric).heads("mean") for side in sides)))
    elif arguments.figure == "rank-stability":
        figure = sp.plots.rank_stability(sp.rank_stability(*sides, **chosen))
    else:
        figure = _function(arguments)(*sides, **chosen)
    _write(figure, arguments.out)


def _of_corpora(arguments: argparse.Namespace) -> None:
    import sp_lens as sp

    stems = [Path(file).stem for file in arguments.stats]
    labels = stems if len(set(stems)) == len(stems) else arguments.stats
    stats = {label: sp.ActivationStats.load(file) for label, file in zip(labels, arguments.stats, strict=True)}
    chosen = {key: value for key, value in vars(arguments).items() if key in ("site", "layer", "neuron", "highlight")}
    if arguments.figure == "density":
        first, last = arguments.neurons
        figure = sp.plots.density(stats, neurons=range(first, last + 1), **chosen)
    elif arguments.figure == "neuron-density":
        figure = sp.plots.neuron_density(stats, **chosen)
    else:
        figure = _function(arguments)(sp.specialisation(stats, metric=arguments.metric), **chosen)
    _write(figure, arguments.out)


def _function(arguments: argparse.Namespace) -> Callable[..., Any]:
    import sp_lens as sp

    return getattr(sp.plots, arguments.figure.replace("-", "_"))


def _write(figure: Any, out: str) -> None:
    from sp_lens.plots._files import write_figure

    write_figure(figure, out)
    print(f"wrote {out}")
