"""Simulate how often the confidence intervals of drops in accuracy and of selectivity contain the true value.

The documents resemble those of the bundled model: the longest have ten times as many predictions as the shortest, and
documents differ in their accuracy and in how much of it they lose. `benchmarks.uncertainty` writes the table.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from sp_lens.evaluation.document_hits import DocumentHits
from sp_lens.evaluation.evaluate import DocumentSums
from sp_lens.evaluation.intervals import Interval
from sp_lens.typing import SIDES, Side

DOCUMENTS = (8, 13, 26, 60)  # per side
DRAWS = 1000  # of the bootstrap


class Corpus(NamedTuple):
    """Beta distributions over documents of the accuracy before pruning, and of the share of it that pruning removes."""

    accuracy: tuple[float, float]
    removed: tuple[float, float]

    @property
    def drop(self) -> float:
        """The true drop in accuracy: both distributions are independent of each other and of the length."""
        accuracy, removed = (a / (a + b) for a, b in self)
        return accuracy * removed


CORPORA: dict[Side, Corpus] = {"forget": Corpus((6, 4), (1.2, 2)), "retain": Corpus((6, 8), (0.8, 8))}


def sample_hits(generator: np.random.Generator, documents: int) -> DocumentHits:
    """Draw documents of both corpora, and the hits on them before and after pruning."""
    before: dict[Side, DocumentSums] = {}
    after: dict[Side, DocumentSums] = {}
    for side in SIDES:
        counts = np.clip(generator.lognormal(5, 0.9, documents), 10, 1000).astype(int)
        hits = generator.binomial(counts, generator.beta(*CORPORA[side].accuracy, documents))
        left = hits - generator.binomial(hits, generator.beta(*CORPORA[side].removed, documents))
        for sums, values in ((before, hits), (after, left)):
            tensors = (torch.from_numpy(array).double() for array in (counts, values, counts))
            sums[side] = DocumentSums(*tensors)
    return DocumentHits.from_sums(before, after)


def percentile_bootstrap(hits: DocumentHits, generator: np.random.Generator) -> Interval:
    """Return the interval of the selectivity that a percentile bootstrap over documents gives, for comparison."""
    draws = []
    for side in SIDES:
        counts, before, after = (hits.tensors[f"{side}_{name}"].numpy() for name in ("counts", "before", "after"))
        weights = generator.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=DRAWS)
        draws.append(weights @ (before - after) / (weights @ counts))
    low, high = np.percentile(draws[0] - draws[1], [2.5, 97.5])
    return Interval(hits.selectivity, float(low), float(high))


def coverage(documents: int, corpora: int, seed: int, *, bootstrap: bool = False) -> Iterator[dict[str, Any]]:
    """Measure how often 95 % intervals contain the true value, in one row per quantity.

    Args:
        documents: Number of documents of each corpus.
        corpora: Number of simulated pairs of corpora.
        seed: Seed of the simulation.
        bootstrap: Whether to measure the percentile bootstrap as well, which takes longer.
    """
    generator = np.random.default_rng(seed)
    drops = {side: corpus.drop for side, corpus in CORPORA.items()}
    inside: dict[str, list[bool]] = defaultdict(list)
    widths: dict[str, list[float]] = defaultdict(list)
    for _ in tqdm(range(corpora), desc=f"{documents} documents", leave=False):
        hits = sample_hits(generator, documents)
        results = {
            "drop in forget accuracy": (hits.drop("forget"), drops["forget"]),
            "selectivity": (hits.interval(), drops["forget"] - drops["retain"]),
        }
        if bootstrap:
            interval = percentile_bootstrap(hits, generator)
            results["selectivity, percentile bootstrap (not used)"] = interval, drops["forget"] - drops["retain"]
        for quantity, ((_, low, high), truth) in results.items():
            inside[quantity].append(low <= truth <= high)
            widths[quantity].append(high - low)
    for quantity, contained in inside.items():
        yield {
            "documents of each corpus": documents,
            "95 % interval of": quantity,
            "coverage": float(np.mean(contained)),
            "median width": f"{100 * np.median(widths[quantity]):.1f} points",
        }
