"""The options of a pruning run: validation, the settings that a run records, and when a run ends."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sp_lens.errors import SpLensError, check_choice, check_positive
from sp_lens.neurons.layout import Layout
from sp_lens.neurons.mask import NeuronMask, pick_count
from sp_lens.scoring.score import eps_by_site
from sp_lens.typing import (
    AGGREGATES,
    BATCH_TOKENS,
    EPS,
    SCORE_METRICS,
    SITES,
    UNITS,
    Aggregate,
    AnySite,
    ScoreMetric,
    Site,
    Task,
    Unit,
    sites_of,
)


@dataclass(frozen=True)
class PruneConfig:
    """Options of Algorithm 1. The arguments of `prune` have the same names and are described there.

    Raises:
        SpLensError: If an option does not have an allowed value, or whole heads are to be pruned at the site "mlp".
    """

    site: AnySite = "mlp"
    unit: Unit = "neuron"
    metric: ScoreMetric = "abs"
    aggregate: Aggregate = "mean"
    fraction: float = 0.02
    steps: int = 50
    recollect: bool = True
    eps: float | Mapping[Site, float] = field(default_factory=lambda: EPS)
    seed: int = 0
    batch_tokens: int = BATCH_TOKENS
    min_retain_top1: float | None = None
    max_forget_top1: float | None = None

    def __post_init__(self) -> None:
        check_choice("site", self.site, (*SITES, "both"))
        check_choice("unit", self.unit, UNITS)
        check_choice("metric", self.metric, SCORE_METRICS)
        check_choice("aggregate", self.aggregate, AGGREGATES)
        if self.unit == "head" and self.site != "attn":
            raise SpLensError(f'unit="head" needs site="attn", not site={self.site!r}: only attention has heads.')
        check_positive(steps=self.steps)
        object.__setattr__(self, "eps", eps_by_site(self.eps))

    def select(self, layout: Layout) -> Layout:
        """Return the neuron groups of a model that can be pruned: those of the configured site, in model order.

        Raises:
            SpLensError: If the model has no neurons at the site.
        """
        groups = {group for site in sites_of(self.site) for group in layout.select(site)}
        return Layout(tuple(group for group in layout if group in groups))

    def require_enough_neurons(self, protected: NeuronMask) -> None:
        """Raise SpLensError if all unprotected neurons (heads) are pruned before the last step.

        Args:
            protected: Neurons that must not be pruned, over the groups of the run.
        """
        for site in sites_of(self.site):
            part = protected.select(site)
            size = {group.name: group.d_head if self.unit == "head" else 1 for group in part.layout}
            total = sum(group.width // size[group.name] for group in part.layout)
            available = total - sum(int(part[name].sum()) // size[name] for name in part)
            per_step = pick_count(self.fraction, total, f"{site} {self.unit}s")
            if (self.steps - 1) * per_step >= available:
                raise SpLensError(
                    f"{self.steps} steps of {self.fraction:.3g} leave nothing to prune after step "
                    f"{-(-available // per_step)}: by then all {available} unprotected {site} {self.unit}s are pruned. "
                    "Use fewer steps or a smaller fraction."
                )

    def settings(self, task: Task) -> dict[str, Any]:
        """Return the options that determine what a step computes, as a run records them and is identified by them.

        The number of steps and the stopping rules are not among them, so a run can be continued with others. An option
        that has no effect (the aggregate without heads, the seed if nothing is random) is None.

        Args:
            task: Task of the model. The evaluation of a masked language model depends on the seed.
        """
        return {
            "site": self.site,
            "unit": self.unit,
            "metric": self.metric,
            "aggregate": self.aggregate if self.unit == "head" else None,
            "fraction": self.fraction,
            "recollect": self.recollect,
            "eps": self.eps,
            "seed": self.seed if self.metric == "random" or task == "masked" else None,
        }

    def is_last(self, record: Mapping[str, Any]) -> bool:
        """Return whether a run ends with this record: after `steps` steps, or when a stopping rule applies."""
        floor = -math.inf if self.min_retain_top1 is None else self.min_retain_top1
        target = -math.inf if self.max_forget_top1 is None else self.max_forget_top1
        return record["step"] == self.steps or record["retain_top1"] < floor or record["forget_top1"] <= target
