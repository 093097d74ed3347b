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


def fold_sums(
    folds: list[Moments], metric: Metric
) -> tuple[Float[torch.Tensor, "fold neuron"], Float[torch.Tensor, "fold neuron"] | None]:
    """Return, for each fold, the sum over its tokens whose mean is the importance (its square for "rms" and "std").

    For "std" these are the sum of (z - c)^2 and that of z - c, with the mean c of all folds, which avoids cancellation.
    The second sum is None for the other metrics.
    """
    counts = torch.tensor([fold.count for fold in folds], dtype=torch.float64)[:, None]
    means = torch.stack([fold.mean for fold in folds]).double().cpu()
    squares = torch.stack([fold.squares for fold in folds]).double().cpu()  # about the mean of the fold
    match metric:
        case "abs":
            return torch.stack([fold.absolute for fold in folds]).double().cpu(), None
        case "freq":
            return torch.stack([fold.positive for fold in folds]).double().cpu(), None
        case "rms":
            return squares + counts * means**2, None
        case "std":
            deviations = means - (counts * means).sum(dim=0) / counts.sum()
            return squares + counts * deviations**2, counts * deviations


def welch_t(
    labels: Float[torch.Tensor, "permutation fold"],
    sums: Float[torch.Tensor, "fold neuron"],
    tokens: Float[torch.Tensor, " fold"],
    deviations: Float[torch.Tensor, "fold neuron"] | None = None,
) -> Float[torch.Tensor, "permutation neuron"]:
    """Compute Welch's t between the folds labelled 1 and those labelled 0, for the mean per token.

    A mean per token is a ratio of two sums over folds, so its variance is that of sum - mean * tokens. With deviations,
    t is that of the variance of z: the mean of (z - c)^2 minus the square of the mean of z - c over the folds of one
    label, so that two corpora that differ only in their means are not different. It is computed for each permutation,
    because folds are exchangeable, and their deviations from the mean of their own corpus are not.
    """
    # Subtracting the overall mean changes no difference and prevents cancellation in the squares.
    sums = sums - sums.sum(dim=0) / tokens.sum() * tokens[:, None]
    squares, products = sums.square(), sums * tokens[:, None]
    values, variances = [], []
    for selected in (labels, 1 - labels):
        total, count = (selected @ tokens)[:, None], selected.sum(dim=1, keepdim=True)
        mean = selected @ sums / total
        shift = torch.zeros_like(mean) if deviations is None else selected @ deviations / total
        # The sum of the squares of sums - weight * tokens - 2 * shift * deviations, the first-order contribution of a
        # fold to the value.
        value, weight = mean - shift**2, mean - 2 * shift**2
        residual = selected @ squares - 2 * weight * (selected @ products) + weight**2 * (selected @ tokens**2)[:, None]
        if deviations is not None:
            residual += 4 * shift**2 * (selected @ deviations**2) - 4 * shift * (selected @ (sums * deviations))
            residual += 4 * shift * weight * (selected @ (deviations * tokens[:, None]))
        values.append(value)
        variances.append(residual.clamp(min=0) / total**2 * count / (count - 1))
    difference = values[0] - values[1]
    return (difference / (variances[0] + variances[1]).sqrt()).masked_fill(difference == 0, 0)
