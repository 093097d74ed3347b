"""The command line `sp-lens`. Commands import the functions that they call when they run, so that --help is fast."""

import argparse
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from sp_lens.cli.arguments import (
    add_command,
    add_estimate,
    add_model,
    add_model_and_data,
    load_corpus,
    load_model,
    only_estimate,
    positive,
    prepare_process,
)
from sp_lens.cli.plot import add_plot
from sp_lens.cli.prune import add_prune
from sp_lens.cli.reproduce import add_reproduce
from sp_lens.errors import SpLensError

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Command line without the name of the program; by default that of this process.

    Returns:
        Exit code: 0 for success, 2 for invalid input, with the reason on stderr, and 130 after Ctrl-C.
    """
    arguments = parser().parse_args(argv)
    logging.basicConfig(format="%(name)s: %(message)s")
    logging.getLogger("sp_lens").setLevel(logging.INFO)
    try:
        with _process_group(arguments):
            arguments.command(arguments)
    except (SpLensError, OSError) as error:  # OSError: a missing folder, a missing permission, a full disk
        print(f"sp-lens: error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt as interrupt:
        reason = str(interrupt) or "Interrupted. The finished steps of a run are kept in its --out folder."
        print(f"sp-lens: {reason}", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line, with all commands."""
    parser = argparse.ArgumentParser(
        prog="sp-lens", description="Selective pruning of language models and image classifiers (arXiv 2403.01267)."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_collect(commands)
    _add_evaluate(commands)
    add_prune(commands)
    add_plot(commands)
    add_reproduce(commands)
    _add_report(commands)
    _add_export(commands)
    return parser


@contextmanager
def _process_group(arguments: argparse.Namespace) -> Iterator[None]:
    """Context manager that joins the process group of a launcher. Only the main process then logs messages.

    Does not import torch if there is a single process, because `reproduce --list` does not need torch.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield
        return
    from sp_lens import distributed

    with distributed.joined():
        if not arguments.distributed:
            distributed.require_one(arguments.prog)
        if not distributed.is_main():
            logging.getLogger("sp_lens").setLevel(logging.ERROR)
        yield


def _add_demo(commands: Any) -> None:
    parser = add_command(
        commands, "demo", _demo, "selective pruning of the bundled model, in two minutes", "sp-lens demo"
    )
    parser.add_argument("--out", default="runs/demo", help="folder for the results (default: %(default)s)")


def _demo(arguments: argparse.Namespace) -> None:
    from sp_lens.experiments.demo import demo

    prepare_process()
    print(demo(arguments.out))


def _add_collect(commands: Any) -> None:
    parser = add_command(
        commands,
        "collect",
        _collect,
        "activation statistics of every neuron over a corpus",
        "sp-lens collect --model demo --corpus code --offline --tokens 20000 --bins 100 --out code.safetensors",
        distributed=True,
    )
    add_model_and_data(parser, "collect")
    parser.add_argument(
        "--bins", type=positive, help="number of bins of a histogram of each neuron, for density plots (default: none)"
    )
    parser.add_argument(
        "--range",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="range of the histograms; use the same range to compare corpora (default: the range of the activations)",
    )
    parser.add_argument(
        "--folds",
        type=positive,
        help="number of folds of documents whose statistics are also kept, such as 20, for confidence intervals",
    )
    parser.add_argument(
        "--fold-documents",
        type=positive,
        help="number of documents in a fold, instead of --folds, to compare corpora of different sizes",
    )
    add_estimate(parser)
    parser.add_argument("--out", required=True, help="file for the statistics (.safetensors)")


def _collect(arguments: argparse.Namespace) -> None:
    import torch

    import sp_lens as sp
    from sp_lens import distributed
    from sp_lens.pruning.cost import estimate_passes

    model = load_model(arguments)
    corpus = load_corpus(arguments, model, arguments.corpus, arguments.split)
    passes = Counter(corpus=2 if arguments.bins and not arguments.range else 1)
    if only_estimate(arguments, estimate_passes(model, {"corpus": corpus}, passes)):
        return
    edges: Any = None
    if arguments.bins and arguments.range:
        low, high = arguments.range
        edges = torch.linspace(low, high, arguments.bins + 1)
    elif arguments.bins:  # a first pass finds the range of the activations
        ranges = sp.collect(model, corpus)
        edges = {site: ranges.edges(site, bins=arguments.bins) for site in ("mlp", "attn")}
    stats = sp.collect(model, corpus, edges=edges, folds=arguments.folds, fold_documents=arguments.fold_documents)
    if not distributed.is_main():
        return
    stats.save(arguments.out)
    print(f"{stats} in {arguments.out}")


def _add_evaluate(commands: Any) -> None:
    parser = add_command(
        commands,
        "evaluate",
        _evaluate,
        "accuracy and loss of a model on a corpus, optionally with ablated neurons",
        "sp-lens evaluate --model demo --corpus code --offline --tokens 20000 --mask runs/demo/mask.safetensors",
        distributed=True,
    )
    add_model_and_data(parser, "evaluate")
    parser.add_argument("--mask", help="file of a mask whose neurons are ablated (.safetensors)")
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="seed of the choice of masked tokens, for masked language models (default: %(default)s)",
    )
    parser.add_argument("--out", help="file for the results (.json)")


def _evaluate(arguments: argparse.Namespace) -> None:
    import sp_lens as sp
    from sp_lens import distributed

    model = load_model(arguments)
    corpus = load_corpus(arguments, model, arguments.corpus, arguments.split)
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


def _add_report(commands: Any) -> None:
    parser = add_command(
        commands,
        "report",
        _report,
        "a report on a run as an HTML page, with a summary, figures, and the pruned neurons",
        "sp-lens report runs/demo --out report.html --stats code=code.safetensors prose=prose.safetensors",
    )
    parser.add_argument("run", help="folder of a run")
    parser.add_argument("--out", required=True, help="file for the page (.html)")
    parser.add_argument(
        "--stats",
        type=_label_and_file,
        nargs="+",
        default=[],
        metavar="LABEL=FILE",
        help="statistics of corpora, files written by sp-lens collect; they add results about single neurons and, if "
        "they were collected with --bins and the same --range, activation densities",
    )
    parser.add_argument(
        "--neuron-pages",
        type=int,
        default=6,
        metavar="NUMBER",
        help="number of neurons whose results are shown one by one (default: %(default)s)",
    )


def _report(arguments: argparse.Namespace) -> None:
    import sp_lens as sp

    stats = {label: sp.ActivationStats.load(file) for label, file in arguments.stats}
    sp.report(sp.PruneRun.load(arguments.run), arguments.out, stats=stats, neuron_pages=arguments.neuron_pages)
    print(f"wrote {arguments.out}")


def _label_and_file(text: str) -> tuple[str, str]:
    label, equals, file = text.partition("=")
    if not (label and equals and file):
        raise argparse.ArgumentTypeError(f"{text!r} does not have the form LABEL=FILE")
    return label, file


def _add_export(commands: Any) -> None:
    parser = add_command(
        commands,
        "export",
        _export,
        "a pruned model as a Hugging Face folder",
        "sp-lens export --model demo --mask runs/demo/mask.safetensors --out pruned/",
    )
    add_model(parser)
    parser.add_argument("--mask", required=True, help="file of the mask with the neurons to prune (.safetensors)")
    parser.add_argument("--out", required=True, help="folder for the model")
    parser.add_argument(
        "--compact",
        action="store_true",
        help="remove pruned MLP neurons where possible, instead of setting their weights to zero; all layers keep the "
        "same width",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the folder if it exists")


def _export(arguments: argparse.Namespace) -> None:
    import sp_lens as sp

    model = load_model(arguments)
    mask = sp.NeuronMask.load(arguments.mask)
    folder = sp.export(model, mask, arguments.out, compact=arguments.compact, overwrite=arguments.overwrite)
    architecture = type(getattr(model, "original_model", model)).__name__
    print(
        f"Saved to {folder}, loaded again and compared with the ablated model. Load it with "
        f"transformers.{architecture}.from_pretrained({str(folder)!r})."
    )


if __name__ == "__main__":
    sys.exit(main())
