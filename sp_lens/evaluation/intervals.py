"""Confidence intervals over documents of a sum of ratios, such as the difference of two drops in accuracy."""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from sp_lens.scoring.uncertainty import degrees_of_freedom, student_t_quantile

# With fewer documents (images, texts) in a sample, no interval is computed: it would be too short too often.
MIN_DOCUMENTS = 8
LEVEL = 0.95

Floats = Float[np.ndarray, " document"]


class Interval(NamedTuple):
    """A number with its 95 % confidence interval. The ends are NaN if there are too few documents for an interval.

    Example:
        >>> str(Interval(0.1234, 0.1, 0.15))
        '12.3 [10.0, 15.0]'
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Format the number in percentage points."""
        if math.isnan(self.low):
            return f"{100 * self.value:.1f} (too few documents for an interval)"
        return f"{100 * self.value:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


class Sample(NamedTuple):
    """A sum and a number of predictions of each document of a corpus. Their ratio is a mean over predictions."""

    sums: Floats
    counts: Floats


def interval_of_sum(*samples: Sample) -> Interval:
    """Return the sum of the ratios of independent samples with its confidence interval.

    The interval uses Student's t, with the degrees of freedom of a sum of variances (Welch 1947). A document that holds
    most of the predictions leaves little information about the variance, so a sample of documents of different lengths
    has fewer degrees of freedom than the number of documents minus 1 (Satterthwaite 1946). The page Uncertainty shows
    how often such intervals contain the true value.

    Args:
        samples: One for each corpus. A difference is a sum with negative `sums` in one of them.

    Example:
        >>> lost, predictions = np.array([3.0, 5, 4, 6, 2, 4, 5, 3]), np.full(8, 10.0)
        >>> str(interval_of_sum(Sample(lost, predictions)))
        '40.0 [29.1, 50.9]'
    """
    value = sum(float(sums.sum() / counts.sum()) for sums, counts in samples)
    if min(len(sums) for sums, _ in samples) < MIN_DOCUMENTS:
        return Interval(value, math.nan, math.nan)
    variances = np.array([_variance_of_ratio(*sample) for sample in samples])
    if not variances.any():
        return Interval(value, value, value)
    freedoms = np.array([degrees_of_freedom(counts.tolist()) for _, counts in samples])
    freedom = torch.tensor(variances.sum() ** 2 / (variances**2 / freedoms).sum())
    half = float(student_t_quantile(LEVEL, freedom[None])) * math.sqrt(variances.sum())
    return Interval(value, value - half, value + half)


def mean_interval(values: Floats) -> Interval:
    """Return the mean of independent numbers with its confidence interval."""
    return interval_of_sum(Sample(values, np.ones(len(values))))


def _variance_of_ratio(sums: Floats, counts: Floats) -> float:
    """Return the variance of sum / count over documents, to first order in the deviations of both."""
    residuals = sums - counts * (sums.sum() / counts.sum())
    return float(np.square(residuals).sum() / counts.sum() ** 2 * len(sums) / (len(sums) - 1))
