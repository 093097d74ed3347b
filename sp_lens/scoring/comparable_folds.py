"""Merge folds so that a fold holds about as many documents of one corpus as of the other, for a permutation test."""

import itertools
from collections.abc import Sequence
from functools import reduce

from sp_lens.data.batching import MIN_FOLDS
from sp_lens.errors import SpLensError
from sp_lens.statistics.activation_stats import ActivationStats

# Largest ratio of the mean number of documents per fold of the two corpora. The simulation on the page Uncertainty
# shows that the test keeps its error rate up to this ratio.
MAX_RATIO = 1.1
# Number of folds of the smaller corpus that an error message suggests.
SUGGESTED_FOLDS = 20

Folds = Sequence[ActivationStats]


def comparable_folds(forget: ActivationStats, retain: ActivationStats) -> tuple[Folds, Folds]:
    """Return the folds of both corpora, merged where necessary to hold about the same number of documents.

    A permutation test exchanges folds of one corpus for folds of the other. Under its null hypothesis, single documents
    are exchangeable, and so are folds of equally many documents. The importance on a fold of more documents varies
    less, and by the metrics "rms" and "std" it also has another expected value, so such folds are not exchangeable.

    Of all ways to merge equally many folds of a corpus into one, this chooses the one that leaves the most folds.

    Raises:
        SpLensError: If fewer than 5 folds of a corpus would be left, or the numbers of documents are unknown.
    """
    documents = [documents_of(stats) for stats in (forget, retain)]
    numbers = [len(counts) for counts in documents]
    possible = [
        folds
        for folds in itertools.product(*(_merged_numbers(number) for number in numbers))
        if _ratio(*(sum(counts) / number for counts, number in zip(documents, folds, strict=True))) <= MAX_RATIO
    ]
    if not possible:
        sizes = [sum(counts) / number for counts, number in zip(documents, numbers, strict=True)]
        raise SpLensError(
            f"a fold holds {sizes[0]:.3g} documents of the forget corpus on average, and {sizes[1]:.3g} of the retain "
            "corpus. Folds of different sizes cannot be exchanged in a permutation test, and fewer than "
            f"{MIN_FOLDS} would be left after merging them to the same size. Collect both corpora with "
            f"fold_documents={max(1, min(map(sum, documents)) // SUGGESTED_FOLDS)} instead of folds."
        )
    kept = max(possible, key=lambda folds: (min(folds), sum(folds)))
    first, second = (
        [reduce(ActivationStats.merge, stats.folds[fold::number]) for fold in range(number)]
        for stats, number in zip((forget, retain), kept, strict=True)
    )
    return first, second


def documents_of(stats: ActivationStats) -> list[int]:
    """Return the number of documents in each fold.

    Raises:
        SpLensError: If they were not recorded.
    """
    counts = [fold.about.get("documents") for fold in stats.folds]
    known = [count for count in counts if count is not None]
    if len(known) < len(counts):
        raise SpLensError(
            "these statistics do not record how many documents each fold holds, because an earlier version of sp_lens "
            "saved them: collect them again."
        )
    return known


def _merged_numbers(folds: int) -> list[int]:
    """Return the numbers of folds that are left if equally many folds are merged into each: the divisors from 5."""
    return [number for number in range(MIN_FOLDS, folds + 1) if folds % number == 0]


def _ratio(a: float, b: float) -> float:
    return max(a, b) / min(a, b)
