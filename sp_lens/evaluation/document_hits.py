"""Correct predictions and losses on each held-out document before and after a change of the model."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Real

from sp_lens.errors import SpLensError
from sp_lens.evaluation.evaluate import DocumentSums, evaluate_documents
from sp_lens.evaluation.intervals import Interval, Sample, interval_of_sum
from sp_lens.storage.serialization import opened, save_tensors
from sp_lens.typing import BATCH_TOKENS, SIDES, Side

# The sums over the held-out documents of both corpora after one step.
StepDocuments = Mapping[Side, DocumentSums]


@dataclass(frozen=True, eq=False)
class DocumentHits:
    """Hits and losses on each held-out document (or image) before and after a change of the model.

    Attributes:
        tensors: By name: `forget_counts` has the number of predictions of each document of the forget corpus,
            `forget_before` and `forget_after` the number of correct ones, and `forget_nats_before` and
            `forget_nats_after` the sum of the losses in nats. The retain corpus has the same tensors.
    """

    tensors: Mapping[str, Real[torch.Tensor, " _"]]

    @classmethod
    def from_sums(cls, before: StepDocuments, after: StepDocuments) -> "DocumentHits":
        """Combine the results of two evaluations of both corpora."""
        tensors: dict[str, torch.Tensor] = {}
        for side in SIDES:
            tensors[f"{side}_counts"] = before[side].counts
            for when, sums in (("before", before[side]), ("after", after[side])):
                tensors[f"{side}_{when}"], tensors[f"{side}_nats_{when}"] = sums.hits, sums.nats
        return cls(tensors)

    @property
    def selectivity(self) -> float:
        """The drop in forget accuracy minus the drop in retain accuracy, as a share."""
        return self.interval().value

    def interval(self) -> Interval:
        """Return the selectivity, as a share, with its confidence interval (see `interval_of_sum`)."""
        return self.more_than()

    def more_than(self, *others: "DocumentHits") -> Interval:
        """Return this selectivity minus the mean of others on the same documents, with its confidence interval.

        The difference is computed document by document, so what all changes have in common does not widen the interval.

        Raises:
            SpLensError: If the documents are not the same.
        """
        lost = {side: self._lost(side) for side in SIDES}
        if others:
            mean = mean_hits(others)
            _require_same_documents(self, mean)
            lost = {side: lost[side] - mean._lost(side) for side in SIDES}
        forget, retain = (self._array(side, "counts") for side in ("forget", "retain"))
        return interval_of_sum(Sample(lost["forget"], forget), Sample(-lost["retain"], retain))

    def drop(self, side: Side) -> Interval:
        """Return the drop in accuracy on one corpus, as a share, with its confidence interval."""
        return interval_of_sum(Sample(self._lost(side), self._array(side, "counts")))

    def perplexity(self, side: Side) -> Interval:
        """Return the perplexity on one corpus after the change, exp(mean loss), with its confidence interval."""
        loss = interval_of_sum(Sample(self._array(side, "nats_after"), self._array(side, "counts")))
        return Interval(*np.exp(loss))

    def _lost(self, side: str) -> np.ndarray:
        return self._array(side, "before") - self._array(side, "after")

    def _array(self, side: str, name: str) -> np.ndarray:
        return self.tensors[f"{side}_{name}"].double().numpy()

    def save(self, path: str | Path) -> None:
        """Write to a safetensors file, atomically."""
        save_tensors(path, "DocumentHits", self.tensors, {})

    @classmethod
    def load(cls, path: str | Path) -> "DocumentHits":
        """Read a file that `save` wrote.

        Raises:
            SpLensError: If the file is missing, truncated, or of another kind.
        """
        with opened(path, "DocumentHits", {}) as (tensors, _):
            for side in SIDES:
                _check_documents(tensors, side)
            return cls(tensors)


def mean_hits(hits: Sequence[DocumentHits]) -> DocumentHits:
    """Return the mean of the hits and losses of several changes on the same documents, such as runs of several seeds.

    Raises:
        SpLensError: If the documents are not the same.
    """
    for other in hits:
        _require_same_documents(hits[0], other)
    means = {name: torch.stack([each.tensors[name].double() for each in hits]).mean(dim=0) for name in hits[0].tensors}
    return DocumentHits(means)


def _require_same_documents(first: DocumentHits, second: DocumentHits) -> None:
    for side in SIDES:
        counts = [hits.tensors[f"{side}_counts"].double() for hits in (first, second)]
        if not torch.equal(*counts):
            raise SpLensError(
                f"the hits are on different {side} documents ({len(counts[0])} and {len(counts[1])}): expected hits on "
                "the same documents."
            )


def _check_documents(tensors: Mapping[str, torch.Tensor], side: str) -> None:
    """Raise SpLensError unless every document has predictions, and hits and losses of all documents are valid."""
    counts = tensors[f"{side}_counts"]
    if counts.ndim != 1 or not len(counts) or not (counts > 0).all() or not counts.isfinite().all():
        raise SpLensError(
            f"{side}_counts has the shape {tuple(counts.shape)}: expected a number above 0 for each document."
        )
    for when in ("before", "after"):
        hits = tensors[f"{side}_{when}"]
        nats = tensors.get(f"{side}_nats_{when}", hits)  # files of older versions have no losses
        for name, values in ((when, hits), (f"nats_{when}", nats)):
            if values.shape != counts.shape or not (values >= 0).all():
                raise SpLensError(
                    f"{side}_{name} has the shape {tuple(values.shape)}: expected {len(counts)} numbers from 0."
                )
        if (hits > counts).any():
            raise SpLensError(f"{side}_{when} has more correct predictions than there are predictions in a document.")


def document_hits(
    model: Any,
    corpora: Mapping[str, Any],
    changed: AbstractContextManager[Any],
    *,
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = True,
) -> DocumentHits:
    """Evaluate both held-out corpora document by document, on the unchanged model and inside `changed`.

    `prune` and the methods of `sp.unlearning` record the same for each of their steps, see `Run.hits_at`.

    Args:
        model: A `TransformerBridge` or a `HookedTransformer`.
        corpora: Corpora with the names `eval_forget` and `eval_retain`, as returned by `load_corpora`.
        changed: Context manager that changes the model: `ablate(model, mask)`, or `run.applied(model)` of a baseline.
        seed: Seed of the random choice of tokens that a masked language model predicts.
        batch_tokens: Number of tokens per batch, including padding.
        progress: Whether to show progress bars.

    Raises:
        SpLensError: As for `evaluate`.
    """
    options: dict[str, Any] = {"seed": seed, "batch_tokens": batch_tokens, "progress": progress}
    results: list[dict[Side, DocumentSums]] = []
    for change in (nullcontext(), changed):
        with change:
            results.append({side: evaluate_documents(model, corpora[f"eval_{side}"], **options)[1] for side in SIDES})
    return DocumentHits.from_sums(*results)


def cross_fitted(steps: Sequence[StepDocuments]) -> DocumentHits:
    """Return hits in which each half of the documents is measured at the step that is best on the other half.

    The step with the largest selectivity is partly the best by chance, so its selectivity on the documents that it was
    chosen on is too large on average. The halves are the documents at even and those at odd positions. If a side has
    only one document, there are no halves, and all documents are measured at the step that is best on all of them.

    Args:
        steps: Sums over documents after each step. The first ones are those of the unchanged model.
    """
    before = steps[0]
    if min(len(before[side].counts) for side in SIDES) < 2:
        return DocumentHits.from_sums(before, steps[_best(steps, slice(None))])
    even, odd = slice(0, None, 2), slice(1, None, 2)
    after: dict[Side, DocumentSums] = {
        side: DocumentSums(*(values.clone() for values in before[side])) for side in SIDES
    }
    for measured, chosen_on in ((even, odd), (odd, even)):
        best = steps[_best(steps, chosen_on)]
        for side in SIDES:
            for values, of_best in zip(after[side], best[side], strict=True):
                values[measured] = of_best[measured]
    return DocumentHits.from_sums(before, after)


def _best(steps: Sequence[StepDocuments], documents: slice) -> int:
    """Return the first step with the largest selectivity on some of the documents."""
    accuracies = np.array([[step[side].part(documents).accuracy for side in SIDES] for step in steps])
    forget_drop, retain_drop = (accuracies[0] - accuracies).T
    return int(np.argmax(forget_drop - retain_drop))
