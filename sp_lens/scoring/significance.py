"""Test which neurons are specialised to one of two corpora: a permutation test over folds of documents."""

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from tqdm.auto import tqdm

from sp_lens.errors import SpLensError, check_choice, check_shares
from sp_lens.neurons.layout import Layout
from sp_lens.neurons.mapping import ABOUT
from sp_lens.neurons.mask import NeuronMask
from sp_lens.neurons.values import NeuronValues
from sp_lens.scoring.uncertainty import require_folds
from sp_lens.statistics.activation_stats import ActivationStats
from sp_lens.statistics.moments import Moments
from sp_lens.storage.serialization import opened, save_tensors
from sp_lens.typing import METRICS, Metric, Side

_SIGNS: dict[Side, int] = {"forget": 1, "retain": -1}
_CHUNK = 1000  # Permutations computed at once, which takes a few hundred megabytes for wide layers.
_PARTS = ("statistic", "p_values", "adjusted")


@dataclass(frozen=True, eq=False)
class SpecialisationTest:
    """The result of `specialisation_test`: which neurons differ between two corpora at a false discovery rate.

    Attributes:
        statistic: Welch's t statistic of each neuron's importances over folds. Positive if the importance is larger on
            the forget corpus.
        p_values: Fraction of the permutations whose |t| is at least as large as the observed one.
        adjusted: P-values adjusted for the number of neurons (Benjamini & Hochberg 1995): the smallest false discovery
            rate at which the neuron counts as specialised.
        rate: False discovery rate that `mask` and `frame` use.
    """

    statistic: NeuronValues
    p_values: NeuronValues
    adjusted: NeuronValues
    rate: float

    @property
    def layout(self) -> Layout:
        """The neuron groups, in layer order."""
        return self.statistic.layout

    def mask(self, side: Side | None = None) -> NeuronMask:
        """Return the specialised neurons as a mask.

        Args:
            side: "forget" or "retain" for the neurons that are more important on that corpus. None selects both.
        """
        if side is not None:
            check_choice("side", side, _SIGNS)
        tensors = {}
        for name in self.layout.names:
            specialised = self.adjusted[name] <= self.rate
            tensors[name] = specialised if side is None else specialised & (self.statistic[name].sign() == _SIGNS[side])
        return NeuronMask(self.layout, tensors, {**self.statistic.about, "rate": self.rate})

    def frame(self) -> pd.DataFrame:
        """Return one row per neuron: site, layer, head, neuron, statistic, p_value, adjusted, specialised, side.

        `side` is the corpus on which the neuron is more important. It is missing if the neuron is not specialised.
        """
        frame = self.statistic.frame().rename(columns={"value": "statistic"})
        frame["p_value"], frame["adjusted"] = self.p_values.frame()["value"], self.adjusted.frame()["value"]
        frame["specialised"] = frame["adjusted"] <= self.rate
        codes = np.where(frame["specialised"], (frame["statistic"] < 0).astype(int), -1)
        return frame.assign(side=pd.Categorical.from_codes(codes, categories=["forget", "retain"]))

    def save(self, path: str | Path) -> None:
        """Write the result to a safetensors file, atomically."""
        tensors = {f"{part}/{name}": getattr(self, part)[name] for part in _PARTS for name in self.layout.names}
        header = {"layout": self.layout.to_json(), "about": self.statistic.about, "rate": self.rate}
        save_tensors(path, "SpecialisationTest", tensors, header)

    @classmethod
    def load(cls, path: str | Path) -> "SpecialisationTest":
        """Read a file that `save` wrote.

        Raises:
            SpLensError: If the file is missing, truncated, was not written by sp_lens, or contains another result.
        """
        types = {"layout": Any, "about": ABOUT, "rate": float}
        with opened(path, "SpecialisationTest", types) as (tensors, header):
            layout = Layout.from_json(header["layout"])
            parts = ({name: tensors[f"{part}/{name}"] for name in layout.names} for part in _PARTS)
            statistic, p_values, adjusted = (NeuronValues(layout, part, header["about"]) for part in parts)
            check_shares(rate=header["rate"])
            return cls(statistic, p_values, adjusted, header["rate"])

    def __repr__(self) -> str:
        specialised = self.mask().count()
        return f"SpecialisationTest({specialised} of {self.layout.neurons} at a false discovery rate of {self.rate})"


