"""Definitions 2 and 3 of arXiv 2403.01267: importances -> scores -> masks. No model in here."""

from collections.abc import Mapping
from typing import Any, TypeVar, overload

import torch

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
    """Definition 2: Importance(forget, n) / (Importance(retain, n) + eps) of every neuron or head.

    Args:
        forget: statistics over the forget corpus; or importances, of neurons or of heads.
        retain: the same over the retain corpus.
        metric: "abs", "rms", "std" or "freq" (Definition 1), or "random", the control: uniform numbers.
            Only with statistics; importances are taken as they are.
        eps: added to the retain importance, one number or one by site. The default follows the released
            experiments: 1e-3 for mlp, 1e-4 for attn.
        seed: of the metric "random".

    Returns:
        Scores without unit, `NeuronValues` or `HeadValues`; metric and eps are recorded in `.about`.
        A negative importance (an ablation that lowers the loss) counts as 0: that neuron does nothing.

    Raises:
        SpLensError: for an unknown metric, a negative eps, or statistics of different models.
    """
    by_site = eps_by_site(eps)
    if not isinstance(forget, ActivationStats):
        _check_alike(forget, retain)
        return _ratio(forget, retain, by_site)
    check_choice("metric", metric, SCORE_METRICS)
    if not isinstance(retain, ActivationStats):
        raise SpLensError(f"forget is ActivationStats and retain is {type(retain).__name__}: give both alike.")
    forget.require_same_model(retain)
    if metric == "random":
        return random_values(forget.layout, seed, **forget.about)
    return _ratio(forget.importance(metric), retain.importance(metric), by_site)


def eps_by_site(eps: float | Mapping[Site, float]) -> dict[Site, float]:
    """One eps a site, from one number or a mapping that leaves sites at their default.

    Raises:
        SpLensError: for a negative number or an unknown site.
    """
    by_site: dict[Site, float] = {**EPS, **eps} if isinstance(eps, Mapping) else dict.fromkeys(EPS, eps)
    if by_site.keys() != EPS.keys() or not all(number >= 0 for number in by_site.values()):
        raise SpLensError(f"eps {eps}: expected numbers of 0 or more, one for each of {tuple(EPS)}.")
    return by_site


def random_values(layout: Layout, seed: int, **about: Any) -> NeuronValues:
    """Uniform random numbers for every neuron, the control that says what a score is worth."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {group.name: torch.rand(group.width, generator=generator, dtype=torch.float64) for group in layout}
    return NeuronValues(layout, tensors, {**about, "metric": "random", "seed": seed})


def _check_alike(forget: Any, retain: Any) -> None:
    """Refuse importances of other kinds, metrics or models than each other."""
    if not isinstance(forget, NeuronValues | HeadValues) or type(forget) is not type(retain):
        raise SpLensError(
            f"expected two ActivationStats, NeuronValues or HeadValues, got {type(forget).__name__} and "
            f"{type(retain).__name__}."
        )
    forget.layout.require_same(retain.layout, "the retain importances")
    for key in ("model", "metric", "aggregate"):
        here, there = forget.about.get(key), retain.about.get(key)
        if here and there and here != there:
            raise SpLensError(f"these importances differ in their {key}, {here!r} and {there!r}: make both alike.")


def _ratio(forget: Values, retain: Values, eps: Mapping[Site, float]) -> Values:
    tensors = {}
    for group in forget.layout:
        above = forget[group.name].clamp(min=0)
        below = retain[group.name].clamp(min=0) + eps[group.site]
        # 0 / 0 where eps is 0 and a neuron never fires on either side: it is no more forget than retain.
        tensors[group.name] = (above / below).masked_fill((above == 0) & (below == 0), 0)
    about = {**forget.about, "corpora": [forget.about.get("corpora"), retain.about.get("corpora")], "eps": dict(eps)}
    return type(forget)(forget.layout, tensors, about)
