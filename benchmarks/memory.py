"""The memory that collecting takes beside the model, by the number of tokens."""

from pathlib import Path

import torch

import sp_lens as sp
from benchmarks.subjects import Subject
from benchmarks.timing import Row, Target

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def memory(subject: Subject, *, tokens: tuple[int, ...]) -> list[Row]:
    """MB above what is there before, at the peak; of a CPU on Linux, or of a GPU."""
    if not torch.cuda.is_available() and not RESET.exists():
        return []
    rows, smallest = [], None
    for count in tokens:
        repeats = -(-count // subject.batch_tokens)
        before = _start()
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
        smallest = smallest or taken
    rows.append(
        Row(subject.name, f"collect, peak memory, {tokens[-1]:,} tokens", f"that at {tokens[0]:,} tokens",
            rows[-1].measured / smallest, Target("at most", 1.1))
    )  # fmt: skip
    return rows


def _start() -> int:
    """What is used now, in bytes; from here on the peak is counted."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    RESET.write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _status("VmHWM")


def _status(key: str) -> int:
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
    return 1024 * int(line.split()[1])
