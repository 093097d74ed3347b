"""How many tokens are enough: how far the top of the ranking stays the same as documents come in."""

from collections.abc import Iterator
from itertools import accumulate

import numpy as np
import pandas as pd
import torch

from sp_lens.errors import SpLensError
from sp_lens.neurons.mask import NeuronMask
from sp_lens.scoring.score import score
from sp_lens.scoring.uncertainty import require_folds
from sp_lens.statistics.activation_stats import ActivationStats
from sp_lens.typing import EPS, Metric, Site


def rank_stability(
    forget: ActivationStats,
    retain: ActivationStats,
    *,
    metric: Metric = "abs",
    site: Site = "mlp",
    fraction: float = 0.02,
    orders: int = 20,
    seed: int = 0,
) -> pd.DataFrame:
    """How much of the top by score is the same, with few tokens and with all, and on two samples of other documents.

    Folds of documents come in one after another, in several random orders. The top of the first k folds is compared
    with the top of all of them: what stopping early would have changed. All folds are in both, so that with k of all
    it is 1 whatever there is. So it is compared too with the top of the last k, other documents: as far as that is 1,
    the ranking is the neurons' and not the documents'.

    Args:
        forget: statistics by folds, `collect(model, corpus, folds=20)`.
        retain: the same of the retain corpus, in as many folds.
        metric: "abs", "rms", "std" or "freq" (Definition 1).
        site: "mlp" or "attn".
        fraction: share of all neurons of the site, as a step of `prune` takes.
        orders: how many random orders.
        seed: of the orders.

    Returns:
        One row an order and number of folds: order, folds, tokens (of each corpus, the mean of the two), `with_all`
        and `with_others`, the share of the top that is the same. `with_others` is missing beyond half of the folds.
        Neurons taken at random would share `fraction`.

    Raises:
        SpLensError: for statistics without folds, in different numbers of them, or of different models, an unknown
            metric or site, no order, and a fraction that takes no neuron.
    """
    require_folds(forget, retain)
    folds = len(forget.folds)
    if len(retain.folds) != folds:
        raise SpLensError(f"{folds} folds and {len(retain.folds)}: collect both corpora with as many.")
    if orders < 1:
        raise SpLensError(f"orders={orders}: expected 1 or more.")

    def tops(order: np.ndarray) -> Iterator[tuple[float, NeuronMask]]:
        """As folds come in: tokens of each corpus so far, and the top."""
        growing = [accumulate([side.folds[place] for place in order], ActivationStats.merge) for side in both]
        for sides in zip(*growing, strict=True):
            scores = score(*sides, metric=metric, eps=EPS)
            yield (sides[0].count + sides[1].count) / 2, scores.top(fraction, site=site)

    both = [side.part(side.layout.select(site)) for side in (forget, retain)]
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(orders):
        order = generator.permutation(folds)
        first = list(tops(order))
        others = [mask for _, mask in tops(order[::-1][: folds // 2])]
        for k, (tokens, mask) in enumerate(first, start=1):
            with_others = _shared(mask, others[k - 1]) if k <= len(others) else np.nan
            rows.append((number, k, tokens, _shared(mask, first[-1][1]), with_others))
    return pd.DataFrame(rows, columns=["order", "folds", "tokens", "with_all", "with_others"])


def _shared(one: NeuronMask, other: NeuronMask) -> float:
    return sum(int(torch.sum(one[name] & other[name])) for name in one) / one.count()
