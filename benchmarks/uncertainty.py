"""Simulate the coverage of the confidence intervals and the false discovery rate of the test, and write the tables.

    python -m benchmarks.uncertainty [--corpora 400] [--tests 400] [--page docs/pages/uncertainty.md]

The simulated activations have known true importances and resemble those of the bundled model: the tokens of a document
share topics, neurons share these topics too, and documents have 20 to 1000 tokens. They are analysed with the functions
that users call: `ActivationStats`, `uncertainty` and `specialisation_test`. The tables replace those on the page. This
takes half an hour.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control, norm
from tqdm.auto import tqdm

from benchmarks import corpus_sizes, intervals
from benchmarks.population import Population, flat
from sp_lens.scoring.significance import specialisation_test
from sp_lens.scoring.uncertainty import uncertainty
from sp_lens.statistics.activation_stats import ActivationStats
from sp_lens.typing import METRICS

PAGE = Path(__file__).parent.parent / "docs" / "pages" / "uncertainty.md"
BEGIN, END = "<!-- tables written by benchmarks/uncertainty.py -->", "<!-- end of the tables -->"


def by_tokens(stats: ActivationStats) -> tuple[np.ndarray, np.ndarray]:
    """Compute the importance "abs" and, as a wrong example, its standard error as if tokens were independent."""
    value = flat(stats.importance("abs"))
    return value, np.sqrt((flat(stats.importance("rms")) ** 2 - value**2) / stats.count)


def interval_coverage(
    documents: int, corpora: int, seed: int, *, scale: float = 0, neurons: int = 60
) -> Iterator[dict[str, Any]]:
    """Measure how often 95 % intervals contain the true value, in one row per quantity.

    Args:
        documents: Number of documents per corpus.
        corpora: Number of simulated pairs of corpora.
        seed: Seed of the simulation.
        scale: Standard deviation of the logarithm of the factor by which the activations of a document are multiplied.
        neurons: Number of neurons.
    """
    generator = np.random.default_rng(seed)
    half = neurons // 2
    forget, retain = (Population.random(generator, mlp=half, attn=neurons - half) for _ in range(2))
    coverage: dict[tuple[str, str], list[float]] = defaultdict(list)
    for _ in tqdm(range(corpora), desc=f"{documents} documents", leave=False):
        stats = [population.sample_stats(generator, documents, scale=scale) for population in (forget, retain)]
        for metric in METRICS:
            truths = [population.importance(metric, scale=scale) for population in (forget, retain)]
            results = {
                "importance": (uncertainty(stats[0], metric=metric), truths[0]),
                "score": (uncertainty(*stats, metric=metric, eps=0), truths[0] / truths[1]),
            }
            for quantity, (result, truth) in results.items():
                coverage[f"{quantity} by {metric}", "folds of documents"].append(
                    float(np.mean((flat(result.low) <= truth) & (truth <= flat(result.high))))
                )
        value, error = by_tokens(stats[0])
        coverage["importance by abs", "single tokens"].append(
            float(np.mean(np.abs(value - forget.importance("abs", scale=scale)) <= 1.96 * error))
        )
    for (quantity, unit), fractions in coverage.items():
        tails = ", heavy tails" if scale else ""
        yield {
            "documents": f"{documents}{tails}",
            "95 % interval of": quantity,
            "unit": unit,
            "coverage": np.mean(fractions),
        }


def false_discoveries(
    documents: tuple[int, int],
    tests: int,
    seed: int,
    *,
    different: float,
    neurons: int = 100,
    permutations: int = 10_000,
) -> Iterator[dict[str, Any]]:
    """Measure the fraction of false discoveries at a rate of 5 %, in one row per statistical unit.

    Args:
        documents: Numbers of documents of the two corpora.
        tests: Number of simulated pairs of corpora.
        seed: Seed of the simulation.
        different: Fraction of the neurons whose means differ between the corpora.
        neurons: Number of neurons.
        permutations: Number of permutations per test.
    """
    generator = np.random.default_rng(seed)
    half, count = neurons // 2, round(different * neurons)
    false: dict[str, list[float]] = defaultdict(list)
    found: dict[str, list[float]] = defaultdict(list)
    for number in tqdm(range(tests), desc=f"{different:.0%} different", leave=False):
        retain = Population.random(generator, mlp=half, attn=neurons - half)
        differs = np.zeros(neurons, dtype=bool)
        differs[generator.choice(neurons, count, replace=False)] = True
        forget = replace(retain, mean=retain.mean + differs * generator.choice([-0.6, 0.6], neurons))
        stats = forget.sample_stats(generator, documents[0]), retain.sample_stats(generator, documents[1])
        test = specialisation_test(*stats, permutations=permutations, seed=number, progress=False)
        (forget_value, forget_error), (retain_value, retain_error) = (by_tokens(corpus) for corpus in stats)
        token_p_values = 2 * norm.sf(np.abs(forget_value - retain_value) / np.hypot(forget_error, retain_error))
        for unit, specialised in (
            ("folds of documents", flat(test.adjusted) <= test.rate),
            ("single tokens", false_discovery_control(token_p_values) <= test.rate),
        ):
            false[unit].append((specialised & ~differs).sum() / max(1, specialised.sum()))
            found[unit].append((specialised & differs).sum() / max(1, count))
    for unit, fractions in false.items():
        yield {
            "documents": f"{documents[0]} and {documents[1]}",
            "neurons that differ": f"{count} of {neurons}",
            "unit": unit,
            "false discoveries": np.mean(fractions),
            "differences found": np.mean(found[unit]) if count else np.nan,
        }


def markdown(rows: list[dict[str, Any]]) -> str:
    """Format rows as a Markdown table, with fractions in per cent."""
    frame = pd.DataFrame(rows)
    shown = frame.map(lambda cell: f"{cell:.1%}".replace("%", " %") if isinstance(cell, float) else str(cell))
    shown = shown.mask(frame.isna(), "")
    lines = [list(frame.columns), ["---"] * len(frame.columns), *shown.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def main() -> None:
    """Run the simulation and write the tables into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", type=int, default=400, help="simulated pairs of corpora for the intervals")
    parser.add_argument("--tests", type=int, default=400, help="simulated pairs of corpora for the test")
    parser.add_argument("--page", type=Path, default=PAGE, help="page to write the tables into")
    arguments = parser.parse_args()
    coverage = [
        row
        for documents, scale in ((20, 0), (20, corpus_sizes.SCALE), (40, 0), (120, 0))
        for row in interval_coverage(documents, arguments.corpora, seed=documents, scale=scale)
    ]
    tests = [
        row
        for documents, different in (((40, 40), 0.0), ((40, 40), 0.2))
        for row in false_discoveries(documents, arguments.tests, seed=1, different=different)
    ]
    sizes = [
        row for design in corpus_sizes.DESIGNS for row in corpus_sizes.discoveries(design, arguments.tests, seed=2)
    ]
    drops = [
        row
        for documents in intervals.DOCUMENTS
        for row in intervals.coverage(documents, 10 * arguments.corpora, seed=documents, bootstrap=True)
    ]
    parts = [
        f"Coverage of 95 % intervals of importances and scores over {arguments.corpora} pairs of corpora:",
        markdown(coverage),
        f"Tests at a false discovery rate of 5 % over {arguments.tests} pairs of corpora:",
        markdown(tests),
        f"Corpora of different sizes, whose documents differ more from each other, over {arguments.tests} pairs of "
        "corpora. If no neuron differs, the columns are the share of tests with any discovery, which should be at most "
        "5 %. Otherwise they are the share of the neurons that differ, and were found:",
        markdown(sizes),
        f"Coverage of 95 % intervals of drops in accuracy over {10 * arguments.corpora} pairs of corpora:",
        markdown(drops),
    ]
    page = arguments.page.read_text("utf-8")
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    arguments.page.write_text(before + "\n\n".join([BEGIN, *parts, END]) + after, "utf-8")


if __name__ == "__main__":
    main()
