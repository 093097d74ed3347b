"""Compute the score of every neuron or attention head from its importance on two corpora (Definition 2).

    Score(n) = Importance(D_forget, n) / (Importance(D_retain, n) + eps)

`importance_ratio` is this formula on tensors, and `score` applies it to collected statistics or importances.
`random_values` replaces the scores if the metric is "random", the control.
"""

from collections.abc import Mapping
from typing import Any, TypeVar, overload

import torch
from jaxtyping import Float

from sp_lens.errors import SpLensError, check_choice
from sp_lens.neurons.layout import Layout
from sp_lens.neurons.values import HeadValues, NeuronValues
from sp_lens.statistics.activation_stats import ActivationStats
from sp_lens.typing import EPS, SCORE_METRICS, ScoreMetric, Site

Values = TypeVar("Values", NeuronValues, HeadValues)


@overload
def score(
    forget: ActivationStats,
    retain: ActivationStats,
    *,
    metric: ScoreMetric = ...,
    eps: float | Mapping[Site, float] = ...,
    seed: int = ...,
) -> NeuronValues: ...
@overload
def score(forget: Values, retain: Values, *, eps: float | Mapping[Site, float] = ...) -> Values: ...


def score(
    forget: Any, retain: Any, *, metric: Any = "abs", eps: float | Mapping[Site, float] = EPS, seed: int = 0
) -> Any:
    """Score every neuron or attention head by how specific it is to the forget corpus.

    This is Definition 2 of arXiv 2403.01267:

        Score(n) = Importance(D_forget, n) / (Importance(D_retain, n) + eps)

    Args:
        forget: Statistics of the forget corpus, as `collect` returns them. Alternatively, the importances of neurons
            (`NeuronValues`) or of attention heads (`HeadValues`) on that corpus.
        retain: The same for the retain corpus.
        metric: Importance metric: "abs", "rms", "std" or "freq" (Definition 1). "random" replaces the scores by uniform
            random numbers, as a control. The metric applies to statistics only; importances are used as they are.
        eps: Constant added to the retain importance, which keeps the score finite where that importance is 0. Either
            one number or one number per site. The defaults are those of the released experiments: 1e-3 for "mlp" and
            1e-4 for "attn".
        seed: Seed of the random scores of the metric "random".

    Returns:
        Scores without a unit, as `NeuronValues` or `HeadValues`. Their `about` records the metric and eps.
        A negative importance (a unit whose ablation lowers the loss) counts as 0.

    Raises:
        SpLensError: If the metric is unknown, eps is negative, the two arguments are of different types, or they
            come from different models or count different token positions.

    Example:
        >>> hook = "blocks.0.mlp.hook_post"
        >>> forget, retain = (
        ...     ActivationStats.from_cache({hook: torch.tensor([[[2.0, 1.0, 0.0]]])}),
        ...     ActivationStats.from_cache({hook: torch.tensor([[[1.0, 4.0, 0.0]]])}),
        ... )
        >>> score(forget, retain, metric="abs", eps=0)[hook].tolist()
        [2.0, 0.25, 0.0]
    """
    by_site = eps_by_site(eps)
    _require_comparable(forget, retain)
    if isinstance(forget, ActivationStats):
        check_choice("metric", metric, SCORE_METRICS)
        if metric == "random":
            return random_values(forget.layout, seed, **forget.about)
        return score(forget.importance(metric), retain.importance(metric), eps=by_site)
    tensors = {
        group.name: importance_ratio(forget[group.name], retain[group.name], by_site[group.site])
        for group in forget.layout
    }
    corpora = [forget.about.get("corpora"), retain.about.get("corpora")]
    return type(forget)(forget.layout, tensors, {**forget.about, "corpora": corpora, "eps": by_site})


def importance_ratio(
    forget: Float[torch.Tensor, " unit"], retain: Float[torch.Tensor, " unit"], eps: float
) -> Float[torch.Tensor, " unit"]:
    """Compute forget / (retain + eps) elementwise. Negative importances count as 0, and 0 / 0 is 0."""
    numerator, denominator = forget.clamp(min=0), retain.clamp(min=0) + eps
    # 0 / 0 occurs if eps is 0 and a neuron fires on neither corpus; such a neuron is not specific to the forget corpus.
    return (numerator / denominator).masked_fill((numerator == 0) & (denominator == 0), 0)


def eps_by_site(eps: float | Mapping[Site, float]) -> dict[Site, float]:
    """Return eps for every site, given one number for all sites or a mapping that overrides the default of some.

    Raises:
        SpLensError: If a number is negative or a site is unknown.
    """
    by_site: dict[Site, float] = {**EPS, **eps} if isinstance(eps, Mapping) else dict.fromkeys(EPS, eps)
    if by_site.keys() != EPS.keys() or not all(number >= 0 for number in by_site.values()):
        raise SpLensError(
            f"eps is {eps}: expected numbers of 0 or more, either one for all sites or a mapping from the sites "
            f"{tuple(EPS)}."
        )
    return by_site


def random_values(layout: Layout, seed: int, **about: Any) -> NeuronValues:
    """Draw a uniform random number for every neuron, as a control to compare scores with."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {group.name: torch.rand(group.width, generator=generator, dtype=torch.float64) for group in layout}
    return NeuronValues(layout, tensors, {**about, "metric": "random", "seed": seed})


def _require_comparable(forget: Any, retain: Any) -> None:
    """Raise SpLensError unless both are statistics, or importances of one type and metric, of the same model."""
    if not isinstance(forget, ActivationStats | NeuronValues | HeadValues) or type(forget) is not type(retain):
        raise SpLensError(
            "forget and retain must both be ActivationStats, both NeuronValues or both HeadValues, but they are "
            f"{type(forget).__name__} and {type(retain).__name__}."
        )
    if isinstance(forget, ActivationStats):
        forget.require_comparable(retain)
        return
    forget.layout.require_same(retain.layout, "the retain importances")
    for key in ("model", "positions", "metric", "aggregate"):
        forget_value, retain_value = forget.about.get(key), retain.about.get(key)
        if forget_value and retain_value and forget_value != retain_value:
            raise SpLensError(
                f"the importances differ in their {key}: {forget_value!r} for forget and {retain_value!r} for retain. "
                "Compute both in the same way."
            )
