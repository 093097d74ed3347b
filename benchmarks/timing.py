"""Time several variants in turn, and describe the rows of the benchmark table."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch


class Target(NamedTuple):
    """A bound that a measured value should satisfy."""

    bound: Literal["at least", "at most"]
    number: float

    def is_met_by(self, value: float) -> bool:
        """Return whether the value satisfies the bound."""
        return value >= self.number if self.bound == "at least" else value <= self.number


@dataclass(frozen=True)
class Row:
    """One row of the benchmark table.

    Attributes:
        model: Name of the model, "-" for none.
        quantity: What was measured.
        unit: Unit of the value, or what it is relative to.
        value: The measured number or ratio of medians.
        target: Bound that the value should satisfy, if there is one.
        note: Further information, such as the times themselves.
    """

    model: str
    quantity: str
    unit: str
    value: float
    target: Target | None = None
    note: str = ""

    @property
    def met(self) -> str:
        """The cell of the table that says whether the target is met, empty if there is no target."""
        return "" if self.target is None else "yes" if self.target.is_met_by(self.value) else "**no**"


def medians(variants: Mapping[str, Callable[[], Any]], *, repeats: int) -> dict[str, float]:
    """Measure the median time of each variant in seconds, after one warm-up run.

    The variants are run in turn, so that a temporary slowdown of the machine affects all of them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(repeats + 1):
        for name, run in variants.items():
            gc.collect()
            _synchronize()
            started = time.perf_counter()
            run()
            _synchronize()
            if repeat:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(times) for name, times in seconds.items()}


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
