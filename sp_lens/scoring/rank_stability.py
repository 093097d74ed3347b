"""Measure how stable the ranking of the neurons is as the number of tokens grows."""

from collections.abc import Iterator
from itertools import accumulate

import numpy as np
import pandas as pd
import torch

from sp_lens.errors import SpLensError, check_at_least
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
    """Measure how much of the top of the ranking is the same when fewer tokens, or other documents, are used.

    The folds of documents are added one after another, in several random orders. After each fold, the neurons with the
    highest scores are compared in two ways:

    - With those of all folds: what would change if collection stopped early. All folds include the first k, so this
      fraction reaches 1 at the last fold even if the ranking depends on the documents.
    - With those of the last k folds, which are other documents: the fraction of the ranking that is a property of the
      neurons and not of the sample of documents.

    Args:
        forget: Statistics with folds, `collect(model, corpus, folds=20)`.
        retain: The same for the retain corpus, with as many folds.
        metric: Importance metric: "abs", "rms", "std" or "freq" (Definition 1).
        site: Neurons to rank, "mlp" or "attn".
        fraction: Fraction of all neurons of the site that form the top, as in one step of `prune`.
        orders: Number of random orders of the folds.
        seed: Seed of the random orders.

    Returns:
        One row per order and number of folds, with the columns order, folds, tokens (mean of the two corpora),
        with_all and with_others. The last two are the shared fraction of the top, compared with all folds and with
        other documents. `with_others` is NaN for more than half of the folds. Two random sets of neurons would share
        `fraction`.

    Raises:
        SpLensError: If the statistics have no folds, have different numbers of folds or come from different models,
            the metric or site is unknown, there is no order, or the fraction selects no neuron.
    """
    require_folds(forget, retain)
    folds = len(forget.folds)
    if len(retain.folds) != folds:
        raise SpLensError(
            f"forget has {folds} folds and retain has {len(retain.folds)}: collect both corpora with the same number."
        )
    check_at_least(1, orders=orders)
    corpora = [stats.part(stats.layout.select(site)) for stats in (forget, retain)]

    def growing_tops(order: np.ndarray) -> Iterator[tuple[float, NeuronMask]]:
        """Yield the tokens per corpus and the top of the ranking after each fold of the order."""
        merged = [accumulate([stats.folds[fold] for fold in order], ActivationStats.merge) for stats in corpora]
        for forget_part, retain_part in zip(*merged, strict=True):
            scores = score(forget_part, retain_part, metric=metric, eps=EPS)
            yield (forget_part.count + retain_part.count) / 2, scores.top(fraction, site=site)

    generator = np.random.default_rng(seed)
    rows = []
    for number in range(orders):
        order = generator.permutation(folds)
        tops = list(growing_tops(order))
        tops_of_others = [mask for _, mask in growing_tops(order[::-1][: folds // 2])]
        _, top_of_all = tops[-1]
        for k, (tokens, top) in enumerate(tops, start=1):
            with_others = _shared_fraction(top, tops_of_others[k - 1]) if k <= len(tops_of_others) else np.nan
            rows.append((number, k, tokens, _shared_fraction(top, top_of_all), with_others))
    return pd.DataFrame(rows, columns=["order", "folds", "tokens", "with_all", "with_others"])


def _shared_fraction(mask: NeuronMask, other: NeuronMask) -> float:
    return sum(int(torch.sum(mask[name] & other[name])) for name in mask) / mask.count()
