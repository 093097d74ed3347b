"""Measure everything, print the table, and write it to benchmarks/README.md."""

import argparse
import os
import platform
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.memory import memory
from benchmarks.passes import against_peer, passes
from benchmarks.starting import starting
from benchmarks.steps import effects, steps
from benchmarks.subjects import ROW_TOKENS, ROWS, Subject, bundled, random_1b, smollm
from benchmarks.timing import Row

README = Path(__file__).with_name("README.md")
PACKAGES = ("sp_lens", "torch", "transformers", "transformer-lens")
MEMORY_TOKENS = {"demo": (10_000, 1_000_000), "SmolLM2-135M": (4_000, 40_000)}

HEAD = f"""# What everything costs

Written by `make bench`. Each number is a ratio of medians of repeats that took turns in one process, or the seconds and
megabytes that it says. A batch is of {ROWS} x {ROW_TOKENS} tokens of code (the bundled model reads rows of 256); the
bare forward pass is that of transformers, as it loads the model, without a cache.
"""

WHY = """## Where a target does not hold

Held against transformers, everything pays for TransformerLens too: it takes attention apart for its hooks, so that its
own pass, with hooks that do nothing, takes longer than the bare one. The rows "of the same pass, hooks that do nothing"
and "of TransformerLens' own passes" are without that. A profile of a batch of SmolLM2 (torch.profiler, two cores): of
3.7 s, matrix products take 2.9, TransformerLens' softmax, scaling and norms 0.4 more than transformers', and the
reductions 0.2, each of them a pass over activations that no longer are in the cache.

On a CPU the pass is nearly all there is, and the authors' library makes one as well, so nobody can be three times as
fast there on a model of this size; what is saved is the unembedding and the copies. On the small bundled model, where
hooks weigh more than products, the factor is larger.

There was no GPU to measure on.
"""


def main() -> None:
    """`python -m benchmarks`."""
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="of which the median is taken (default: %(default)s)")
    parser.add_argument("--taker", metavar="PYTHON", help="of the environment in which taker 1.2.3 is installed")
    parser.add_argument("--out", type=Path, default=README, help="the table (default: %(default)s)")
    arguments = parser.parse_args()
    rows: list[Row] = []

    def add(new: list[Row]) -> None:
        new = [replace(row, target=None) if row.model == "demo" else row for row in new]  # targets are SmolLM2's
        for row in new:
            print(f"{row.holds or '-':8} {row.measured:8.3f}  {row.model}: {row.what} / {row.against}", flush=True)
        rows.extend(new)
        arguments.out.write_text(_page(rows))

    add(starting(repeats=arguments.repeats))
    for made in (bundled, smollm):
        subject = made(batches=4)
        for part in _measured(subject, arguments) if subject else ():
            add(part)
    if torch.cuda.is_available():
        add(passes(random_1b(batches=8), repeats=arguments.repeats, gpu=True))


def _measured(subject: Subject, arguments: argparse.Namespace) -> Iterator[list[Row]]:
    """What is measured of a model, part by part; memory first, while none is held back from earlier parts."""
    repeats = arguments.repeats
    yield memory(subject, tokens=MEMORY_TOKENS[subject.name])
    half = replace(subject, batches=subject.batches[: len(subject.batches) // 2])
    rows = passes(half, repeats=repeats)
    yield rows
    if arguments.taker:
        yield against_peer(half, rows[0].measured, python=arguments.taker)
    yield steps(subject, repeats=repeats)
    yield effects(subject, repeats=max(1, repeats // 2))


def _page(rows: list[Row]) -> str:
    """The table, and on what it was measured."""
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    machine = (
        f"{date.today()}: {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"{accelerator}; Python {platform.python_version()}, {versions}."
    )
    lines = ["| model | what | against | measured | target | holds |", "|---|---|---|---|---|---|"]
    for row in rows:
        target = f"{row.target.side} {row.target.number:g}" if row.target else ""
        lines.append(f"| {row.model} | {row.what} | {row.against} | {row.measured:.3g} | {target} | {row.holds} |")
    notes = [f"- {row.model}, {row.what}: {row.note}" for row in rows if row.note]
    return "\n\n".join([HEAD.strip(), machine, "\n".join(lines), "\n".join(notes), WHY])


if __name__ == "__main__":
    main()
