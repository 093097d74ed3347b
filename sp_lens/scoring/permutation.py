"""Permutations of the labels of folds, and Welch's t of every neuron for each of them."""

import itertools
import math

import torch
from jaxtyping import Float

from sp_lens.statistics.moments import Moments
from sp_lens.typing import Metric


def smallest_p_value(forget: int, retain: int, permutations: int) -> float:
    """Return the smallest p-value that a test with these numbers of folds and permutations can have."""
    possible = math.comb(forget + retain, forget)
    if possible > permutations:
        return 1 / (1 + permutations)
    # With as many folds on both sides, swapping the corpora gives the same |t|.
    return (2 if forget == retain else 1) / possible


def permuted_labels(
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


def fold_sums(folds: list[Moments], corpus: Moments, metric: Metric) -> Float[torch.Tensor, "fold neuron"]:
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


def welch_t(
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
