"""Confidence intervals by a bootstrap over documents, from the sums of each document's predictions."""

import math
from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Real
from tqdm.auto import tqdm

from sp_lens.data.batch import AnyBatch
from sp_lens.data.batching import BatchStream
from sp_lens.errors import SpLensError
from sp_lens.evaluation.predictions import losses, nothing_to_predict, prediction_rows, predictions
from sp_lens.models.forward import inference
from sp_lens.storage.serialization import opened, save_tensors
from sp_lens.typing import BATCH_TOKENS, SIDES, Side

# Number of bootstrap samples.
DRAWS = 2000
# With fewer documents in either corpus, a bootstrap over documents is meaningless.
MIN_DOCUMENTS = 5

# A function of float32 logits [prediction d_vocab] and correct answers, with one or several numbers per prediction.
Measure = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Interval(NamedTuple):
    """A number with its 95 % confidence interval. The ends are NaN if there are too few documents for an interval.

    Example:
        >>> str(Interval(0.1234, 0.1, 0.15))
        '12.3 [10.0, 15.0]'
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Format the number in percentage points."""
        if math.isnan(self.low):
            return f"{100 * self.value:.1f} (too few documents for an interval)"
        return f"{100 * self.value:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def interval(value: float, draws: Float[np.ndarray, " draw"]) -> Interval:
    """Return a number with the 2.5th and the 97.5th percentile of its bootstrap samples."""
    low, high = np.percentile(draws, [2.5, 97.5])
    return Interval(value, float(low), float(high))


def bootstrap_mean(values: Float[np.ndarray, " item"]) -> Interval:
    """Return the mean of some numbers with the interval of a bootstrap over them."""
    samples = np.random.default_rng(0).choice(values, size=(DRAWS, len(values)))
    return interval(float(np.mean(values)), samples.mean(axis=1))


class ItemSums(NamedTuple):
    """Sums over the predictions of each item of a corpus: an image, a document, or a row without a document.

    Attributes:
        sums: Sum of the measure over the predictions of each item.
        counts: Number of predictions of each item.
    """

    sums: Float[torch.Tensor, "item *measure"]  # noqa: F821 (ruff reads the names of the axes as Python names)
    counts: Int[torch.Tensor, " item"]


def sums_by_item(model: Any, corpus: Any, measure: Measure, *, seed: int, batch_tokens: int, bar: tqdm) -> ItemSums:
    """Sum a measure of each prediction over the items of a corpus, with active ablations applied.

    Args:
        model: A `TransformerBridge` or a `HookedTransformer`.
        corpus: The result of `load_corpus` or `load_images`, a list of strings, or an iterable of batches.
        measure: Function of logits and correct answers.
        seed: Seed of the random choice of tokens that a masked language model predicts.
        batch_tokens: Number of tokens per batch, including padding.
        bar: Progress bar that counts predictions.

    Returns:
        The sums of each item that has predictions, in the order of the batches.

    Raises:
        SpLensError: As for `evaluate`.
    """

    def measure_batch(batch: AnyBatch) -> tuple[torch.Tensor, torch.Tensor]:
        logits, targets = predictions(model, batch, seed)
        losses(logits, targets)  # raises an error if logits are NaN
        return measure(logits, targets).double().cpu(), prediction_rows(model, batch, seed)

    index_of: dict[Hashable, int] = {}
    values: list[torch.Tensor] = []
    items: list[torch.Tensor] = []
    stream = BatchStream(model, corpus, batch_tokens=batch_tokens)
    with inference(model):
        for batch, (batch_values, rows) in stream.map(measure_batch):
            row_items = torch.tensor([index_of.setdefault(item, len(index_of)) for item in batch.items])
            values.append(batch_values)
            items.append(row_items[rows])
            bar.update(len(rows))
    value, item = torch.cat(values), torch.cat(items)
    if not len(item):
        raise nothing_to_predict()
    counts = torch.bincount(item, minlength=len(index_of))
    sums = torch.zeros(len(index_of), *value.shape[1:], dtype=torch.float64).index_add(0, item, value)
    return ItemSums(sums[counts > 0], counts[counts > 0])


