"""Algorithm 1 of arXiv 2403.01267, its steps: collect, score, prune the top, evaluate; again."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch

from sp_lens.evaluation.evaluate import evaluate_sides
from sp_lens.interventions.compaction import pruned
from sp_lens.neurons.layout import Layout
from sp_lens.neurons.mask import NeuronMask
from sp_lens.neurons.values import HeadValues, NeuronValues
from sp_lens.pruning.run import PruneRun
from sp_lens.scoring.score import random_values, score
from sp_lens.statistics.collect import collect
from sp_lens.typing import Aggregate, AnySite, Metric, ScoreMetric, Site, Unit, sites_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Algorithm:
    """Algorithm 1 with what a call of `prune` asks for."""

    model: Any
    corpora: Mapping[str, Any]
    groups: Layout
    site: AnySite
    unit: Unit
    metric: ScoreMetric
    aggregate: Aggregate
    fraction: float
    recollect: bool
    eps: float | Mapping[Site, float]
    seed: int
    protected: NeuronMask
    batch_tokens: int

    def unpruned(self, settings: Mapping[str, Any]) -> PruneRun:
        """The run before its first step."""
        empty = {group.name: torch.zeros(group.width, dtype=torch.int32) for group in self.groups}
        return PruneRun(self.groups, empty, [self._record(NeuronMask.from_neurons(self.groups, {}), step=0)], settings)

    def steps_after(self, run: PruneRun, is_last: Callable[[Mapping[str, Any]], bool]) -> Iterator[PruneRun]:
        """The run after each further step."""
        values, sinks = None, NeuronMask.from_neurons(self.groups, {})
        while not is_last(run.records[-1]):
            if self.metric == "random":
                values = random_values(self.groups, self.seed)
                values = values.heads(self.aggregate) if self.unit == "head" else values
            elif self.recollect:
                values, sinks = self._scored(run.mask)
            elif values is None:
                values, sinks = self._scored(NeuronMask.from_neurons(self.groups, {}))
            new = _top(values, self.fraction, self.site, run.mask | self.protected)
            step = run.steps + 1
            _warn_of_sinks(new, sinks, step=step)
            pruned_at = {name: torch.where(new[name], step, at) for name, at in run.pruned_at.items()}
            records = [*run.records, self._record(run.mask | new, step=step)]
            run = PruneRun(run.layout, pruned_at, records, run.settings)
            yield run

    def _record(self, mask: NeuronMask, *, step: int) -> dict[str, Any]:
        """The pruned model evaluated."""
        with pruned(self.model, mask):
            sides = evaluate_sides(
                self.model, self.corpora, seed=self.seed, batch_tokens=self.batch_tokens, progress=False
            )
        return {"step": step, "pruned": mask.count(), "share": mask.share(), **sides}

    def _scored(self, mask: NeuronMask) -> tuple[NeuronValues | HeadValues, NeuronMask]:
        """The scores of the pruned model's neurons (heads), and its attention sinks."""
        with pruned(self.model, mask) as whole:
            stats = [
                whole(collect(self.model, self.corpora[side], batch_tokens=self.batch_tokens, progress=False))
                for side in ("forget", "retain")
            ]
        sinks = stats[0].merge(stats[1]).sinks()
        if self.unit == "neuron":
            return score(*stats, metric=self.metric, eps=self.eps), sinks
        # Definition 3 before Definition 2: the importance of a head is of its neurons' importances.
        metric = cast(Metric, self.metric)
        return score(*(side.importance(metric).heads(self.aggregate) for side in stats), eps=self.eps), sinks


def _top(values: NeuronValues | HeadValues, fraction: float, site: AnySite, pruned: NeuronMask) -> NeuronMask:
    """The next neurons to go, as a mask over all groups of the run."""
    if isinstance(values, HeadValues):
        return values.top(fraction, exclude=pruned)
    tensors: dict[str, torch.Tensor] = {}
    for one in sites_of(site):
        tensors |= values.top(fraction, site=one, exclude=pruned).tensors
    return NeuronMask(pruned.layout, tensors)


def _warn_of_sinks(new: NeuronMask, sinks: NeuronMask, *, step: int) -> None:
    if count := sum(int((new[name] & sinks[name]).sum()) for name in new if name in sinks):
        logger.warning(
            "step %d prunes %d neurons that are at their strongest on the BOS or the first token of a row, attention "
            "sinks that all text needs: collect(model, retain).sinks() has them, prune(..., protect=...) spares them",
            step,
            count,
        )
