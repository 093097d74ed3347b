"""Measure everything, print the table, and write it to benchmarks/README.md."""

import argparse
import os
import platform
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from multiprocessing import get_context
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
MEMORY_TOKENS = {"demo": (10_000, 1_000_000), "SmolLM2-135M": (10_000, 100_000)}

HEAD = f"""# What everything costs

Written by `make bench`. Each number is a ratio of medians of repeats that took turns in one process, or the seconds and
megabytes that it says, the latter in a process of its own. A batch is of {ROWS} x {ROW_TOKENS} tokens of code (the
bundled model reads rows of 256); the bare forward pass is that of transformers, as it loads the model, without a cache.
"""

WHY = """## Where a target does not hold

The authors' library makes one forward pass over the same tokens as well, and on a CPU with a model of this size the
pass is nearly all there is: three times as fast as `taker` would be faster than the bare pass without head. What is
saved is the unembedding and the copies. On the small bundled model, where these weigh more, the factor is larger.

A pass for the effect of a head starts from its block, so that over all heads half of the blocks are run, but always the
unembedding, a fifth of a pass of SmolLM2 (the tokens/s with and without head above), and the logits are judged, which
the bare pass does not do: 0.5 x 0.8 + 0.2 is 0.6 before anything is judged.

Measured by hand on 2026-11-30 (two cores, SmolLM2, batches as above), and not by this command:

- In one run, three repeats: `collect` took 3.05 s a batch with attention in one kernel (`fused_attention`), 3.30 s with
  attention taken apart, the bare pass 3.48 s with head and 2.80 s without. So it was 1.09 times the latter, and 1.18
  taken apart; against the pass with head 1.14, and 1.05 taken apart: that target held here without the kernel. Counting
  what is above 0 in one pass less came after that. Of the 2.9 s then, 0.13 s were reductions.
- Memory at 10,000 tokens was 171, 267, 287 and 344 MB in four processes, with the same tensors: glibc, which is let
  keep what is freed (`sp_lens.models.memory`), leaves more room between them or less. At 60,000 or 100,000 tokens it
  was the same to the byte, but in the first of them, beside other work, 205 MB.

On that day there was no GPU to measure on.
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
        if subject is None:
            continue
        with get_context("spawn").Pool(1) as fresh:  # a process in which nothing was freed that could be used again
            add(fresh.apply(memory, (made, MEMORY_TOKENS[subject.name])))
        for part in _measured(subject, arguments):
            add(part)
    if torch.cuda.is_available():
        add(passes(random_1b(batches=8), repeats=arguments.repeats, gpu=True))


def _measured(subject: Subject, arguments: argparse.Namespace) -> Iterator[list[Row]]:
    """What is measured of a model, part by part."""
    repeats = arguments.repeats
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
