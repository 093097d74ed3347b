"""`sp-lens`: a thin shell over the functions of the package."""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sp_lens.cli_plot import add_plot

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Exit code 0; 2 for bad input, with the reason on stderr; 130 after Ctrl-C."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(format="%(name)s: %(message)s")
    logging.getLogger("sp_lens").setLevel(logging.INFO)
    from sp_lens.errors import SpLensError

    _quieten()
    try:
        arguments.command(arguments)
    except SpLensError as error:
        print(f"sp-lens: error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except OSError as error:  # a folder that is not there, a file in the place of a folder, no permission, a full disk
        print(f"sp-lens: error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("sp-lens: interrupted; finished steps of a run are kept in its --out folder.", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def _demo(arguments: argparse.Namespace) -> None:
    from sp_lens.demo import demo

    print(demo(arguments.out))


def _collect(arguments: argparse.Namespace) -> None:
    import torch

    import sp_lens as sp

    model = _model(arguments)
    corpus = _corpus(arguments, model, arguments.corpus, arguments.split)
    edges: Any = None
    if arguments.bins and arguments.range:
        low, high = arguments.range
        edges = torch.linspace(low, high, arguments.bins + 1)
    elif arguments.bins:  # a first pass, to see what occurs
        first = sp.collect(model, corpus)
        edges = {site: first.edges(site, bins=arguments.bins) for site in ("mlp", "attn")}
    stats = sp.collect(model, corpus, edges=edges)
    stats.save(arguments.out)
    print(f"{stats} in {arguments.out}")


def _evaluate(arguments: argparse.Namespace) -> None:
    import sp_lens as sp

    model = _model(arguments)
    corpus = _corpus(arguments, model, arguments.corpus, arguments.split)
    if arguments.mask:
        with sp.ablate(model, sp.NeuronMask.load(arguments.mask)):
            result = sp.evaluate(model, corpus)
    else:
        result = sp.evaluate(model, corpus)
    if arguments.out:
        result.save(arguments.out)
    print(json.dumps(asdict(result), indent=2))


def _prune(arguments: argparse.Namespace) -> None:
    import sp_lens as sp

    model = _model(arguments)
    corpora = {
        key: _corpus(arguments, model, name, split)
        for key, name, split in (
            ("forget", arguments.forget, "collect"),
            ("retain", arguments.retain, "collect"),
            ("eval_forget", arguments.eval_forget or arguments.forget, "evaluate"),
            ("eval_retain", arguments.eval_retain or arguments.retain, "evaluate"),
        )
    }
    keys = ("site", "unit", "metric", "fraction", "steps", "seed", "min_retain_top1", "max_forget_top1", "out")
    protect = sp.collect(model, corpora["retain"]).sinks() if arguments.spare_sinks else None
    run = sp.prune(
        model,
        **corpora,
        protect=protect,
        recollect=not arguments.one_shot,
        **{key: vars(arguments)[key] for key in keys},
    )
    print(
        run.history[["step", "share", "forget_top1", "retain_top1", "forget_loss", "retain_loss"]].to_string(
            index=False
        )
    )
    print(f"selectivity {run.selectivity:.3f}; history.csv and mask.safetensors are in {arguments.out}")


def _export(arguments: argparse.Namespace) -> None:
    import sp_lens as sp

    model = _model(arguments)
    folder = sp.export(model, sp.NeuronMask.load(arguments.mask), arguments.out, overwrite=arguments.overwrite)
    print(f"saved to {folder}, loaded back and compared: AutoModelForCausalLM.from_pretrained({str(folder)!r})")


def _report(arguments: argparse.Namespace) -> None:
    import sp_lens as sp

    stats = {label: sp.ActivationStats.load(file) for label, file in arguments.stats}
    sp.report(sp.PruneRun.load(arguments.run), arguments.out, stats=stats)
    print(f"wrote {arguments.out}")


def _model(arguments: argparse.Namespace) -> Any:
    import torch

    import sp_lens as sp

    return sp.load_model(
        arguments.model,
        device=arguments.device,
        device_map=arguments.device_map,
        dtype=getattr(torch, arguments.dtype),
    )


def _corpus(arguments: argparse.Namespace, model: Any, name: str, split: Any) -> Any:
    """Text, or for a classifier images: "digits", "digits:3,8" (these classes), "digits:-3,-8" (all but these)."""
    import sp_lens as sp
    from sp_lens.tasks import reads_images

    if not reads_images(model):
        return sp.load_corpus(name, model, tokens=arguments.tokens, split=split, offline=arguments.offline)
    source, _, listed = name.partition(":")
    classes = [one.strip() for one in listed.split(",") if one.strip()]
    left_out = [one.removeprefix("-") for one in classes if one.startswith("-")]
    if left_out and len(left_out) < len(classes):
        raise sp.SpLensError(f"{name!r} has classes to take and classes to leave out: give the one or the other.")
    return sp.load_images(
        source,
        model,
        classes=classes if classes and not left_out else None,
        without=left_out or None,
        images=arguments.images,
        split=split,
    )


def _quieten() -> None:
    """Leave the terminal to our own bars and words."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sp-lens", description="Selective pruning of language models (arXiv 2403.01267)."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = _command(commands, "demo", _demo, "the main job on the bundled model, in two minutes", "sp-lens demo")
    demo.add_argument("--out", default="runs/demo", help="folder for the results (default: %(default)s)")

    collect = _command(
        commands, "collect", _collect, "statistics of every neuron over a corpus",
        "sp-lens collect --model demo --corpus code --offline --tokens 20000 --bins 100 --out code.safetensors",
    )  # fmt: skip
    _add_model_and_text(collect, "collect")
    collect.add_argument("--bins", type=_positive, help="collect histograms of this many bins too (for plot density)")
    collect.add_argument(
        "--range", type=float, nargs=2, metavar=("LOW", "HIGH"),
        help="range of the histograms, so that several corpora share their edges (default: what occurs)",
    )  # fmt: skip
    collect.add_argument("--out", required=True, help="file for the statistics (.safetensors)")

    evaluate = _command(
        commands, "evaluate", _evaluate, "accuracy and loss, with neurons ablated or not",
        "sp-lens evaluate --model demo --corpus code --offline --tokens 20000 --mask runs/demo/mask.safetensors",
    )  # fmt: skip
    _add_model_and_text(evaluate, "evaluate")
    evaluate.add_argument("--mask", help="ablate the neurons of this mask")
    evaluate.add_argument("--out", help="file for the numbers (.json)")

    _add_prune(commands)

    add_plot(commands, _command)

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
    _add_model(export)
    export.add_argument("--mask", required=True, help="the neurons to prune")
    export.add_argument("--out", required=True, help="folder to make")
    export.add_argument("--overwrite", action="store_true", help="replace a folder that is there")
    return parser


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number


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
    _add_model_and_text(prune)
    prune.add_argument("--forget", required=True, help="corpus to forget: a name or a file of text")
    prune.add_argument("--retain", required=True, help="corpus to keep")
    for side in ("forget", "retain"):
        prune.add_argument(f"--eval-{side}", help=f"held-out text of it (default: the other split of --{side})")
    prune.add_argument("--site", default="mlp", choices=("mlp", "attn", "both"))
    prune.add_argument("--unit", default="neuron", choices=("neuron", "head"))
    prune.add_argument("--metric", default="abs", choices=("abs", "rms", "std", "freq", "random"))
    prune.add_argument("--fraction", type=float, default=0.02, help="share pruned in a step (default: %(default)s)")
    prune.add_argument("--steps", type=int, default=50, help="default: %(default)s")
    prune.add_argument("--one-shot", action="store_true", help="collect once, not anew at each step")
    prune.add_argument("--spare-sinks", action="store_true", help="never prune the neurons of attention sinks")
    prune.add_argument("--seed", type=int, default=0, help="of the metric random")
    prune.add_argument("--min-retain-top1", type=float, help="stop when retain accuracy is below this")
    prune.add_argument("--max-forget-top1", type=float, help="stop when forget accuracy is at or below this")
    prune.add_argument("--out", required=True, help="folder of the run; the same command goes on after a kill")


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help='"demo", a Hugging Face name, a folder, or a GGUF file')
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: TransformerLens chooses)")
    parser.add_argument("--device-map", metavar="MAP", help="over several GPUs: auto, balanced or sequential")
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16", "float16", "float64"),
        help="of the weights (default: %(default)s)",
    )  # fmt: skip


def _add_model_and_text(parser: argparse.ArgumentParser, split: str | None = None) -> None:
    _add_model(parser)
    parser.add_argument("--tokens", type=int, default=100_000, help="of each corpus (default: %(default)s)")
    parser.add_argument(
        "--images", type=_positive, default=1000,
        help="of each corpus, where the model is a classifier of images; a corpus is then a set (digits, cifar10) or "
        "a folder of class folders, with classes to take (digits:3,8) or to leave out (digits:-3,-8) "
        "(default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--offline", action="store_true", help="read the text that is on this machine, not the Hub's")
    if split:
        parser.add_argument("--corpus", required=True, help="a name (code, prose, ...) or a file of text")
        parser.add_argument("--split", default=split, choices=("train", "collect", "evaluate"))


def _command(commands: Any, name: str, function: Any, what: str, example: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=what, description=f"{what[0].upper()}{what[1:]}.", epilog=f"example: {example}"
    )
    parser.set_defaults(command=function)
    return parser


if __name__ == "__main__":
    sys.exit(main())
