"""The command `sp-lens reproduce`, which runs the experiments of the paper."""

import argparse
from typing import Any

from sp_lens.cli.arguments import add_command, positive, prepare_process
from sp_lens.errors import SpLensError


def add_reproduce(commands: Any) -> None:
    """Add the command `reproduce` to the commands."""
    parser = add_command(
        commands,
        "reproduce",
        _reproduce,
        "an experiment of the paper: its runs, figures and data, and a comparison with the claims",
        "sp-lens reproduce figure-2 --model demo --offline",
    )
    parser.add_argument("name", nargs="?", help="name of an experiment (see --list), or all")
    parser.add_argument("--list", action="store_true", help="list the experiments and exit")
    parser.add_argument(
        "--model",
        nargs="+",
        metavar="MODEL",
        help="names, folders or GGUF files of models (default: those of the paper, or a bundled one with --offline)",
    )
    parser.add_argument(
        "--scale",
        default="small",
        choices=("smoke", "small", "paper"),
        help="size of the experiment: smoke is a quick check that it runs, small takes minutes on a laptop, and paper "
        "uses the released settings (default: %(default)s)",
    )
    parser.add_argument("--tokens", type=positive, help="number of tokens of each corpus (default: set by --scale)")
    parser.add_argument("--steps", type=positive, help="number of pruning steps (default: set by --scale)")
    parser.add_argument(
        "--share", type=float, help="share of all neurons that are pruned after the last step (default: set by --scale)"
    )
    parser.add_argument("--spare-sinks", action="store_true", help="never prune the neurons of attention sinks")
    parser.add_argument(
        "--offline", action="store_true", help="read text or images of this machine instead of the Hugging Face Hub"
    )
    parser.add_argument("--out", default="runs/paper", help="folder for all results (default: %(default)s)")
    parser.add_argument(
        "--format",
        default="html",
        choices=("html", "png", "svg", "pdf"),
        help="file format of the figures; png, svg and pdf need pip install 'sp_lens[export]' and a Chrome "
        "(default: %(default)s)",
    )
    parser.add_argument("--page", help="file for a copy of the page with all results in --out")


def _reproduce(arguments: argparse.Namespace) -> None:
    from sp_lens.experiments.registry import EXPERIMENTS

    if arguments.list:
        for experiment in EXPERIMENTS.values():
            print(f"{experiment.name:16} {experiment.title}")
        return
    from sp_lens.experiments.reproduce import reproduce
    from sp_lens.experiments.results_page import write_page

    if arguments.name is None and not arguments.page:
        raise SpLensError("no experiment is given: name one of those that sp-lens reproduce --list shows, or all.")
    if arguments.name == "all" and arguments.model:
        raise SpLensError("--model cannot be combined with all, which uses the models of each experiment.")
    prepare_process()
    names = list(EXPERIMENTS) if arguments.name == "all" else [arguments.name] if arguments.name else []
    for name in names:
        results = reproduce(
            name,
            arguments.model,
            scale=arguments.scale,
            tokens=arguments.tokens,
            steps=arguments.steps,
            share=arguments.share,
            spare_sinks=arguments.spare_sinks,
            offline=arguments.offline,
            out=arguments.out,
            image_format=arguments.format,
        )
        for result in results:
            print(f"{name}, {result.model}: {result.seconds:.0f} s")
            for finding in result.findings:
                verdict = {True: "holds", False: "fails", None: "open "}[finding.holds]
                print(f"  {verdict}  {finding.claim}: {finding.measured}")
    if arguments.page:
        write_page(arguments.out, arguments.page)
    print(f"all results: {arguments.page or arguments.out + '/reproduction.md'}")
