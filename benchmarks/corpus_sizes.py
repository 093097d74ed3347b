"""Simulate the error rate and the power of the specialisation test on corpora of different numbers of documents.

Here the activations of a document are multiplied by a log-normal factor, so a few documents have much larger ones than
the others, as in real text. `benchmarks.uncertainty` writes the table.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from benchmarks.population import FOLDS, Population, flat
from sp_lens.scoring.comparable_folds import comparable_folds
from sp_lens.scoring.significance import specialisation_test
from sp_lens.typing import METRICS

SCALE = 0.6  # standard deviation of the logarithm of the factor of a document
SHIFT = 1.0  # of the means of the neurons that differ, in units of the standard deviation of the noise


class Design(NamedTuple):
    """Two corpora and how their documents are assigned to folds.

    Attributes:
        forget: Number of documents of the forget corpus.
        retain: Number of documents of the retain corpus.
        fold_documents: Number of documents in a fold. None makes 20 folds of each corpus, which the test merges.
        different: Share of the neurons whose means differ between the corpora.
    """

    forget: int
    retain: int
    fold_documents: int | None = None
    different: float = 0.0


DESIGNS = (
    Design(40, 40),
    Design(40, 44),
    Design(40, 160),
    Design(40, 160, fold_documents=2),
    Design(40, 400, fold_documents=2),
    Design(20, 200, fold_documents=1),
    Design(43, 57, fold_documents=2),
    Design(40, 40, different=0.2),
    Design(40, 160, different=0.2),
    Design(40, 160, fold_documents=2, different=0.2),
)


def discoveries(
    design: Design, tests: int, seed: int, *, neurons: int = 40, permutations: int = 2000
) -> Iterator[dict[str, Any]]:
    """Measure how often the test finds neurons, in one row with a column for each metric.

    Args:
        design: Corpora and folds.
        tests: Number of simulated pairs of corpora.
        seed: Seed of the simulation.
        neurons: Number of neurons.
        permutations: Number of permutations per test.
    """
    generator = np.random.default_rng(seed)
    half, count = neurons // 2, round(design.different * neurons)
    found: dict[str, list[float]] = defaultdict(list)
    folds: list[int] = []
    for number in tqdm(range(tests), desc=str(tuple(design)), leave=False):
        retain = Population.random(generator, mlp=half, attn=neurons - half)
        differs = np.zeros(neurons, dtype=bool)
        differs[generator.choice(neurons, count, replace=False)] = True
        forget = replace(retain, mean=retain.mean + SHIFT * differs)
        stats = [
            population.sample_stats(
                generator,
                documents,
                folds=FOLDS if design.fold_documents is None else documents // design.fold_documents,
                scale=SCALE,
            )
            for population, documents in ((forget, design.forget), (retain, design.retain))
        ]
        folds = [len(side) for side in comparable_folds(*stats)]
        for metric in METRICS:
            test = specialisation_test(*stats, metric=metric, permutations=permutations, seed=number, progress=False)
            specialised = flat(test.adjusted) <= test.rate
            found[metric].append(specialised[differs].mean() if count else float(specialised.any()))
    yield {
        "documents": f"{design.forget} and {design.retain}",
        "folds": f"{folds[0]} and {folds[1]}"
        + (", merged" if folds != 2 * [FOLDS] and not design.fold_documents else ""),
        "neurons that differ": f"{count} of {neurons}",
        **{metric: float(np.mean(values)) for metric, values in found.items()},
    }
