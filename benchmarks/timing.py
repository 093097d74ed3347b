"""Times of several ways to do one thing, taken in turn, and what is written down of each comparison."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch


class Target(NamedTuple):
    """What a measured number is to be."""

    side: Literal["at least", "at most"]
    number: float

    def met_by(self, measured: float) -> bool:
        """Whether it is."""
        return measured >= self.number if self.side == "at least" else measured <= self.number


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        model: what it was measured on.
        what: what was measured.
        against: what it is a ratio to, or the unit.
        measured: the ratio of medians, or the number.
        target: what it is to be, where there is a target.
        note: what else there is to know, such as the times themselves.
    """

    model: str
    what: str
    against: str
    measured: float
    target: Target | None = None
    note: str = ""

    @property
    def holds(self) -> str:
        """In words."""
        return "" if self.target is None else "yes" if self.target.met_by(self.measured) else "**no**"


def medians(variants: Mapping[str, Callable[[], Any]], *, repeats: int) -> dict[str, float]:
    """Median seconds of each, after one that does not count. They take turns, so that a slow minute hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(repeats + 1):
        for name, run in variants.items():
            gc.collect()
            _wait()
            started = time.perf_counter()
            run()
            _wait()
            if repeat:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(each) for name, each in seconds.items()}


def _wait() -> None:
    """Until a GPU has done what it was asked for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
