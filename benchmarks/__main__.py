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
    return "\n\n".join([HEAD.strip(), machine, "\n".join(lines), "\n".join(notes)]) + "\n"


if __name__ == "__main__":
    main()
