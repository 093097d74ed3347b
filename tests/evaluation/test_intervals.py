"""Intervals of ratios, compared with Student's and Welch's intervals of scipy, and their coverage by simulation."""

import math

import numpy as np
import pytest
import scipy.stats

from benchmarks.intervals import coverage
from sp_lens.evaluation.intervals import Interval, Sample, interval_of_sum, mean_interval

pytestmark = pytest.mark.libraries


def test_documents_of_equal_length_have_the_intervals_of_student_and_welch() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.normal(3, 1, 12), generator.normal(1, 2, 9)
    expected = scipy.stats.ttest_1samp(first, 0).confidence_interval()
    assert mean_interval(first)[1:] == pytest.approx((expected.low, expected.high))
    difference = interval_of_sum(Sample(5 * first, np.full(12, 5.0)), Sample(-5 * second, np.full(9, 5.0)))
    welch = scipy.stats.ttest_ind(first, second, equal_var=False).confidence_interval()
    assert difference[1:] == pytest.approx((welch.low, welch.high))
    assert difference.value == pytest.approx(first.mean() - second.mean())


def test_the_variance_of_a_ratio_is_that_of_resampled_documents() -> None:
    generator = np.random.default_rng(1)
    counts = generator.integers(20, 200, 400).astype(float)
    sums = counts * generator.beta(2, 3, 400)
    drawn = generator.integers(0, 400, (4000, 400))
    resampled = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.percentile(resampled, [2.5, 97.5])
    interval = interval_of_sum(Sample(sums, counts))
    assert interval.high - interval.low == pytest.approx(high - low, rel=0.05)


def test_a_long_document_widens_the_interval() -> None:
    sums, counts = np.array([3.0, 5, 4, 6, 2, 4, 5, 3]), np.full(8, 10.0)
    even = interval_of_sum(Sample(sums, counts))
    long = np.array([*[1.0] * 7, 20])
    uneven = interval_of_sum(Sample(sums * long, counts * long))
    assert uneven.high - uneven.low > 2 * (even.high - even.low)


def test_fewer_than_eight_documents_have_no_interval() -> None:
    assert math.isnan(mean_interval(np.arange(7.0)).low)
    assert not math.isnan(mean_interval(np.arange(8.0)).low)
    assert str(Interval(0.5, math.nan, math.nan)) == "50.0 (too few documents for an interval)"


@pytest.mark.parametrize("documents", [8, 26])
def test_intervals_contain_the_true_value_in_93_of_100_simulations(documents: int) -> None:
    """A short form of the table on the page Uncertainty."""
    for row in coverage(documents, corpora=800, seed=documents):
        assert row["coverage"] > 0.925, row  # three standard errors below 0.95
