"""Do 95 % intervals hold the truth 95 times of 100, and is the false discovery rate held? Simulated, as a table.

    python -m benchmarks.uncertainty [--corpora 400] [--tests 400] [--page docs/pages/uncertainty.md]

Activations are drawn whose true importances are known, as those of the bundled model are: tokens of a document share
what it is about, neurons share it too, documents are from 20 to 1000 tokens long. Everything after that is what a user
calls: `ActivationStats`, `uncertainty`, `specialised`. The table replaces the one on the page. Ten minutes.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy.stats import false_discovery_control, norm
from tqdm.auto import tqdm

from sp_lens.neurons.layout import Layout, NeuronGroup
from sp_lens.neurons.values import NeuronValues
from sp_lens.scoring.significance import specialisation_test
from sp_lens.scoring.uncertainty import uncertainty
from sp_lens.statistics.activation_stats import ActivationStats
from sp_lens.statistics.moments import Moments
from sp_lens.typing import METRICS

PAGE = Path(__file__).parent.parent / "docs" / "pages" / "uncertainty.md"
BEGIN, END = "<!-- the simulation's table, by benchmarks/uncertainty.py -->", "<!-- the table ends -->"
BLOCKS = 20
TOPICS = 4  # what a document is about, which neurons share


@dataclass(frozen=True)
class Population:
    """Documents without end, and neurons on them: z = mean + what the document does + noise, of MLP neurons relu of it.

    Attributes:
        mean: of each neuron before the relu, in units of the noise.
        spread: of what documents do to each neuron.
        mlp: the first so many neurons are MLP neurons; the others are attention neurons, without the relu.
    """

    mean: Float[np.ndarray, " neuron"]
    spread: Float[np.ndarray, " neuron"]
    mlp: int

    @classmethod
    def random(cls, generator: np.random.Generator, *, mlp: int, attn: int) -> "Population":
        """Neurons as varied as the bundled model's: MLP neurons fire on 1 to 90 % of the tokens, 6 % at the median.

        What documents do makes standard errors 2 to 10 times those of tokens drawn one by one, as there.
        """
        spread = generator.uniform(0.15, 0.5, mlp + attn)
        fires = 1 / (1 + np.exp(-np.clip(generator.normal(-2.75, 1.3, mlp), -4.6, 2.2)))
        means = [norm.ppf(fires) * np.hypot(1, spread[:mlp]), generator.normal(0, 0.5, attn)]
        return cls(np.concatenate(means), spread, mlp)

    def importance(self, metric: str) -> Float[np.ndarray, " neuron"]:
        """Definition 1 on all the documents that there are."""
        width = np.hypot(1, self.spread)
        rate = self.mean / width
        density, above = width * norm.pdf(rate), norm.cdf(rate)
        fires = np.arange(len(self.mean)) < self.mlp
        # The first and the second moment of the relu of a normal number, and of its absolute value.
        first = np.where(fires, density + self.mean * above, 2 * density + self.mean * (2 * above - 1))
        second = np.where(fires, (self.mean**2 + width**2) * above + self.mean * density, self.mean**2 + width**2)
        average = np.where(fires, first, self.mean)
        match metric:
            case "abs":
                return first
            case "freq":
                return above
            case "rms":
                return np.sqrt(second)
        return np.sqrt(second - average**2)

    def collected(self, generator: np.random.Generator, documents: int) -> ActivationStats:
        """Statistics of so many documents, dealt to folds as `collect` does."""
        lengths = np.clip(generator.lognormal(5.5, 0.8, documents), 20, 1000).astype(int)
        neurons = len(self.mean)
        topics = generator.standard_normal((documents, TOPICS))[:, np.arange(neurons) % TOPICS]
        own = generator.standard_normal((documents, neurons))
        centres = self.mean + self.spread * (topics + own) / np.sqrt(2)
        parts: list[list[np.ndarray]] = [[] for _ in range(BLOCKS)]
        for place, (length, centre) in enumerate(zip(lengths, centres, strict=True)):
            z = generator.standard_normal((length, neurons), dtype=np.float32) + centre.astype(np.float32)
            np.maximum(z[:, : self.mlp], 0, out=z[:, : self.mlp])
            parts[place % BLOCKS].append(z)
        tensors = [torch.from_numpy(np.concatenate(part)) for part in parts]
        layout = Layout((NeuronGroup("mlp", 0, neurons),))
        (name,) = layout.names
        folds = tuple(ActivationStats(layout, {name: Moments.from_activations(part)}) for part in tensors)
        return ActivationStats(layout, {name: Moments.from_activations(torch.cat(tensors))}, folds=folds)


def flat(values: NeuronValues) -> Float[np.ndarray, " neuron"]:
    """The one tensor of values of the layout here."""
    (tensor,) = values.tensors.values()
    return tensor.numpy()


def by_tokens(stats: ActivationStats) -> tuple[np.ndarray, np.ndarray]:
    """abs and its standard error if each token were new evidence: the wrong way, for comparison."""
    size = flat(stats.importance("abs"))
    return size, np.sqrt((flat(stats.importance("rms")) ** 2 - size**2) / stats.count)


def covered(documents: int, corpora: int, seed: int, *, neurons: int = 60) -> Iterator[dict[str, Any]]:
    """How often 95 % intervals hold the truth: one row a quantity, over so many pairs of corpora."""
    generator = np.random.default_rng(seed)
    half = neurons // 2
    forget, retain = (Population.random(generator, mlp=half, attn=neurons - half) for _ in range(2))
    held: dict[tuple[str, str], list[float]] = defaultdict(list)
    for _ in tqdm(range(corpora), desc=f"{documents} documents", leave=False):
        sides = [population.collected(generator, documents) for population in (forget, retain)]
        for metric in METRICS:
            truths = [population.importance(metric) for population in (forget, retain)]
            found = {
                "importance": (uncertainty(sides[0], metric=metric), truths[0]),
                "score": (uncertainty(*sides, metric=metric, eps=0), truths[0] / truths[1]),
            }
            for what, (one, truth) in found.items():
                held[f"{what} by {metric}", "folds of documents"].append(
                    float(np.mean((flat(one.low) <= truth) & (truth <= flat(one.high))))
                )
        value, error = by_tokens(sides[0])
        held["importance by abs", "each token by itself"].append(
            float(np.mean(np.abs(value - forget.importance("abs")) <= 1.96 * error))
        )
    for (what, unit), shares in held.items():
        yield {"documents": documents, "95 % interval of": what, "unit": unit, "holds the truth": np.mean(shares)}


def discovered(
    documents: tuple[int, int],
    tests: int,
    seed: int,
    *,
    different: float,
    neurons: int = 100,
    permutations: int = 10_000,
) -> Iterator[dict[str, Any]]:
    """The share of false discoveries at a rate of 5 %, where a share of the neurons is truly different."""
    generator = np.random.default_rng(seed)
    half, count = neurons // 2, round(different * neurons)
    false: dict[str, list[float]] = defaultdict(list)
    found: dict[str, list[float]] = defaultdict(list)
    for number in tqdm(range(tests), desc=f"{different:.0%} different", leave=False):
        retain = Population.random(generator, mlp=half, attn=neurons - half)
        truly = np.zeros(neurons, dtype=bool)
        truly[generator.choice(neurons, count, replace=False)] = True
        forget = replace(retain, mean=retain.mean + truly * generator.choice([-0.6, 0.6], neurons))
        sides = forget.collected(generator, documents[0]), retain.collected(generator, documents[1])
        test = specialisation_test(*sides, permutations=permutations, seed=number, progress=False)
        (one, error), (two, other) = (by_tokens(side) for side in sides)
        tokens = 2 * norm.sf(np.abs(one - two) / np.hypot(error, other))
        for unit, chosen in (
            ("folds of documents", flat(test.adjusted) <= test.rate),
            ("each token by itself", false_discovery_control(tokens) <= test.rate),
        ):
            false[unit].append((chosen & ~truly).sum() / max(1, chosen.sum()))
            found[unit].append((chosen & truly).sum() / max(1, count))
    for unit, shares in false.items():
        yield {
            "documents": f"{documents[0]} and {documents[1]}",
            "neurons that differ": f"{count} of {neurons}",
            "unit": unit,
            "false discoveries": np.mean(shares),
            "of those that differ, found": np.mean(found[unit]) if count else np.nan,
        }


def markdown(rows: list[dict[str, Any]]) -> str:
    """A table with shares in per cent."""
    frame = pd.DataFrame(rows)
    shown = frame.map(lambda cell: f"{cell:.1%}".replace("%", " %") if isinstance(cell, float) else str(cell))
    shown = shown.mask(frame.isna(), "")
    lines = [list(frame.columns), ["---"] * len(frame.columns), *shown.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def main() -> None:
    """Simulate, and write the table into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", type=int, default=400, help="pairs of corpora that intervals are made of")
    parser.add_argument("--tests", type=int, default=400, help="pairs of corpora that are tested for differences")
    parser.add_argument("--page", type=Path, default=PAGE)
    arguments = parser.parse_args()
    intervals = [row for documents in (40, 120) for row in covered(documents, arguments.corpora, seed=documents)]
    tests = [
        row
        for documents, share in (((40, 40), 0.0), ((40, 80), 0.0), ((40, 40), 0.2))
        for row in discovered(documents, arguments.tests, seed=1, different=share)
    ]
    parts = [f"Over {arguments.corpora} pairs of corpora:", markdown(intervals)]
    parts += [f"At a false discovery rate of 5 %, over {arguments.tests} pairs of corpora:", markdown(tests)]
    page = arguments.page.read_text("utf-8")
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    arguments.page.write_text(before + "\n\n".join([BEGIN, *parts, END]) + after, "utf-8")


if __name__ == "__main__":
    main()
