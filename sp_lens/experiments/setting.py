"""Where an experiment runs: a model, a scale, the corpora that it reads, and the folder of its runs."""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sp_lens.data.batching import MIN_FOLDS, documents_in
from sp_lens.data.corpora import load_corpora
from sp_lens.data.image_registry import LOCAL
from sp_lens.data.images import load_images, split_classes
from sp_lens.evaluation.bootstrap import DocumentHits, document_hits
from sp_lens.experiments.registry import SCALES, Experiment, Pair, Scale
from sp_lens.interventions.ablation import ablate
from sp_lens.models.hooks import model_name
from sp_lens.neurons.mask import NeuronMask
from sp_lens.pruning.cost import estimate_passes, passes_of
from sp_lens.pruning.prune import prune
from sp_lens.pruning.run import PruneRun
from sp_lens.statistics.collect import collect
from sp_lens.typing import Split

logger = logging.getLogger(__name__)

# Of documents, in the figures of neurons.
BLOCKS = 20


@dataclass(frozen=True, eq=False)
class Setting:
    """One experiment on one model.

    Attributes:
        experiment: which.
        model: a bridge or a `HookedTransformer`.
        scale: how much is read and pruned.
        out: folder of all results.
        offline: read what is on this machine.
        spare_sinks: never prune the neurons of attention sinks, `ActivationStats.sinks`.
        progress: show bars.
    """

    experiment: Experiment
    model: Any
    scale: Scale
    out: Path
    offline: bool
    spare_sinks: bool
    progress: bool

    @property
    def name(self) -> str:
        """Of the model."""
        return model_name(self.model)

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """What is forgotten and kept, of what can be read here."""
        pairs = (self.offline and self.experiment.offline_pairs) or self.experiment.pairs
        return pairs[: self.scale.pairs]

    @property
    def steps(self) -> dict[str, Any]:
        """The fraction of a step and how many, as `prune` takes them."""
        if self.scale.share == SCALES["paper"].share and self.experiment.released:
            fraction, steps = self.experiment.released
            return {"fraction": fraction, "steps": min(steps, self.scale.steps)}
        return {"fraction": self.scale.share / self.scale.steps, "steps": self.scale.steps}

    def corpora(self, pair: Pair) -> dict[str, Any]:
        """The four corpora of a pair, as `prune` names them."""
        if not self.experiment.images:
            return dict(load_corpora(*pair, self.model, tokens=self.scale.tokens, offline=self.offline))
        return {
            "forget": self.images(pair.forget, "collect"),
            "retain": self.images(pair.retain, "collect"),
            "eval_forget": self.images(pair.forget, "evaluate"),
            "eval_retain": self.images(pair.retain, "evaluate"),
        }

    def images(self, name: str, split: Split) -> Any:
        """Images by name and classes: as many as the scale says, or all that there are."""
        source, classes = split_classes(name)
        options: dict[str, Any] = {**classes, "split": split, "offline": self.offline}
        if source not in LOCAL and not self.offline:
            return load_images(source, self.model, **options, images=self.scale.images)
        there = len(load_images(source, self.model, **options))
        return load_images(source, self.model, **options, images=min(there, self.scale.images))

    def run(self, pair: Pair, label: str, corpora: Mapping[str, Any], **options: Any) -> PruneRun:
        """A pruning run, which is resumed or read where it has been done, by this or another experiment."""
        options |= self.protected(pair, corpora)
        return prune(self.model, **corpora, out=self._run_folder(pair, label), progress=self.progress, **options)

    def protected(self, pair: Pair, corpora: Mapping[str, Any]) -> dict[str, NeuronMask]:
        """The sinks on what is retained, as `prune` takes them, found once; nothing where they are not spared."""
        if not self.spare_sinks:
            return {}
        file = self._run_folder(pair, "sinks") / "mask.safetensors"
        if not file.exists():
            collect(self.model, corpora["retain"], progress=self.progress).sinks().save(file)
        return {"protect": NeuronMask.load(file)}

    def hits(self, pair: Pair, label: str, corpora: Mapping[str, Any], run: PruneRun) -> DocumentHits:
        """By document, what the model has right at the run's best step and before it."""
        file = self._run_folder(pair, label) / "documents.safetensors"
        if file.exists() and "forget_nats_after" in (hits := DocumentHits.load(file)).tensors:  # older ones have none
            return hits
        pruned = ablate(self.model, run.mask_at(run.best_step))
        hits = document_hits(self.model, corpora, pruned, progress=self.progress)
        hits.save(file)
        return hits

    def folds(self, *corpora: Any) -> int | None:
        """Into how many folds documents are dealt, of each corpus as many; None where they are too few."""
        fewest = min(len(documents_in(self.model, corpus)) for corpus in corpora)
        return min(BLOCKS, fewest) if fewest >= MIN_FOLDS else None

    def _run_folder(self, pair: Pair, label: str) -> Path:
        read = self.scale.images if self.experiment.images else self.scale.tokens
        steps = f"{self.steps['steps']}-steps-of-{100 * self.steps['fraction']:.3g}-percent"
        what = f"{self.scale.name}-{read}-{steps}" + "-sinks-spared" * self.spare_sinks + "-offline" * self.offline
        return self.out / "runs" / self.name / what / plain(f"{pair.forget}-{pair.retain}") / plain(label)

    def passes(self, options: Mapping[str, Any]) -> Counter[str]:
        """How often a run with these options reads each of its corpora, evaluation by document included."""
        collecting = {key: options[key] for key in ("metric", "recollect") if key in options}
        return passes_of(self.steps["steps"], **collecting) + Counter(eval_forget=2, eval_retain=2)

    def tell_time(self, corpora: Mapping[str, Any], passes: Iterable[Counter[str]]) -> None:
        """Log what so many passes over the four corpora, of one run and the next, will take together."""
        told = estimate_passes(self.model, corpora, sum(passes, Counter()))
        logger.info("%s on %s: %s; what is done already is not done again", self.experiment.name, self.name, told)


def plain(name: str) -> str:
    """A name as part of a path."""
    return re.sub(r"[^\w.+-]+", "-", name)
