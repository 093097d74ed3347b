"""The delete-one-block jackknife: how much an importance would differ on other documents. No model in here."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from jaxtyping import Float

from sp_lens.moments import Moments


def leave_one_out(blocks: Sequence[Moments]) -> list[Moments]:
    """For each block, the moments of all the others together; two or more blocks.

    Merged, never subtracted, so nothing is lost to cancellation: what is before a block with what is behind it.
    """
    before = [None, *accumulate(blocks[:-1], Moments.merge)]
    behind = [*list(accumulate(reversed(blocks[1:]), Moments.merge))[::-1], None]
    return [one.merge(two) if one and two else one or two for one, two in zip(before, behind, strict=True)]  # type: ignore[misc]


def standard_errors(blocks: Sequence[Moments], metric: str) -> Float[torch.Tensor, " neuron"]:
    """The standard error of an importance: sqrt((B - 1) / B * sum over blocks of (left out - their mean)^2).

    Tukey 1958; blocks of documents, not tokens or single documents, are left out (Kott 2001, "The delete-a-group
    jackknife"): tokens of a document are alike, and blocks are few enough to keep.
    """
    left = torch.stack([getattr(others, metric)() for others in leave_one_out(blocks)])
    return ((left - left.mean(dim=0)).square().sum(dim=0) * (len(left) - 1) / len(left)).sqrt()
