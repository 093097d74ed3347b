"""The memory that collecting takes beside the model, by the number of tokens."""

from collections.abc import Callable
from pathlib import Path

import torch

import sp_lens as sp
from benchmarks.subjects import Subject
from benchmarks.timing import Row, Target

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@torch.no_grad()
def memory(made: Callable[..., Subject], tokens: tuple[int, ...]) -> list[Row]:
    """MB above what is there before, at the peak; of a CPU on Linux, or of a GPU."""
    if not torch.cuda.is_available() and not RESET.exists():
        return []
    subject = made(batches=1)
    rows: list[Row] = []
    subject.model(subject.batches[0][:1])  # weights are read from disk when they are first used
    before = _now()
    for count in tokens:
        repeats = -(-count // subject.batch_tokens)
        _start()
        sp.collect(
            subject.model,
            (subject.batches[0] for _ in range(repeats)),
            batch_tokens=subject.batch_tokens,
            progress=False,
        )
        taken = (_peak() - before) / 1e6
        rows.append(
            Row(subject.name, f"collect, peak memory, {count:,} tokens", "MB above the model", taken,
                Target("at most", 300), f"batches of {subject.batch_tokens} tokens")
        )  # fmt: skip
    rows.append(
        Row(subject.name, f"collect, peak memory, {tokens[-1]:,} tokens", f"that at {tokens[0]:,} tokens",
            rows[-1].measured / rows[0].measured, Target("at most", 1.1))
    )  # fmt: skip
    return rows


def _now() -> int:
    """What is used now, in bytes."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else _status("VmRSS")


def _start() -> None:
    """From here on the peak is counted."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        RESET.write_text("5")


def _peak() -> int:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _status("VmHWM")


def _status(key: str) -> int:
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
    return 1024 * int(line.split()[1])