def specialisation_test(
    forget: ActivationStats,
    retain: ActivationStats,
    *,
    metric: Metric = "abs",
    rate: float = 0.05,
    permutations: int = 10_000,
    seed: int = 0,
    progress: bool = True,
) -> SpecialisationTest:
    """Test which neurons are more important on one corpus than on the other, with control of the false discovery rate.

    The null hypothesis is that a neuron is equally important on both corpora. It would then not matter which folds of
    documents are labelled forget and which retain. The test permutes these labels: the p-value of a neuron is the
    fraction of permutations in which its importances differ at least as much as observed, in either direction.

    The difference is measured by Welch's t over folds, not by the score. Welch's t needs no eps and allows the corpora
    to have different variances and sizes (Chung & Romano 2013); a plain difference of means would call too many neurons
    specialised. The error rate is exact for two corpora of the same kind and size. In a simulation with twice as many
    documents in one corpus, a rate of 5 % became 6 %.

    The p-values of all neurons are then adjusted together, so that the expected fraction of false discoveries among the
    neurons called specialised is at most `rate` (Benjamini & Hochberg 1995). Specialised means that there is a
    difference, not that it is large: with enough text, nearly all neurons are specialised. The score and its confidence
    interval (`uncertainty`) measure how large the difference is.

    `scipy.stats.permutation_test` returns the same p-values. It rearranges the data for each permutation, whereas here
    each permutation is one row of a matrix product.

    Args:
        forget: Statistics with folds, `collect(model, corpus, folds=20)`.
        retain: The same for the other corpus.
        metric: Importance metric: "abs", "rms", "std" or "freq" (Definition 1).
        rate: False discovery rate, between 0 and 1.
        permutations: Number of random permutations. If there are no more distinct ones than this, each is used once.
            No p-value is below 1 / (1 + permutations), so among n neurons, a set of fewer than
            n / (rate * permutations) specialised ones is never found. Increase this number if few are expected.
        seed: Seed of the random permutations.
        progress: Whether to show a progress bar.

    Returns:
        A `SpecialisationTest`: `mask()` contains the specialised neurons and `frame()` one row per neuron.

    Raises:
        SpLensError: If the statistics have no folds or come from different models, the metric is unknown, the rate is
            not between 0 and 1, or there are fewer permutations than 1 / rate.

    Example:
        >>> import sp_lens as sp
        >>> model = sp.load_model("demo")
        >>> code = [f"def f{i}(x): return x * {i}" for i in range(10)]
        >>> prose = [f"On day {i} the boat left at noon." for i in range(10)]
        >>> forget, retain = (sp.collect(model, texts, folds=5, progress=False) for texts in (code, prose))
        >>> test = specialisation_test(forget, retain, progress=False)
        >>> test.mask("forget").count() + test.mask("retain").count() == test.mask().count()
        True
    """
    check_choice("metric", metric, METRICS)
    if not 0 < rate < 1:
        raise SpLensError(f"rate is {rate}: expected a number between 0 and 1, such as 0.05.")
    if permutations < 1 / rate:
        raise SpLensError(f"permutations is {permutations}: a rate of {rate} needs {math.ceil(1 / rate)} or more.")
    require_folds(forget, retain)
    corpora = (forget, retain)
    observed_labels = torch.cat([torch.ones(len(forget.folds)), torch.zeros(len(retain.folds))]).double()[None]
    labels, all_permutations = _permuted_labels(len(forget.folds), len(retain.folds), permutations, seed)
    # A random sample of permutations does not contain the observed labels, which are one of the possible ones.
    uncounted = 0 if all_permutations else 1
    tokens = torch.tensor([fold.count for stats in corpora for fold in stats.folds], dtype=torch.float64)
    statistic: dict[str, torch.Tensor] = {}
    p_values: dict[str, torch.Tensor] = {}
    for name in tqdm(forget, desc="permutations", unit=" groups", disable=not progress):
        sums = torch.cat([_fold_sums([fold[name] for fold in stats.folds], stats[name], metric) for stats in corpora])
        statistic[name] = _welch_t(observed_labels, sums, tokens)[0]
        threshold = statistic[name].abs() * (1 - 1e-9)  # the order of summation changes t by rounding errors
        as_large = torch.full_like(threshold, uncounted)
        for chunk in labels.split(_CHUNK):
            as_large += (_welch_t(chunk, sums, tokens).abs() >= threshold).sum(dim=0)
        p_values[name] = as_large / (len(labels) + uncounted)
    about = {**forget.about, "corpora": [stats.about.get("corpora") for stats in corpora], "metric": metric}
    about |= {"permutations": len(labels), "seed": None if all_permutations else seed}
    return SpecialisationTest(
        statistic=NeuronValues(forget.layout, statistic, about),
        p_values=NeuronValues(forget.layout, p_values, about),
        adjusted=NeuronValues(forget.layout, _adjusted(p_values), about),
        rate=rate,
    )


