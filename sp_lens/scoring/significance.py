"""Which neurons are specialised beyond chance: folds of documents swapped between the two corpora."""

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
_AT_ONCE = 1000  # permutations that are worked on together: a few hundred megabytes for wide layers
_PARTS = ("statistic", "p_values", "adjusted")


@dataclass(frozen=True, eq=False)
class SpecialisationTest:
    """Each neuron's test for a difference between two corpora, and which neurons pass at a false discovery rate.

    Attributes:
        statistic: Welch's t of the importances over folds; above 0 where a neuron does more on the forget corpus.
        p_values: the share of the permutations whose |t| is as large.
        adjusted: the false discovery rate at which the neuron is just counted as specialised.
        rate: the false discovery rate that `mask` and `frame` hold.
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
        """The specialised neurons: for either corpus, or for the forget or the retain corpus alone."""
        if side is not None:
            check_choice("side", side, _SIGNS)
        tensors = {}
        for name in self.layout.names:
            chosen = self.adjusted[name] <= self.rate
            tensors[name] = chosen if side is None else chosen & (self.statistic[name].sign() == _SIGNS[side])
        return NeuronMask(self.layout, tensors, {**self.statistic.about, "rate": self.rate})

    def frame(self) -> pd.DataFrame:
        """One row a neuron: site, layer, head, neuron, statistic, p_value, adjusted, specialised, side.

        `side` is the corpus on which the neuron does more, missing where it is not specialised.
        """
        frame = self.statistic.frame().rename(columns={"value": "statistic"})
        frame["p_value"], frame["adjusted"] = self.p_values.frame()["value"], self.adjusted.frame()["value"]
        frame["specialised"] = frame["adjusted"] <= self.rate
        codes = np.where(frame["specialised"], (frame["statistic"] < 0).astype(int), -1)
        return frame.assign(side=pd.Categorical.from_codes(codes, categories=["forget", "retain"]))

    def save(self, path: str | Path) -> None:
        """Write to a safetensors file, whole or not at all."""
        tensors = {f"{part}/{name}": getattr(self, part)[name] for part in _PARTS for name in self.layout.names}
        header = {"layout": self.layout.to_json(), "about": self.statistic.about, "rate": self.rate}
        save_tensors(path, "SpecialisationTest", tensors, header)

    @classmethod
    def load(cls, path: str | Path) -> "SpecialisationTest":
        """Read what `save` wrote.

        Raises:
            SpLensError: when the file is missing, cut short, foreign, or holds something else.
        """
        wanted = {"layout": Any, "about": ABOUT, "rate": float}
        with opened(path, "SpecialisationTest", wanted) as (tensors, header):
            layout = Layout.from_json(header["layout"])
            parts = ({name: tensors[f"{part}/{name}"] for name in layout.names} for part in _PARTS)
            statistic, p_values, adjusted = (NeuronValues(layout, part, header["about"]) for part in parts)
            check_shares(rate=header["rate"])
            return cls(statistic, p_values, adjusted, header["rate"])

    def __repr__(self) -> str:
        chosen = self.mask().count()
        return f"SpecialisationTest({chosen} of {self.layout.neurons} at a false discovery rate of {self.rate})"


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
    """Which neurons matter more for one corpus than for the other, beyond what chance makes of so many neurons.

    Were a neuron as important on both corpora, it would not matter which folds of documents are called forget. So
    folds are swapped between the two at random, and a neuron's p-value is the share of the permutations that set its
    importances as far apart as they are. Far apart is measured by Welch's t over folds, and not by the score: it
    allows for the corpora to vary differently and to be of different sizes (Chung & Romano 2013), where a plain
    difference calls too much specialised, and it needs no eps. Both directions count. The rate holds exactly for two
    corpora of one kind and size; simulated with twice as many documents on one side, 5 % were 6 %.

    Of all p-values together, those are taken at which the false discovery rate, the expected share of wrong ones among
    the neurons called specialised, is at most `rate` (Benjamini & Hochberg 1995, scipy's `false_discovery_control`).
    Specialised means surely different, not very different: with enough text nearly all neurons are. How different is
    the score, with its interval (`uncertainty`).

    `scipy.stats.permutation_test` gives the same p-values; it moves all data for each permutation, here each is one
    row of a matrix product.

    Args:
        forget: statistics by folds, `collect(model, corpus, folds=20)`.
        retain: the same of the other corpus.
        metric: "abs", "rms", "std" or "freq" (Definition 1).
        rate: false discovery rate.
        permutations: how many are drawn; all are gone through where there are no more. No p-value is below
            1 / (1 + permutations), so that of n neurons, fewer than n / (rate * permutations) are never called
            specialised: draw more where few are expected.
        seed: of the permutations.
        progress: show a bar.

    Raises:
        SpLensError: for statistics without folds or of different models, an unknown metric, a rate that is no share,
            and fewer permutations than 1 / rate.
    """
    check_choice("metric", metric, METRICS)
    if not 0 < rate < 1:
        raise SpLensError(f"rate {rate}: expected a share between 0 and 1, such as 0.05.")
    if permutations < 1 / rate:
        raise SpLensError(f"permutations={permutations}: expected {math.ceil(1 / rate)} or more for a rate of {rate}.")
    require_folds(forget, retain)
    labels, complete = _labels(len(forget.folds), len(retain.folds), permutations, seed)
    observed = torch.cat([torch.ones(len(forget.folds)), torch.zeros(len(retain.folds))]).double()[None]
    both = (forget, retain)
    statistic: dict[str, torch.Tensor] = {}
    p_values: dict[str, torch.Tensor] = {}
    for name in tqdm(forget, desc="permutations", unit=" groups", disable=not progress):
        sides = [[fold[name] for fold in side.folds] for side in both]
        amounts = torch.cat([_amounts(folds, whole[name], metric) for folds, whole in zip(sides, both, strict=True)])
        tokens = torch.tensor([fold.count for folds in sides for fold in folds], dtype=torch.float64)
        statistic[name] = _welch(observed, amounts, tokens)[0]
        # As large, up to the rounding of a sum in another order.
        floor = statistic[name].abs() * (1 - 1e-9)
        as_large = torch.full_like(floor, not complete)  # as they are is one of the ways, if not among those drawn
        for part in labels.split(_AT_ONCE):
            as_large += (_welch(part, amounts, tokens).abs() >= floor).sum(dim=0)
        p_values[name] = as_large / (len(labels) + (not complete))
    about = {**forget.about, "corpora": [side.about.get("corpora") for side in (forget, retain)], "metric": metric}
    about |= {"permutations": len(labels), "seed": None if complete else seed}
    t, p, adjusted = (NeuronValues(forget.layout, one, about) for one in (statistic, p_values, _adjusted(p_values)))
    return SpecialisationTest(t, p, adjusted, rate)


def _labels(forget: int, retain: int, permutations: int, seed: int) -> tuple[Float[torch.Tensor, "draw fold"], bool]:
    """1 for the folds that are called forget; all ways to call so many that, if they are few enough, or some."""
    folds = forget + retain
    if complete := math.comb(folds, forget) <= permutations:
        chosen = torch.tensor(list(itertools.combinations(range(folds), forget)))
    else:
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.rand(permutations, folds, generator=generator).argsort(dim=1)[:, :forget]
    return torch.zeros(len(chosen), folds, dtype=torch.float64).scatter_(1, chosen, 1), complete


def _amounts(folds: list[Moments], whole: Moments, metric: Metric) -> Float[torch.Tensor, "fold neuron"]:
    """What each fold adds to the sum that the importance (of rms and std its square) is the mean of.

    Of std that is (z - mean z)^2 with the mean of the neuron's own corpus, as in Levene's test: two corpora that differ
    in their means alone are not different here.
    """
    match metric:
        case "abs":
            amounts = [fold.absolute for fold in folds]
        case "freq":
            amounts = [fold.positive for fold in folds]
        case "rms":
            amounts = [fold.squares + fold.count * fold.mean**2 for fold in folds]
        case "std":
            amounts = [fold.squares + fold.count * (fold.mean - whole.mean) ** 2 for fold in folds]
    return torch.stack(amounts).double().cpu()


def _welch(
    labels: Float[torch.Tensor, "draw fold"],
    amounts: Float[torch.Tensor, "fold neuron"],
    tokens: Float[torch.Tensor, " fold"],
) -> Float[torch.Tensor, "draw neuron"]:
    """Welch's t of the means a token on the folds labelled 1 and on those labelled 0.

    A mean a token is a ratio of two sums over folds, so its variance is that of amount - ratio * tokens.
    """
    # About the mean of all, which changes no difference and keeps the squares from cancelling.
    amounts = amounts - amounts.sum(dim=0) / tokens.sum() * tokens[:, None]
    squares, products = amounts.square(), amounts * tokens[:, None]
    means, variances = [], []
    for side in (labels, 1 - labels):
        total, count = (side @ tokens)[:, None], side.sum(dim=1, keepdim=True)
        mean = side @ amounts / total
        rest = side @ squares - 2 * mean * (side @ products) + mean**2 * (side @ tokens**2)[:, None]
        means.append(mean)
        variances.append(rest.clamp(min=0) / total**2 * count / (count - 1))
    difference = means[0] - means[1]
    return (difference / (variances[0] + variances[1]).sqrt()).masked_fill(difference == 0, 0)


def _adjusted(p_values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    from scipy.stats import false_discovery_control  # here and not above: it takes a second to import

    flat = torch.from_numpy(false_discovery_control(torch.cat(list(p_values.values())).numpy()))
    return dict(zip(p_values, flat.split([len(one) for one in p_values.values()]), strict=True))
