"""Test which neurons are specialised to one of two corpora: a permutation test over folds of documents."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from sp_lens.errors import SpLensError, check_choice, check_shares
from sp_lens.neurons.layout import Layout
from sp_lens.neurons.mapping import ABOUT
from sp_lens.neurons.mask import NeuronMask
from sp_lens.neurons.values import NeuronValues
from sp_lens.scoring.comparable_folds import comparable_folds
from sp_lens.scoring.permutation import fold_sums, permuted_labels, smallest_p_value, welch_t
from sp_lens.scoring.uncertainty import require_folds
from sp_lens.statistics.activation_stats import ActivationStats
from sp_lens.storage.serialization import opened, save_tensors
from sp_lens.typing import METRICS, Metric, Side

logger = logging.getLogger(__name__)

# A warning is logged if a larger share of all neurons must be specialised before any of them is found.
WARNING_SHARE = 0.01

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
        smallest_p_value: The smallest p-value that the number of folds and of permutations allows.
    """

    statistic: NeuronValues
    p_values: NeuronValues
    adjusted: NeuronValues
    rate: float
    smallest_p_value: float

    @property
    def smallest_share(self) -> float:
        """Share of all neurons that must have the smallest p-value before any neuron counts as specialised.

        For example, with 5 + 5 folds there are 252 permutations, no p-value is below 2 / 252 = 0.008, and at a rate of
        0.05 no neuron is found unless 16 % of all neurons reach it.
        """
        return self.smallest_p_value / self.rate

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
        header["smallest_p_value"] = self.smallest_p_value
        save_tensors(path, "SpecialisationTest", tensors, header)

    @classmethod
    def load(cls, path: str | Path) -> "SpecialisationTest":
        """Read a file that `save` wrote.

        Raises:
            SpLensError: If the file is missing, truncated, was not written by sp_lens, or contains another result.
        """
        types = {"layout": Any, "about": ABOUT, "rate": float, "smallest_p_value": float}
        with opened(path, "SpecialisationTest", types) as (tensors, header):
            layout = Layout.from_json(header["layout"])
            parts = ({name: tensors[f"{part}/{name}"] for name in layout.names} for part in _PARTS)
            statistic, p_values, adjusted = (NeuronValues(layout, part, header["about"]) for part in parts)
            numbers = {key: header[key] for key in ("rate", "smallest_p_value")}
            check_shares(**numbers)
            return cls(statistic, p_values, adjusted, **numbers)

    def __repr__(self) -> str:
        specialised = self.mask().count()
        return (
            f"SpecialisationTest({specialised} of {self.layout.neurons} neurons at a false discovery rate of "
            f"{self.rate}; smallest possible p-value {self.smallest_p_value:.2g})"
        )


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

    This requires folds of about the same number of documents. Where the folds of one corpus hold more documents, those
    of the other are merged, which leaves fewer of them. Collect both corpora with the same `fold_documents` to keep
    all folds. The page Uncertainty shows the error rate and the power for corpora of different sizes.

    The difference is measured by Welch's t over folds, not by the score. Welch's t needs no eps and allows the corpora
    to have different variances and sizes (Chung & Romano 2013); a plain difference of means would call too many neurons
    specialised.

    The p-values of all neurons are then adjusted together, so that the expected fraction of false discoveries among the
    neurons called specialised is at most `rate` (Benjamini & Hochberg 1995). Specialised means that there is a
    difference, not that it is large: with enough text, nearly all neurons are specialised. The score and its confidence
    interval (`uncertainty`) measure how large the difference is.

    `scipy.stats.permutation_test` returns the same p-values. It rearranges the data for each permutation, whereas here
    each permutation is one row of a matrix product.

    Args:
        forget: Statistics with folds, `collect(model, corpus, fold_documents=2)`.
        retain: The same for the other corpus.
        metric: Importance metric: "abs", "rms", "std" or "freq" (Definition 1).
        rate: False discovery rate, between 0 and 1.
        permutations: Number of random permutations. If there are no more distinct ones than this, each is used once.
            No p-value is below 1 / (1 + permutations), see `SpecialisationTest.smallest_share`. A warning is logged if
            this share is above 1 %. Increase this number, or the number of folds, if fewer are expected.
        seed: Seed of the random permutations.
        progress: Whether to show a progress bar.

    Returns:
        A `SpecialisationTest`: `mask()` contains the specialised neurons and `frame()` one row per neuron.

    Raises:
        SpLensError: If the statistics have no folds or come from different models, the metric is unknown, the rate is
            not between 0 and 1, or the smallest possible p-value is above the rate, so that nothing can be found. Also
            if folds of the two corpora hold different numbers of documents, and merging them to the same number leaves
            fewer than 5.

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
    require_folds(forget, retain)
    corpora, folds = (forget, retain), comparable_folds(forget, retain)
    numbers = len(folds[0]), len(folds[1])
    smallest = smallest_p_value(*numbers, permutations)
    _check_smallest_p_value(smallest, rate, numbers, permutations)
    observed_labels = torch.cat([torch.ones(numbers[0]), torch.zeros(numbers[1])]).double()[None]
    labels, all_permutations = permuted_labels(*numbers, permutations, seed)
    # A random sample of permutations does not contain the observed labels, which are one of the possible ones.
    uncounted = 0 if all_permutations else 1
    tokens = torch.tensor([fold.count for side in folds for fold in side], dtype=torch.float64)
    statistic: dict[str, torch.Tensor] = {}
    p_values: dict[str, torch.Tensor] = {}
    for name in tqdm(forget, desc="permutations", unit=" groups", disable=not progress):
        sums, deviations = fold_sums([fold[name] for side in folds for fold in side], metric)
        statistic[name] = welch_t(observed_labels, sums, tokens, deviations)[0]
        threshold = statistic[name].abs() * (1 - 1e-9)  # the order of summation changes t by rounding errors
        as_large = torch.full_like(threshold, uncounted)
        for chunk in labels.split(_CHUNK):
            as_large += (welch_t(chunk, sums, tokens, deviations).abs() >= threshold).sum(dim=0)
        p_values[name] = as_large / (len(labels) + uncounted)
    about = {**forget.about, "corpora": [stats.about.get("corpora") for stats in corpora], "metric": metric}
    about |= {"permutations": len(labels), "seed": None if all_permutations else seed, "folds": numbers}
    return SpecialisationTest(
        statistic=NeuronValues(forget.layout, statistic, about),
        p_values=NeuronValues(forget.layout, p_values, about),
        adjusted=NeuronValues(forget.layout, _adjusted(p_values), about),
        rate=rate,
        smallest_p_value=smallest,
    )


def _check_smallest_p_value(smallest: float, rate: float, folds: tuple[int, int], permutations: int) -> None:
    """Raise SpLensError if no neuron can be found, and log a warning if only many neurons together can be found."""
    limit = f"with {folds[0]} + {folds[1]} folds and {permutations} permutations, no p-value is below {smallest:.2g}"
    remedy = "Use more folds and permutations, which need more documents, or a higher rate."
    if smallest > rate:
        raise SpLensError(f"{limit}, so no neuron can be found at a rate of {rate:g}. {remedy}")
    if smallest > WARNING_SHARE * rate:
        logger.warning(
            "%s: at a rate of %g, no neuron is found unless %.2g %% of all neurons are specialised. %s",
            limit, rate, 100 * smallest / rate, remedy,
        )  # fmt: skip


def _adjusted(p_values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Adjust the p-values of all neurons together (Benjamini & Hochberg 1995)."""
    from scipy.stats import false_discovery_control  # imported here because it takes a second to import

    flat = torch.from_numpy(false_discovery_control(torch.cat(list(p_values.values())).numpy()))
    return dict(zip(p_values, flat.split([len(values) for values in p_values.values()]), strict=True))
