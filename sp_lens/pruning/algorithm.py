"""Algorithm 1 of arXiv 2403.01267: collect, score, prune the neurons with the highest scores, evaluate, and repeat."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch

from sp_lens.data.corpora import Corpora
from sp_lens.evaluation.document_hits import StepDocuments
from sp_lens.evaluation.evaluate import evaluate_sides
from sp_lens.interventions.compaction import pruned
from sp_lens.neurons.layout import Layout
from sp_lens.neurons.mask import NeuronMask
from sp_lens.neurons.values import HeadValues, NeuronValues
from sp_lens.pruning.config import PruneConfig
from sp_lens.pruning.run import PruneRun
from sp_lens.scoring.score import random_values, score
from sp_lens.statistics.collect import collect
from sp_lens.typing import SIDES, Metric, sites_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Algorithm:
    """Algorithm 1 for one model, its corpora and a configuration.

    Attributes:
        model: A `TransformerBridge` or a `HookedTransformer`. It is not changed.
        corpora: The four corpora.
        config: Options of the run.
        layout: Neuron groups that can be pruned.
        protected: Neurons of these groups that are never pruned.
    """

    model: Any
    corpora: Corpora
    config: PruneConfig
    layout: Layout
    protected: NeuronMask

    def start(self, settings: Mapping[str, Any]) -> PruneRun:
        """Evaluate the unpruned model and return the run with step 0 only."""
        never = {group.name: torch.zeros(group.width, dtype=torch.int32) for group in self.layout}
        record, documents = self._evaluate(self._no_neurons, step=0)
        return PruneRun(self.layout, never, [record], settings, [documents])

    def steps(self, run: PruneRun) -> Iterator[PruneRun]:
        """Continue a run until its last step, and yield the run after each step."""
        ranking, sinks = None, self._no_neurons
        while not self.config.is_last(run.records[-1]):
            step = run.steps + 1
            # Collect statistics on both corpora, with the neurons pruned so far ablated, and score all neurons.
            if ranking is None or self.config.recollect:
                ranking, sinks = self._rank(run.mask if self.config.recollect else self._no_neurons)
            # Prune the neurons with the highest scores among those that are left.
            new = self._top(ranking, exclude=run.mask | self.protected)
            _warn_of_sinks(new, sinks, step=step)
            pruned_at = {name: torch.where(new[name], step, at) for name, at in run.pruned_at.items()}
            # Evaluate the pruned model on the held-out corpora.
            record, of_step = self._evaluate(run.mask | new, step=step)
            documents = [*run.documents, of_step] if run.documents else ()  # runs of earlier versions have none
            run = PruneRun(run.layout, pruned_at, [*run.records, record], run.settings, documents)
            yield run

    def _rank(self, mask: NeuronMask) -> tuple[NeuronValues | HeadValues, NeuronMask]:
        """Return the scores of the neurons (heads) of the pruned model, and its attention sinks."""
        config = self.config
        if config.metric == "random":
            values = random_values(self.layout, config.seed)
            return (values.heads(config.aggregate) if config.unit == "head" else values), self._no_neurons
        with pruned(self.model, mask) as for_all_neurons:
            forget, retain = (
                for_all_neurons(
                    collect(self.model, self.corpora[side], batch_tokens=config.batch_tokens, progress=False)
                )
                for side in SIDES
            )
        sinks = forget.merge(retain).sinks()
        if config.unit == "neuron":
            return score(forget, retain, metric=config.metric, eps=config.eps), sinks
        # Definition 3 comes before Definition 2: the importances of a head's neurons are aggregated, then divided.
        metric = cast(Metric, config.metric)
        heads = (stats.importance(metric).heads(config.aggregate) for stats in (forget, retain))
        return score(*heads, eps=config.eps), sinks

    def _top(self, ranking: NeuronValues | HeadValues, *, exclude: NeuronMask) -> NeuronMask:
        """Return the neurons to prune in this step: the fraction with the highest scores, at each site of the run."""
        if isinstance(ranking, HeadValues):
            return ranking.top(self.config.fraction, exclude=exclude)
        tensors: dict[str, torch.Tensor] = {}
        for site in sites_of(self.config.site):
            tensors |= ranking.top(self.config.fraction, site=site, exclude=exclude).tensors
        return NeuronMask(self.layout, tensors)

    def _evaluate(self, mask: NeuronMask, *, step: int) -> tuple[dict[str, Any], StepDocuments]:
        """Return the record of a step, the pruned model evaluated on both held-out corpora, and their documents."""
        with pruned(self.model, mask):
            sides, documents = evaluate_sides(
                self.model,
                self.corpora,
                seed=self.config.seed,
                batch_tokens=self.config.batch_tokens,
                progress=False,
            )
        return {"step": step, "pruned": mask.count(), "share": mask.share(), **sides}, documents

    @property
    def _no_neurons(self) -> NeuronMask:
        return NeuronMask.from_neurons(self.layout, {})


def _warn_of_sinks(new: NeuronMask, sinks: NeuronMask, *, step: int) -> None:
    if count := sum(int((new[name] & sinks[name]).sum()) for name in new if name in sinks):
        logger.warning(
            "Step %d prunes %d neurons with their strongest activation at the BOS token or the first token of a row. "
            "These are attention sinks that all text needs. Pass protect=collect(model, retain).sinks() to keep them.",
            step,
            count,
        )
