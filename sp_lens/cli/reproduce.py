"""`sp-lens reproduce`: the experiments of the paper, each by one command."""

import argparse
from collections.abc import Callable
from typing import Any

from sp_lens.cli.arguments import positive, quieten
from sp_lens.errors import SpLensError


def add_reproduce(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add `reproduce` to the commands; `command` makes one."""
    parser = command(
        commands, "reproduce", _reproduce, "a figure of the paper, its data and a comparison with the claim",
        "sp-lens reproduce figure-2 --model demo --offline",
    )  # fmt: skip
    parser.add_argument("name", nargs="?", help="figure-2, toxicity, ... (see --list), or all")
    parser.add_argument("--list", action="store_true", help="say which experiments there are, and do nothing")
    parser.add_argument(
        "--model", nargs="+", metavar="MODEL",
        help="names, folders or GGUF files (default: the paper's, or with --offline the bundled one)",
    )  # fmt: skip
    parser.add_argument(
        "--scale", default="small", choices=("smoke", "small", "paper"),
        help="does it run; minutes on a laptop; the released settings (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--tokens", type=positive, help="of each corpus, instead of the scale's")
    parser.add_argument("--steps", type=positive, help="of pruning, instead of the scale's")
    parser.add_argument(
        "--share", type=float, help="of the neurons that are gone after the last step, instead of the scale's"
    )
    parser.add_argument("--spare-sinks", action="store_true", help="never prune the neurons of attention sinks")
    parser.add_argument("--offline", action="store_true", help="read what this machine has, not what the Hub has")
    parser.add_argument("--out", default="runs/paper", help="folder of all results (default: %(default)s)")
    parser.add_argument(
        "--format", default="html", choices=("html", "png", "svg", "pdf"),
        help="of the figures; all but html need pip install 'sp_lens[export]' and a Chrome (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--page", help="write the page of all results in --out to this file too")


def _reproduce(arguments: argparse.Namespace) -> None:
    from sp_lens.experiments.registry import EXPERIMENTS

    if arguments.list:
        for experiment in EXPERIMENTS.values():
            print(f"{experiment.name:16} {experiment.title}")
        return
    from sp_lens.experiments.reproduce import reproduce
    from sp_lens.experiments.results_page import write_page

    if arguments.name is None and not arguments.page:
        raise SpLensError("say which experiment: sp-lens reproduce --list names them, all runs every one.")
    if arguments.name == "all" and arguments.model:
        raise SpLensError("with all, each experiment takes its own models: leave --model out, or name one experiment.")
    quieten()
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
