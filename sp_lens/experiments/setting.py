"""The setting of an experiment: model, scale, corpora, and the folders in which its pruning runs are kept."""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sp_lens.data.batching import MIN_FOLDS, documents_in
from sp_lens.data.corpora import Corpora, load_corpora
from sp_lens.data.images import load_images, split_classes
from sp_lens.data.sources.image_registry import LOCAL
from sp_lens.experiments.registry import SCALES, Experiment, Pair, Scale
from sp_lens.models.hooks import model_name
from sp_lens.neurons.mask import NeuronMask
from sp_lens.pruning.cost import estimate_passes, passes_of
from sp_lens.pruning.prune import prune
from sp_lens.pruning.run import PruneRun
from sp_lens.statistics.collect import collect
from sp_lens.typing import Split

logger = logging.getLogger(__name__)

FOLDS = 20  # of the smallest corpus, for the tests and intervals of single neurons


@dataclass(frozen=True, eq=False)
class Setting:
    """One experiment on one model.

    Attributes:
        experiment: The experiment.
        model: A `TransformerBridge` or a `HookedTransformer`.
        scale: Number of tokens, images and pruning steps.
        out: Folder of all results.
        offline: Whether to read the text and images of this machine instead of the Hub's.
        spare_sinks: Whether to protect the neurons of attention sinks from pruning, see `ActivationStats.sinks`.
        progress: Whether to show progress bars.
    """

    experiment: Experiment
    model: Any
    scale: Scale
    out: Path
    offline: bool
    spare_sinks: bool
    progress: bool

    @property
    def model_name(self) -> str:
        """Name of the model."""
        return model_name(self.model)

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """Pairs of corpora of the experiment that can be read here, as many as the scale allows."""
        pairs = (self.offline and self.experiment.offline_pairs) or self.experiment.pairs
        return pairs[: self.scale.pairs]

    @property
    def step_options(self) -> dict[str, Any]:
        """The arguments `fraction` and `steps` of `prune`."""
        if self.scale.share == SCALES["paper"].share and self.experiment.released:
            fraction, steps = self.experiment.released
            return {"fraction": fraction, "steps": min(steps, self.scale.steps)}
        return {"fraction": self.scale.share / self.scale.steps, "steps": self.scale.steps}

    def corpora(self, pair: Pair) -> Corpora:
        """Load the four corpora of a pair."""
        if not self.experiment.images:
            return load_corpora(*pair, self.model, tokens=self.scale.tokens, offline=self.offline)
        return Corpora(
            forget=self.images(pair.forget, "collect"),
            retain=self.images(pair.retain, "collect"),
            eval_forget=self.images(pair.forget, "evaluate"),
            eval_retain=self.images(pair.retain, "evaluate"),
        )

    def images(self, name: str, split: Split) -> Any:
        """Load images by the name of the dataset and its classes: the number of the scale, or all if there are fewer.

        Args:
            name: Name as in `Pair`, such as "cifar10:-ship".
            split: Dataset split.
        """
        source, classes = split_classes(name)
        options: dict[str, Any] = {**classes, "split": split, "offline": self.offline}
        if source not in LOCAL and not self.offline:
            return load_images(source, self.model, **options, images=self.scale.images)
        available = len(load_images(source, self.model, **options))
        return load_images(source, self.model, **options, images=min(available, self.scale.images))

    def run(self, pair: Pair, label: str, corpora: Mapping[str, Any], **options: Any) -> PruneRun:
        """Prune, or resume or load the same run if this or another experiment has begun or finished it.

        Args:
            pair: Pair of corpora, for the name of the folder.
            label: Label of the variant, for the name of the folder.
            corpora: The four corpora.
            **options: Further arguments of `prune`.
        """
        options |= self.step_options | self.protected(pair, corpora)
        return prune(self.model, **corpora, out=self._run_folder(pair, label), progress=self.progress, **options)

    def protected(self, pair: Pair, corpora: Mapping[str, Any]) -> dict[str, NeuronMask]:
        """Return the argument `protect` of `prune`: the attention sinks on the retain corpus, if they are spared."""
        if not self.spare_sinks:
            return {}
        file = self._run_folder(pair, "sinks") / "mask.safetensors"
        if not file.exists():
            collect(self.model, corpora["retain"], progress=self.progress).sinks().save(file)
        return {"protect": NeuronMask.load(file)}

    def fold_documents(self, *corpora: Any) -> int | None:
        """Return the number of documents in each fold of the corpora; None if one has too few documents for folds."""
        fewest = min(len(documents_in(self.model, corpus)) for corpus in corpora)
        return max(1, fewest // FOLDS) if fewest >= MIN_FOLDS else None

    def _run_folder(self, pair: Pair, label: str) -> Path:
        size = self.scale.images if self.experiment.images else self.scale.tokens
        steps = f"{self.step_options['steps']}-steps-of-{100 * self.step_options['fraction']:.3g}-percent"
        scale = f"{self.scale.name}-{size}-{steps}" + "-sinks-spared" * self.spare_sinks + "-offline" * self.offline
        folder = self.out / "runs" / self.model_name / scale
        return folder / path_component(f"{pair.forget}-{pair.retain}") / path_component(label)

    def passes(self, options: Mapping[str, Any]) -> Counter[str]:
        """Count how often a run with these options reads each corpus."""
        collecting = {key: options[key] for key in ("metric", "recollect") if key in options}
        return passes_of(self.step_options["steps"], **collecting)

    def log_time(self, corpora: Mapping[str, Any], passes: Iterable[Counter[str]]) -> None:
        """Log an estimate of the time that the given passes over the four corpora take in total."""
        estimate = estimate_passes(self.model, corpora, sum(passes, Counter()))
        logger.info(
            "%s on %s: %s; runs that were done before are not repeated",
            self.experiment.name, self.model_name, estimate,
        )  # fmt: skip


def path_component(name: str) -> str:
    """Replace the characters of a name that may not occur in the name of a file."""
    return re.sub(r"[^\w.+-]+", "-", name)