def _permuted_labels(
    forget: int, retain: int, permutations: int, seed: int
) -> tuple[Float[torch.Tensor, "permutation fold"], bool]:
    """Return labels, 1 for forget folds and 0 for retain folds, and whether they are all the possible ones."""
    folds = forget + retain
    if all_permutations := math.comb(folds, forget) <= permutations:
        forget_folds = torch.tensor(list(itertools.combinations(range(folds), forget)))
    else:
        generator = torch.Generator().manual_seed(seed)
        forget_folds = torch.rand(permutations, folds, generator=generator).argsort(dim=1)[:, :forget]
    labels = torch.zeros(len(forget_folds), folds, dtype=torch.float64).scatter_(1, forget_folds, 1)
    return labels, all_permutations


def _fold_sums(folds: list[Moments], corpus: Moments, metric: Metric) -> Float[torch.Tensor, "fold neuron"]:
    """Return, for each fold, the sum over its tokens whose mean is the importance (its square for "rms" and "std").

    For "std" this is the sum of (z - mean z)^2 with the mean of the neuron on its own corpus, as in Levene's test, so
    two corpora that differ only in their means are not different.
    """
    match metric:
        case "abs":
            sums = [fold.absolute for fold in folds]
        case "freq":
            sums = [fold.positive for fold in folds]
        case "rms":
            sums = [fold.squares + fold.count * fold.mean**2 for fold in folds]
        case "std":
            sums = [fold.squares + fold.count * (fold.mean - corpus.mean) ** 2 for fold in folds]
    return torch.stack(sums).double().cpu()


def _welch_t(
    labels: Float[torch.Tensor, "permutation fold"],
    sums: Float[torch.Tensor, "fold neuron"],
    tokens: Float[torch.Tensor, " fold"],
) -> Float[torch.Tensor, "permutation neuron"]:
    """Compute Welch's t between the folds labelled 1 and those labelled 0, for the mean per token.

    A mean per token is a ratio of two sums over folds, so its variance is that of sum - mean * tokens.
    """
    # Subtracting the overall mean changes no difference and prevents cancellation in the squares.
    sums = sums - sums.sum(dim=0) / tokens.sum() * tokens[:, None]
    squares, products = sums.square(), sums * tokens[:, None]
    means, variances = [], []
    for selected in (labels, 1 - labels):
        total, count = (selected @ tokens)[:, None], selected.sum(dim=1, keepdim=True)
        mean = selected @ sums / total
        residual = selected @ squares - 2 * mean * (selected @ products) + mean**2 * (selected @ tokens**2)[:, None]
        means.append(mean)
        variances.append(residual.clamp(min=0) / total**2 * count / (count - 1))
    difference = means[0] - means[1]
    return (difference / (variances[0] + variances[1]).sqrt()).masked_fill(difference == 0, 0)


def _adjusted(p_values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Adjust the p-values of all neurons together (Benjamini & Hochberg 1995)."""
    from scipy.stats import false_discovery_control  # imported here because it takes a second to import

    flat = torch.from_numpy(false_discovery_control(torch.cat(list(p_values.values())).numpy()))
    return dict(zip(p_values, flat.split([len(values) for values in p_values.values()]), strict=True))
