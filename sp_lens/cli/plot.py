"""The command `sp-lens plot`, which draws figures of saved runs and statistics."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sp_lens.cli.arguments import add_command
from sp_lens.typing import METRICS, SITES

_OUT = "file for the figure: .html, or .png, .svg or .pdf, which need pip install 'sp_lens[export]' and a Chrome"


def add_plot(commands: Any) -> None:
    """Add the command `plot`, which has a command for each figure."""
    parser = commands.add_parser(
        "plot",
        help="a figure of saved runs or statistics",
        description="Draw a figure of saved runs or statistics.",
        epilog="example: sp-lens plot tradeoff runs/demo --out tradeoff.html",
    )
    figures = parser.add_subparsers(required=True, metavar="FIGURE")

    def add_figure(name: str, function: Any, description: str, arguments: str) -> argparse.ArgumentParser:
        example = f"sp-lens plot {name} {arguments} --out {name}.html"
        parser = add_command(figures, name, function, description, example)
        parser.add_argument("--out", required=True, help=_OUT)
        parser.set_defaults(figure=name)
        return parser

    _add_figures_of_runs(add_figure)
    _add_figures_of_two_corpora(add_figure)
    _add_figures_of_corpora(add_figure)


def _add_figures_of_runs(add_figure: Callable[..., argparse.ArgumentParser]) -> None:
    for name, description in {
        "tradeoff": "Figure 2: drop in accuracy on the forget corpus against the drop on the retain corpus",
        "perplexity": "Figure 3: perplexity on the forget corpus against perplexity on the retain corpus",
        "selectivity": "Figure 4: the largest difference between the two accuracy drops, by metric and site",
    }.items():
        parser = add_figure(name, _plot_runs, description, "runs/a runs/b")
        parser.add_argument("runs", nargs="+", help="folders of runs")
    description = "share of pruned neurons in each layer after each step"
    parser = add_figure("pruned-by-layer", _plot_run, description, "runs/demo")
    parser.add_argument("run", help="folder of a run")


def _add_figures_of_two_corpora(add_figure: Callable[..., argparse.ArgumentParser]) -> None:
    for name, description in {
        "score-map": "score of every neuron, one row per layer",
        "head-map": "score of every attention head",
        "importance-scatter": "importance on the forget corpus against importance on the retain corpus",
        "metric-agreement": "rank correlation between the scores of each pair of metrics",
        "rank-stability": "overlap of the top-scored neurons on few and on all tokens (needs collect --folds)",
    }.items():
        parser = add_figure(name, _plot_two_corpora, description, "code.safetensors prose.safetensors")
        parser.add_argument("forget", help="statistics of the forget corpus, a file written by sp-lens collect")
        parser.add_argument("retain", help="statistics of the retain corpus, a file written by sp-lens collect")
        if name != "metric-agreement":
            _add_metric(parser)
        if name != "head-map":
            _add_site(parser, default="mlp")


def _add_figures_of_corpora(add_figure: Callable[..., argparse.ArgumentParser]) -> None:
    for name, description in {
        "density": "Figure 5: activation densities of many neurons, one panel per corpus",
        "neuron-density": "activation densities of one neuron on several corpora",
        "specialisation-by-layer": "share of each layer's neurons that are specialised in each corpus",
        "cross-importance": "importance on every corpus of the neurons that are specialised in one corpus",
    }.items():
        options = {"density": " --layer 2", "neuron-density": " --layer 2 --neuron 17"}.get(name, "")
        parser = add_figure(name, _plot_corpora, description, f"prose.safetensors code.safetensors{options}")
        needs_histograms = name in ("density", "neuron-density")
        bins = ", with --bins and the same --range" if needs_histograms else ""
        parser.add_argument(
            "stats", nargs="+", help=f"files written by sp-lens collect{bins}; corpora are named after the files"
        )
        if name != "specialisation-by-layer":
            _add_site(parser, default="attn" if needs_histograms else "mlp")
        if needs_histograms:
            parser.add_argument(
                "--layer", type=int, default=2, help="index of the transformer block (default: %(default)s)"
            )
        else:
            _add_metric(parser)
        if name == "density":
            parser.add_argument(
                "--neurons",
                type=int,
                nargs=2,
                default=(0, 99),
                metavar=("FIRST", "LAST"),
                help="indices of the first and the last neuron (default: 0 99)",
            )
            parser.add_argument("--highlight", type=int, nargs="+", default=(), help="indices of neurons to highlight")
        elif name == "neuron-density":
            parser.add_argument("--neuron", type=int, required=True, help="index of the neuron in the layer")


def _add_metric(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--metric", default="abs", choices=METRICS, help="importance metric, Definition 1 (default: %(default)s)"
    )


def _add_site(parser: argparse.ArgumentParser, *, default: str) -> None:
    parser.add_argument("--site", default=default, choices=SITES, help="site of the neurons (default: %(default)s)")


def _plot_runs(arguments: argparse.Namespace) -> None:
    import sp_lens as sp

    runs = {str(folder): sp.PruneRun.load(folder) for folder in arguments.runs}
    # The selectivity figure groups runs by their settings instead of the names of their folders.
    draw = _plot_function(arguments)
    _write(draw(runs.values() if arguments.figure == "selectivity" else runs), arguments.out)


def _plot_run(arguments: argparse.Namespace) -> None:
    import sp_lens as sp

    _write(sp.plots.pruned_by_layer(sp.PruneRun.load(arguments.run)), arguments.out)


def _plot_two_corpora(arguments: argparse.Namespace) -> None:
    import sp_lens as sp

    stats = [sp.ActivationStats.load(file) for file in (arguments.forget, arguments.retain)]
    options = {key: value for key, value in vars(arguments).items() if key in ("metric", "site")}
    if arguments.figure == "score-map":
        figure = sp.plots.score_map(sp.score(*stats, metric=arguments.metric), site=arguments.site)
    elif arguments.figure == "head-map":  # importance by head first (Definition 3), then scores (Definition 2)
        importance = [result.importance(arguments.metric).heads("mean") for result in stats]
        figure = sp.plots.head_map(sp.score(*importance))
    elif arguments.figure == "rank-stability":
        figure = sp.plots.rank_stability(sp.rank_stability(*stats, **options))
    else:
        figure = _plot_function(arguments)(*stats, **options)
    _write(figure, arguments.out)


def _plot_corpora(arguments: argparse.Namespace) -> None:
    import sp_lens as sp

    stems = [Path(file).stem for file in arguments.stats]
    labels = stems if len(set(stems)) == len(stems) else arguments.stats
    stats = {label: sp.ActivationStats.load(file) for label, file in zip(labels, arguments.stats, strict=True)}
    options = {key: value for key, value in vars(arguments).items() if key in ("site", "layer", "neuron", "highlight")}
    if arguments.figure == "density":
        first, last = arguments.neurons
        figure = sp.plots.density(stats, neurons=range(first, last + 1), **options)
    elif arguments.figure == "neuron-density":
        figure = sp.plots.neuron_density(stats, **options)
    else:
        figure = _plot_function(arguments)(sp.specialisation(stats, metric=arguments.metric), **options)
    _write(figure, arguments.out)


def _plot_function(arguments: argparse.Namespace) -> Callable[..., Any]:
    import sp_lens as sp

    return getattr(sp.plots, arguments.figure.replace("-", "_"))


def _write(figure: Any, out: str) -> None:
    from sp_lens.plots._files import write_figure

    write_figure(figure, out)
    print(f"wrote {out}")