@dataclass(frozen=True, eq=False)
class DocumentHits:
    """Hits and losses on each held-out document (or image) before and after a change of the model.

    Attributes:
        tensors: By name: `forget_counts` has the number of predictions of each document of the forget corpus,
            `forget_before` and `forget_after` the number of correct ones, and `forget_nats_before` and
            `forget_nats_after` the sum of the losses in nats. The retain corpus has the same tensors.
    """

    tensors: Mapping[str, Real[torch.Tensor, " _"]]

    @property
    def selectivity(self) -> float:
        """The drop in forget accuracy minus the drop in retain accuracy, as a share."""
        return float(self._selectivities({side: np.ones((1, len(self._sums(side)[0]))) for side in SIDES})[0])

    def draws(self, *, seed: int = 0) -> Float[np.ndarray, " draw"]:
        """Return the selectivity of 2000 bootstrap samples of documents; NaN if a corpus has fewer than 5 documents.

        With the same seed, the samples of two changes of the same model on the same documents contain the same
        documents, so the difference of their selectivities is that of a paired bootstrap.

        Args:
            seed: Seed of the random draw.
        """
        weights = self._weights(seed)
        return np.full(DRAWS, np.nan) if weights is None else self._selectivities(weights)

    def drop(self, side: Side) -> Interval:
        """Return the drop in accuracy on one corpus, as a share, with its bootstrap interval."""
        return self._interval(side, lambda counts, before, after: (before - after) / counts)

    def perplexity(self, side: Side) -> Interval:
        """Return the perplexity on one corpus after the change, exp(mean loss), with its bootstrap interval."""
        return self._interval(side, lambda counts, before, after: np.exp(after / counts), prefix="nats_")

    def interval(self) -> Interval:
        """Return the selectivity with the 2.5th and the 97.5th percentile of `draws`."""
        return interval(self.selectivity, self.draws())

    def more_than(self, other: "DocumentHits") -> Interval:
        """Return the difference of this selectivity and another one on the same documents, with its interval."""
        return interval(self.selectivity - other.selectivity, self.draws() - other.draws())

    def _weights(self, seed: int = 0) -> dict[str, np.ndarray] | None:
        """Return how often each document is in each bootstrap sample, by side; None if there are too few documents."""
        generator = np.random.default_rng(seed)
        sizes = {side: len(self._sums(side)[0]) for side in SIDES}
        if min(sizes.values()) < MIN_DOCUMENTS:
            return None
        return {side: generator.multinomial(size, np.full(size, 1 / size), size=DRAWS) for side, size in sizes.items()}

    def _interval(self, side: str, measure: Callable[..., np.ndarray], prefix: str = "") -> Interval:
        """Return `measure` of the counts, before and after, summed over the documents of a side, with its interval."""
        sums = np.array(self._sums(side, prefix))  # [3 document]
        weights = self._weights()
        draws = np.full(DRAWS, np.nan) if weights is None else measure(*(sums @ weights[side].T))
        return interval(float(measure(*sums.sum(axis=1))), draws)

    def _selectivities(self, weights: Mapping[str, np.ndarray]) -> np.ndarray:
        drops = {}
        for side in SIDES:
            counts, before, after = self._sums(side)
            drops[side] = weights[side] @ (before - after) / (weights[side] @ counts)
        return drops["forget"] - drops["retain"]

    def _sums(self, side: str, prefix: str = "") -> list[np.ndarray]:
        """Return counts, before and after of each document of a side: hits, or losses with the prefix "nats_"."""
        names = ("counts", f"{prefix}before", f"{prefix}after")
        return [self.tensors[f"{side}_{name}"].double().numpy() for name in names]

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

    Args:
        model: A `TransformerBridge` or a `HookedTransformer`.
        corpora: Corpora with the names `eval_forget` and `eval_retain`, as returned by `load_corpora`.
        changed: Context manager that changes the model: `ablate(model, mask)`, or `run.applied(model)` of a baseline.
        seed: Seed of the random choice of tokens that a masked language model predicts.
        batch_tokens: Number of tokens per batch, including padding.
        progress: Whether to show a progress bar.

    Raises:
        SpLensError: As for `evaluate`.
    """
    options: dict[str, Any] = {"seed": seed, "batch_tokens": batch_tokens}
    tensors = {}
    with tqdm(desc="by document", unit=" predictions", disable=not progress) as bar:
        for when, change in (("before", nullcontext()), ("after", changed)):
            with change:
                for side in SIDES:
                    sums, counts = sums_by_item(model, corpora[f"eval_{side}"], _hits_and_nats, bar=bar, **options)
                    tensors[f"{side}_counts"] = counts
                    tensors[f"{side}_{when}"], tensors[f"{side}_nats_{when}"] = sums.unbind(dim=1)
    return DocumentHits(tensors)


def _hits_and_nats(logits: torch.Tensor, targets: torch.Tensor) -> Float[torch.Tensor, "prediction 2"]:
    return torch.stack([logits.argmax(dim=1) == targets, losses(logits, targets)], dim=1)
