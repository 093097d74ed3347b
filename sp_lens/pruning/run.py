"""Results of a run: the history of any method, and for a pruning run the step at which each neuron was pruned.

Nothing here runs a model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int

from sp_lens.errors import SpLensError, check_shares
from sp_lens.evaluation.document_hits import DocumentHits, StepDocuments, cross_fitted
from sp_lens.evaluation.evaluate import DocumentSums
from sp_lens.neurons.layout import Layout
from sp_lens.neurons.mask import NeuronMask
from sp_lens.storage.schema import Int64, mapping_with, validate
from sp_lens.storage.serialization import opened, save_tensors
from sp_lens.typing import SIDES, Side

# The parts of a run's settings, of a corpus among them, and of its records that other modules read.
_CORPUS = mapping_with(
    source=str | None, origin=str | None, split=str | None, fingerprint=str | None,
    tokens=Int64 | None, documents=Int64 | None, images=Int64 | None, versions=Mapping[str, str] | None,
)  # fmt: skip
SETTINGS = {
    "model": str | None, "weights": str | None, "method": str | None, "metric": str | None, "site": str | None,
    "fraction": float | None, "protected": Mapping[str, Any] | None, "corpora": Mapping[str, Any] | None,
}  # fmt: skip
RECORDS = Sequence[Mapping[str, Int64 | float]]
_DOCUMENTS = "documents/"  # prefix of the names of tensors in a file that have one row per step
_RECORD = mapping_with(step=Int64, share=float, forget_top1=float, retain_top1=float)


class Run:
    """Evaluations of a model on held-out forget and retain data after each step of a method.

    The base class of `PruneRun` and `unlearning.UnlearningRun`, and what the figures of runs take.

    Attributes:
        records: One mapping per step. The first one (step 0) is the unchanged model.
        settings: Model, corpora, method or metric, and all other settings that determine the result.
        documents: Predictions, hits and losses on each held-out document, one item per step. Empty for runs that an
            earlier version saved.
    """

    records: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any]
    documents: Sequence[StepDocuments]

    @property
    def steps(self) -> int:
        """Number of finished steps."""
        return len(self.records) - 1

    @property
    def history(self) -> pd.DataFrame:
        """Table with one row per step: pruned share, and top1, top10, top1_skip50, loss and perplexity of both corpora.

        `forget_drop` and `retain_drop` are the decrease of top1 since step 0 (0.1 is ten percentage points).
        """
        frame = pd.DataFrame(list(self.records))
        for side in ("forget", "retain"):
            frame[f"{side}_drop"] = frame[f"{side}_top1"].iloc[0] - frame[f"{side}_top1"]
        return frame

    @property
    def best_step(self) -> int:
        """First step with the largest difference between the drop in forget accuracy and in retain accuracy."""
        history = self.history
        return int((history["forget_drop"] - history["retain_drop"]).idxmax())

    @property
    def selectivity(self) -> float:
        """Drop in forget accuracy minus drop in retain accuracy at the best step (the number in Figure 4).

        The best step is chosen on one half of the held-out documents and measured on the other, and the reverse, see
        `best_hits`. So this can be below the value in `history` at `best_step`, which is the best one partly by chance.
        """
        if self.documents:
            return self.best_hits().selectivity
        best = self.history.iloc[self.best_step]
        return float(best["forget_drop"] - best["retain_drop"])

    def hits_at(self, step: int) -> DocumentHits:
        """Return the hits on each held-out document before the run and after a step, for confidence intervals.

        Raises:
            SpLensError: If the run does not have this step, or does not record the documents.
        """
        self._require_step(step)
        return DocumentHits.from_sums(self._require_documents()[0], self.documents[step])

    def best_hits(self) -> DocumentHits:
        """Return the hits on each half of the held-out documents at the step that is best on the other half.

        Its `interval()` is the confidence interval of `selectivity`. See `cross_fitted` for the reason.

        Raises:
            SpLensError: If the run does not record the documents.
        """
        return cross_fitted(self._require_documents())

    def _require_documents(self) -> Sequence[StepDocuments]:
        if not self.documents:
            raise SpLensError(
                "this run was saved by an earlier version, without the hits on each document. Run it again in a new "
                "folder."
            )
        return self.documents

    def _require_step(self, step: int) -> None:
        if not 0 <= step <= self.steps:
            raise SpLensError(f"the run has no step {step}: expected a step from 0 to {self.steps}.")


@dataclass(frozen=True, eq=False)
class PruneRun(Run):
    """Result of Algorithm 1, for every step.

    Attributes:
        layout: Neuron groups that could be pruned.
        pruned_at: `{hook name: Int[" neuron"]}`, the step at which each neuron was pruned, or 0 if it was not.
        records: One mapping per step. The first one (step 0) is the unpruned model.
        settings: Model, corpora, site, metric, fraction and all other settings that determine the result.
        documents: Predictions, hits and losses on each held-out document, one item per step.
    """

    layout: Layout
    pruned_at: Mapping[str, Int[torch.Tensor, " neuron"]]
    records: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any]
    documents: Sequence[StepDocuments] = ()

    @property
    def mask(self) -> NeuronMask:
        """Neurons pruned in all steps."""
        return self.mask_at(self.steps)

    def mask_at(self, step: int) -> NeuronMask:
        """Return the neurons that are pruned after `step` steps.

        Raises:
            SpLensError: If the run does not have this step.
        """
        self._require_step(step)
        tensors = {name: (at > 0) & (at <= step) for name, at in self.pruned_at.items()}
        about = {key: self.settings[key] for key in ("model", "metric", "site") if key in self.settings}
        return NeuronMask(self.layout, tensors, {**about, "step": step})

    def until(self, step: int) -> "PruneRun":
        """Return the run as it was after `step` steps."""
        pruned_at = {name: torch.where(at <= step, at, 0) for name, at in self.pruned_at.items()}
        records, documents = self.records[: step + 1], self.documents[: step + 1]
        return PruneRun(self.layout, pruned_at, records, self.settings, documents)

    def save(self, path: str | Path) -> None:
        """Write the run to a safetensors file, atomically."""
        header = {"layout": self.layout.to_json(), "records": list(self.records), "settings": dict(self.settings)}
        save_tensors(path, "PruneRun", {**self.pruned_at, **stacked_documents(self.documents)}, header)

    @classmethod
    def load(cls, path: str | Path) -> "PruneRun":
        """Read a saved run, or the last undamaged step in the folder of a run.

        Args:
            path: File that `save` wrote, or the folder `out` of `prune`. A damaged step is skipped with a warning.

        Raises:
            SpLensError: If there is no run, or the file is truncated or was not written by `save`.
        """
        if Path(path).is_dir():
            from sp_lens.pruning.checkpoint import last_readable_step  # which imports this module

            run = last_readable_step(path)
            if run is None:
                raise SpLensError(f"{path} contains no finished step: expected the folder `out` of a call of prune().")
            return run
        types = {"layout": Any, "records": RECORDS, "settings": mapping_with(**SETTINGS)}
        with opened(path, "PruneRun", types) as (tensors, header):
            documents = pop_documents(tensors)
            run = cls(Layout.from_json(header["layout"]), tensors, header["records"], header["settings"], documents)
            check_run(run)
            _check_steps(run)
        return run

    def __repr__(self) -> str:
        return f"PruneRun({self.steps} steps, selectivity {self.selectivity:.3f}, {self.mask})"


class PruneInterrupted(KeyboardInterrupt):
    """Raised when Ctrl-C, or the stop button of a notebook, interrupts `prune`. The model is unchanged.

    Attributes:
        run: The finished steps. In a notebook it is available as `sys.last_value.run`.
    """

    def __init__(self, run: PruneRun, folder: str | Path | None) -> None:
        where = "`sys.last_value.run`" if folder is None else f"{folder}, from where the same call resumes"
        super().__init__(f"Interrupted after {run.steps} steps. The finished steps are in {where}.")
        self.run = run


def stacked_documents(documents: Sequence[StepDocuments]) -> dict[str, Float[torch.Tensor, "step document"]]:
    """Return the documents of all steps as tensors, to be saved with a run."""
    if not documents:
        return {}
    return {
        f"{_DOCUMENTS}{side}/{name}": torch.stack([getattr(step[side], name) for step in documents])
        for side in SIDES
        for name in DocumentSums._fields
    }


def pop_documents(tensors: dict[str, torch.Tensor]) -> Sequence[StepDocuments]:
    """Remove the tensors of `stacked_documents` from those of a file, and return the documents of each step.

    Raises:
        SpLensError: If the tensors are invalid.
    """
    stacked = {name: tensors.pop(name) for name in list(tensors) if name.startswith(_DOCUMENTS)}
    if not stacked:
        return ()
    by_side: dict[Side, list[DocumentSums]] = {}
    for side in SIDES:
        counts, hits, nats = parts = [stacked[f"{_DOCUMENTS}{side}/{name}"] for name in DocumentSums._fields]
        shapes = {tuple(part.shape) for part in parts}
        if len(shapes) > 1 or counts.ndim != 2 or not counts.numel():
            raise SpLensError(f"the {side} documents have the shapes {shapes}: expected one row per step.")
        valid = (counts > 0) & (counts == counts[0]) & (hits >= 0) & (hits <= counts) & (nats >= 0)
        if not valid.all() or not counts.isfinite().all():
            raise SpLensError(f"the {side} documents have an impossible number of predictions, hits or nats.")
        by_side[side] = [DocumentSums(*step) for step in zip(*(part.double() for part in parts), strict=True)]
    return [dict(zip(SIDES, step, strict=True)) for step in zip(*by_side.values(), strict=True)]


def check_run(run: Run) -> None:
    """Raise SpLensError if the records of a loaded run or the corpora in its settings are invalid."""
    validate(list(run.records), Sequence[_RECORD], "records")
    steps = [record["step"] for record in run.records]
    if not steps or steps != list(range(len(steps))):
        raise SpLensError(f"the {len(steps)} records have the steps {steps[:5]}: expected 0, 1, 2, ... in this order.")
    if run.documents and len(run.documents) != len(steps):
        raise SpLensError(f"it has documents of {len(run.documents)} steps: expected {len(steps)}.")
    for record in run.records:
        check_shares(**{name: record[name] for name in ("share", "forget_top1", "retain_top1")})
    for name, about in (run.settings.get("corpora") or {}).items():
        validate(about, _CORPUS, f"the corpus {name!r}")


def _check_steps(run: PruneRun) -> None:
    """Raise SpLensError unless each neuron of the layout was pruned at a step of the run, or never."""
    if set(run.pruned_at) != set(run.layout.names):
        raise SpLensError(f"it has pruning steps for {sorted(run.pruned_at)[:5]}: expected the hooks of its layout.")
    for group in run.layout:
        at = run.pruned_at[group.name]
        if at.dtype not in (torch.int32, torch.int64) or tuple(at.shape) != (group.width,):
            raise SpLensError(
                f"the pruning steps of {group.name} are {at.dtype} of shape {tuple(at.shape)}: expected {group.width} "
                "integers."
            )
        low, high = int(at.min()), int(at.max())
        if not 0 <= low <= high <= run.steps:
            raise SpLensError(f"the pruning steps of {group.name} are {low} to {high}: expected 0 to {run.steps}.")
