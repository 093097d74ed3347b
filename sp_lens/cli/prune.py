"""The command `sp-lens prune`, which runs Algorithm 1."""

import argparse
from typing import Any

from sp_lens.cli.arguments import (
    add_command,
    add_estimate,
    add_model_and_data,
    load_corpus,
    load_model,
    only_estimate,
)
from sp_lens.typing import SCORE_METRICS, UNITS


def add_prune(commands: Any) -> None:
    """Add the command `prune` to the commands."""
    parser = add_command(
        commands,
        "prune",
        _prune,
        "Algorithm 1: prune the neurons that are most important for one corpus relative to another, step by step",
        "sp-lens prune --model demo --forget code --retain prose --offline --tokens 20000 "
        "--fraction 0.05 --steps 8 --out runs/code",
        distributed=True,
    )
    add_model_and_data(parser)
    parser.add_argument(
        "--forget",
        required=True,
        help="corpus to forget: the name of a text corpus, a text file, or an image dataset (see --images)",
    )
    parser.add_argument("--retain", required=True, help="corpus to retain")
    for side in ("forget", "retain"):
        parser.add_argument(
            f"--eval-{side}", help=f"corpus to evaluate on, of which the evaluate split is read (default: --{side})"
        )
    parser.add_argument(
        "--site", default="mlp", choices=("mlp", "attn", "both"), help="site of the neurons (default: %(default)s)"
    )
    parser.add_argument(
        "--unit",
        default="neuron",
        choices=UNITS,
        help="whether to prune single neurons or whole attention heads (default: %(default)s)",
    )
    parser.add_argument(
        "--metric",
        default="abs",
        choices=SCORE_METRICS,
        help="importance metric (Definition 1), or random as a control (default: %(default)s)",
    )
    parser.add_argument(
        "--fraction", type=float, default=0.02, help="share of all neurons to prune per step (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=50, help="number of pruning steps (default: %(default)s)")
    parser.add_argument(
        "--one-shot", action="store_true", help="collect statistics once instead of again before each step"
    )
    parser.add_argument("--spare-sinks", action="store_true", help="never prune the neurons of attention sinks")
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="seed of the random metric and of the choice of masked tokens (default: %(default)s)",
    )
    parser.add_argument(
        "--min-retain-top1", type=float, help="stop when top-1 accuracy on the retain corpus is below this value"
    )
    parser.add_argument(
        "--max-forget-top1", type=float, help="stop when top-1 accuracy on the forget corpus is at most this value"
    )
    add_estimate(parser)
    parser.add_argument(
        "--out", required=True, help="folder of the run; the same command resumes a run that was interrupted"
    )


def _prune(arguments: argparse.Namespace) -> None:
    import sp_lens as sp
    from sp_lens import distributed

    model = load_model(arguments)
    corpora = {
        "forget": load_corpus(arguments, model, arguments.forget, "collect"),
        "retain": load_corpus(arguments, model, arguments.retain, "collect"),
        "eval_forget": load_corpus(arguments, model, arguments.eval_forget or arguments.forget, "evaluate"),
        "eval_retain": load_corpus(arguments, model, arguments.eval_retain or arguments.retain, "evaluate"),
    }
    schedule = {"metric": arguments.metric, "steps": arguments.steps, "recollect": not arguments.one_shot}
    if only_estimate(arguments, sp.estimate_cost(model, **corpora, **schedule)):
        return
    keys = ("site", "unit", "fraction", "seed", "min_retain_top1", "max_forget_top1", "out")
    options = {key: vars(arguments)[key] for key in keys}
    protect = sp.collect(model, corpora["retain"]).sinks() if arguments.spare_sinks else None
    run = sp.prune(model, **corpora, **schedule, protect=protect, **options)
    if not distributed.is_main():
        return
    columns = ["step", "share", "forget_top1", "retain_top1", "forget_loss", "retain_loss"]
    print(run.history[columns].to_string(index=False))
    print(f"selectivity {run.selectivity:.3f}; history.csv and mask.safetensors are in {arguments.out}")
