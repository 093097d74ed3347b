"""Measure the memory that `collect` uses in addition to the model, for several numbers of tokens."""

from collections.abc import Callable
from pathlib import Path

import torch

import sp_lens as sp
from benchmarks.subjects import Subject
from benchmarks.timing import Row, Target

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@torch.no_grad()
def memory(load_subject: Callable[..., Subject], token_counts: tuple[int, ...]) -> list[Row]:
    """Measure the peak memory above that of the loaded model in MB, on a GPU or on a CPU under Linux."""
    if not torch.cuda.is_available() and not RESET.exists():
        return []
    subject = load_subject(batches=1)
    rows: list[Row] = []
    subject.model(subject.batches[0][:1])  # weights are read from disk on first use
    before = _current()
    for count in token_counts:
        repeats = -(-count // subject.batch_tokens)
        _reset_peak()
        sp.collect(
            subject.model,
            (subject.batches[0] for _ in range(repeats)),
            batch_tokens=subject.batch_tokens,
            progress=False,
        )
        megabytes = (_peak() - before) / 1e6
        rows.append(
            Row(subject.name, f"`collect`, peak memory, {count:,} tokens", "MB in addition to the model", megabytes,
                Target("at most", 300), f"batches of {subject.batch_tokens} tokens")
        )  # fmt: skip
    rows.append(
        Row(subject.name, f"`collect`, peak memory, {token_counts[-1]:,} tokens",
            f"relative to {token_counts[0]:,} tokens", rows[-1].value / rows[0].value, Target("at most", 1.1))
    )  # fmt: skip
    return rows


def _current() -> int:
    """Return the memory in use, in bytes."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else _status("VmRSS")


def _reset_peak() -> None:
    """Start a new measurement of the peak."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        RESET.write_text("5")


def _peak() -> int:
    """Return the peak memory since `_reset_peak`, in bytes."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _status("VmHWM")


def _status(key: str) -> int:
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
    return 1024 * int(line.split()[1])
