"""`sp-lens`: a thin shell over the functions of the package, which a command imports when it runs."""

import argparse
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sp_lens.cli.arguments import add_model, add_model_and_data, corpus_of, model_of, positive, quieten
from sp_lens.cli.plot import add_plot
from sp_lens.cli.reproduce import add_reproduce
from sp_lens.errors import SpLensError

if TYPE_CHECKING:
    import sp_lens as sp

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Exit code 0; 2 for bad input, with the reason on stderr; 130 after Ctrl-C."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(format="%(name)s: %(message)s")
    logging.getLogger("sp_lens").setLevel(logging.INFO)
    try:
        with _processes(arguments.command):
            arguments.command(arguments)
    except SpLensError as error:
        print(f"sp-lens: error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except OSError as error:  # a folder that is not there, a file in the place of a folder, no permission, a full disk
        print(f"sp-lens: error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt as stop:
        told = str(stop) or "finished steps of a run are kept in its --out folder"
        print(f"sp-lens: interrupted; {told}.", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


@contextmanager
def _processes(command: Any) -> Iterator[None]:
    """With the other processes that a launcher started, of which one alone speaks; alone where it started none."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield  # without torch, which `reproduce --list` does not need
        return
    from sp_lens import distributed

    with distributed.joined():
        if command not in (_collect, _evaluate, _prune):
            distributed.require_one("this command")
        if not distributed.is_main():
            logging.getLogger("sp_lens").setLevel(logging.ERROR)
        yield


def _demo(arguments: argparse.Namespace) -> None:
    from sp_lens.experiments.demo import demo

    quieten()
    print(demo(arguments.out))


def _collect(arguments: argparse.Namespace) -> None:
    import torch

    import sp_lens as sp
    from sp_lens import distributed
    from sp_lens.pruning.cost import estimate_passes

    model = model_of(arguments)
    corpus = corpus_of(arguments, model, arguments.corpus, arguments.split)
    passes = Counter(corpus=2 if arguments.bins and not arguments.range else 1)
    if _estimated(arguments, estimate_passes(model, {"corpus": corpus}, passes)):
        return
    edges: Any = None
    if arguments.bins and arguments.range:
        low, high = arguments.range
        edges = torch.linspace(low, high, arguments.bins + 1)
    elif arguments.bins:  # a first pass, to see what occurs
        first = sp.collect(model, corpus)
        edges = {site: first.edges(site, bins=arguments.bins) for site in ("mlp", "attn")}
    stats = sp.collect(model, corpus, edges=edges, folds=arguments.folds)
    if not distributed.is_main():
        return
    stats.save(arguments.out)
    print(f"{stats} in {arguments.out}")


def _evaluate(arguments: argparse.Namespace) -> None:
    import sp_lens as sp
    from sp_lens import distributed

    model = model_of(arguments)
    corpus = corpus_of(arguments, model, arguments.corpus, arguments.split)
    if arguments.mask:
        with sp.ablate(model, sp.NeuronMask.load(arguments.mask)):
            result = sp.evaluate(model, corpus, seed=arguments.seed)
    else:
        result = sp.evaluate(model, corpus, seed=arguments.seed)
    if not distributed.is_main():
        return
    if arguments.out:
        result.save(arguments.out)
    print(json.dumps(asdict(result), indent=2))


def _prune(arguments: argparse.Namespace) -> None:
    import sp_lens as sp
    from sp_lens import distributed

    model = model_of(arguments)
    corpora = {
        key: corpus_of(arguments, model, name, split)
        for key, name, split in (
            ("forget", arguments.forget, "collect"),
            ("retain", arguments.retain, "collect"),
            ("eval_forget", arguments.eval_forget or arguments.forget, "evaluate"),
            ("eval_retain", arguments.eval_retain or arguments.retain, "evaluate"),
        )
    }
    read = {"metric": arguments.metric, "steps": arguments.steps, "recollect": not arguments.one_shot}
    if _estimated(arguments, sp.estimate_cost(model, **corpora, **read)):
        return
    keys = ("site", "unit", "fraction", "seed", "min_retain_top1", "max_forget_top1", "out")
    protect = sp.collect(model, corpora["retain"]).sinks() if arguments.spare_sinks else None
    run = sp.prune(
        model,
        **corpora,
        **read,
        protect=protect,
        **{key: vars(arguments)[key] for key in keys},
    )
    if not distributed.is_main():
        return
    print(
        run.history[["step", "share", "forget_top1", "retain_top1", "forget_loss", "retain_loss"]].to_string(
            index=False
        )
    )
    print(f"selectivity {run.selectivity:.3f}; history.csv and mask.safetensors are in {arguments.out}")


def _estimated(arguments: argparse.Namespace, what: "sp.CostEstimate") -> bool:
    """Say what the command will take; whether that was all that was asked for."""
    from sp_lens import distributed

    if arguments.estimate and distributed.is_main():
        print(what)
    elif not arguments.estimate:
        logging.getLogger("sp_lens").info("%s", what)
    return arguments.estimate


def _export(arguments: argparse.Namespace) -> None:
    import sp_lens as sp

    model = model_of(arguments)
    options = {"compact": arguments.compact, "overwrite": arguments.overwrite}
    folder = sp.export(model, sp.NeuronMask.load(arguments.mask), arguments.out, **options)
    kind = type(getattr(model, "original_model", model)).__name__
    print(f"saved to {folder}, loaded back and compared: transformers.{kind}.from_pretrained({str(folder)!r})")


def _report(arguments: argparse.Namespace) -> None:
    import sp_lens as sp

    stats = {label: sp.ActivationStats.load(file) for label, file in arguments.stats}
    sp.report(sp.PruneRun.load(arguments.run), arguments.out, stats=stats)
    print(f"wrote {arguments.out}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sp-lens", description="Selective pruning of language models and image classifiers (arXiv 2403.01267)."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = _command(commands, "demo", _demo, "the main job on the bundled model, in two minutes", "sp-lens demo")
    demo.add_argument("--out", default="runs/demo", help="folder for the results (default: %(default)s)")

    collect = _command(
        commands, "collect", _collect, "statistics of every neuron over a corpus",
        "sp-lens collect --model demo --corpus code --offline --tokens 20000 --bins 100 --out code.safetensors",
    )  # fmt: skip
    add_model_and_data(collect, "collect")
    collect.add_argument("--bins", type=positive, help="collect histograms of this many bins too (for plot density)")
    collect.add_argument(
        "--range", type=float, nargs=2, metavar=("LOW", "HIGH"),
        help="range of the histograms, so that several corpora share their edges (default: what occurs)",
    )  # fmt: skip
    collect.add_argument(
        "--folds",
        type=positive,
        help="keep the statistics of so many folds of documents too, such as 20: for intervals",
    )
    _add_estimate(collect)
    collect.add_argument("--out", required=True, help="file for the statistics (.safetensors)")

    evaluate = _command(
        commands, "evaluate", _evaluate, "accuracy and loss, with neurons ablated or not",
        "sp-lens evaluate --model demo --corpus code --offline --tokens 20000 --mask runs/demo/mask.safetensors",
    )  # fmt: skip
    add_model_and_data(evaluate, "evaluate")
    evaluate.add_argument("--mask", help="ablate the neurons of this mask")
    evaluate.add_argument("--seed", type=int, default=0, help="of the tokens that a masked model is asked for")
    evaluate.add_argument("--out", help="file for the numbers (.json)")

    _add_prune(commands)

    add_plot(commands, _command)
    add_reproduce(commands, _command)

    report = _command(
        commands, "report", _report, "a run as one page to read: summary, figures, the neurons that went",
        "sp-lens report runs/demo --out report.html --stats code=code.safetensors prose=prose.safetensors",
    )  # fmt: skip
    report.add_argument("run", help="folder of a run")
    report.add_argument("--out", required=True, help="file for the page (.html)")
    report.add_argument(
        "--stats", type=_labelled, nargs="+", default=[], metavar="LABEL=FILE",
        help="statistics of corpora, files of sp-lens collect: adds cards of neurons and, with --bins and the same "
        "--range, densities",
    )  # fmt: skip

    export = _command(
        commands, "export", _export, "a pruned model as a Hugging Face folder",
        "sp-lens export --model demo --mask runs/demo/mask.safetensors --out pruned/",
    )  # fmt: skip
    add_model(export)
    export.add_argument("--mask", required=True, help="the neurons to prune")
    export.add_argument("--out", required=True, help="folder to make")
    export.add_argument("--compact", action="store_true", help="leave neurons out, in layers of one width")
    export.add_argument("--overwrite", action="store_true", help="replace a folder that is there")
    return parser


def _labelled(text: str) -> tuple[str, str]:
    label, equals, file = text.partition("=")
    if not (label and equals and file):
        raise argparse.ArgumentTypeError(f"{text!r} is not LABEL=FILE")
    return label, file


def _add_prune(commands: Any) -> None:
    prune = _command(
        commands, "prune", _prune, "Algorithm 1: prune step by step what matters for one corpus and not for another",
        "sp-lens prune --model demo --forget code --retain prose --offline --tokens 20000 "
        "--fraction 0.05 --steps 8 --out runs/code",
    )  # fmt: skip
    add_model_and_data(prune)
    prune.add_argument(
        "--forget", required=True, help="corpus to forget: a name or a file of text, or images (see --images)"
    )
    prune.add_argument("--retain", required=True, help="corpus to keep")
    for side in ("forget", "retain"):
        prune.add_argument(f"--eval-{side}", help=f"held-out data of it (default: the other split of --{side})")
    prune.add_argument("--site", default="mlp", choices=("mlp", "attn", "both"))
    prune.add_argument("--unit", default="neuron", choices=("neuron", "head"))
    prune.add_argument("--metric", default="abs", choices=("abs", "rms", "std", "freq", "random"))
    prune.add_argument("--fraction", type=float, default=0.02, help="share pruned in a step (default: %(default)s)")
    prune.add_argument("--steps", type=int, default=50, help="default: %(default)s")
    prune.add_argument("--one-shot", action="store_true", help="collect once, not anew at each step")
    prune.add_argument("--spare-sinks", action="store_true", help="never prune the neurons of attention sinks")
    prune.add_argument(
        "--seed", type=int, default=0, help="of the metric random, and of the tokens that a masked model is asked for"
    )
    prune.add_argument("--min-retain-top1", type=float, help="stop when retain accuracy is below this")
    prune.add_argument("--max-forget-top1", type=float, help="stop when forget accuracy is at or below this")
    _add_estimate(prune)
    prune.add_argument("--out", required=True, help="folder of the run; the same command goes on after a kill")


def _add_estimate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--estimate", action="store_true", help="say how long it will take and how much memory; stop")


def _command(commands: Any, name: str, function: Any, what: str, example: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=what, description=f"{what[0].upper()}{what[1:]}.", epilog=f"example: {example}"
    )
    parser.set_defaults(command=function)
    return parser


if __name__ == "__main__":
    sys.exit(main())
