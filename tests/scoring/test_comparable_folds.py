"""Folds are merged until those of both corpora hold about the same number of documents."""

from typing import Any

import numpy as np
import pytest
from fold_stats import MLP, activations, stats_of

import sp_lens as sp
from sp_lens.scoring.comparable_folds import comparable_folds, documents_of


def stats_with(folds: int, documents: int, *, seed: int = 0) -> sp.ActivationStats:
    """Return statistics of so many documents, divided among folds as evenly as possible."""
    stats = stats_of(activations(seed, folds=folds))
    numbers = [len(range(fold, documents, folds)) for fold in range(folds)]
    parts = tuple(
        sp.ActivationStats(fold.layout, fold.moments, {"documents": number})
        for fold, number in zip(stats.folds, numbers, strict=True)
    )
    return sp.ActivationStats(stats.layout, stats.moments, stats.about, parts)


@pytest.mark.parametrize(
    ("forget", "retain", "expected"),
    [
        ((20, 40), (20, 40), (20, 20)),
        ((20, 40), (20, 44), (20, 20)),  # 2 and 2.2 documents per fold
        ((20, 40), (20, 160), (5, 20)),
        ((20, 160), (20, 40), (20, 5)),
        ((20, 40), (80, 160), (20, 80)),
        ((20, 40), (12, 96), (5, 12)),
        ((5, 10), (20, 40), (5, 20)),
    ],
)
def test_the_fewest_folds_are_merged(
    forget: tuple[int, int], retain: tuple[int, int], expected: tuple[int, int]
) -> None:
    sides = comparable_folds(stats_with(*forget), stats_with(*retain))
    assert tuple(map(len, sides)) == expected
    means = []
    for side, (_, documents) in zip(sides, (forget, retain), strict=True):
        numbers = [fold.about["documents"] for fold in side]
        assert sum(numbers) == documents
        means.append(np.mean(numbers))
    assert max(means) / min(means) <= 1.1


def test_merged_folds_have_the_statistics_of_all_their_tokens() -> None:
    forget = stats_with(20, 40)
    merged, _ = comparable_folds(forget, stats_with(20, 160, seed=1))
    assert sum(fold.count for fold in merged) == forget.count
    whole = merged[0]
    for fold in merged[1:]:
        whole = whole.merge(fold)
    np.testing.assert_allclose(whole.importance("std")[MLP.name], forget.importance("std")[MLP.name])


@pytest.mark.parametrize(("folds", "documents"), [(5, 400), (20, 400), (20, 60), (20, 46)])
def test_too_different_folds_raise_an_error_that_says_how_to_collect(folds: int, documents: int) -> None:
    with pytest.raises(sp.SpLensError, match=r"Collect both corpora with fold_documents=2 instead of folds"):
        sp.specialisation_test(stats_with(folds, 40), stats_with(folds, documents), progress=False)


def test_unknown_numbers_of_documents_raise_an_error() -> None:
    stats: Any = stats_with(5, 10)
    unknown = tuple(sp.ActivationStats(fold.layout, fold.moments) for fold in stats.folds)
    old = sp.ActivationStats(stats.layout, stats.moments, {}, unknown)
    with pytest.raises(sp.SpLensError, match="an earlier version of sp_lens saved them"):
        documents_of(old)
