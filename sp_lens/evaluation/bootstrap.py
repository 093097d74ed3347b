"""Something measured of each prediction, added up by the image or the document that the prediction is of."""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from tqdm.auto import tqdm

from sp_lens.data.batching import Batch, ImageBatch, batches, documents_of
from sp_lens.data.masked_lm import mask_tokens
from sp_lens.errors import SpLensError
from sp_lens.evaluation.predictions import losses, nothing_to_predict, predictions
from sp_lens.models.forward import inference
from sp_lens.models.task import task_of
from sp_lens.storage.serialization import opened, save_tensors
from sp_lens.typing import BATCH_TOKENS, SIDES, Side

# The float32 logits [prediction d_vocab] and the right answers -> a number, or several, for each prediction.
Measure = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class ItemSums(NamedTuple):
    """By item, the sum of a measure over what was predicted of it, and how many predictions these were."""

    sums: Float[torch.Tensor, "item *measure"]  # noqa: F821 (a name of an axis each)
    counts: Int[torch.Tensor, " item"]


def sums_by_item(model: Any, corpus: Any, measure: Measure, *, seed: int, batch_tokens: int, bar: tqdm) -> ItemSums:
    """Measure every prediction of a corpus, ablations in force included.

    An item is an image, a document (all its rows), or a row that is of none; one of which nothing is asked is left out.
    The order is that of the batches: the same each time.

    Raises:
        SpLensError: as `evaluate`.
    """
    places: dict[Any, int] = {}
    values: list[torch.Tensor] = []
    owners: list[torch.Tensor] = []
    with inference(model):
        for batch in batches(model, corpus, batch_tokens=batch_tokens):
            logits, targets = predictions(model, batch, seed)
            losses(logits, targets)  # refuses those that are NaN
            values.append(measure(logits, targets).double().cpu())
            own = torch.tensor(
                [places.setdefault(key, len(places)) for key in documents_of(batch, images_before=len(places))]
            )
            owners.append(own[_rows(model, batch, seed)])
            bar.update(len(targets))
    owner, value = torch.cat(owners), torch.cat(values)
    if not len(owner):
        raise nothing_to_predict()
    counts = torch.bincount(owner, minlength=len(places))
    sums = torch.zeros(len(places), *value.shape[1:], dtype=torch.float64).index_add(0, owner, value)
    return ItemSums(sums[counts > 0], counts[counts > 0])


def _rows(model: Any, batch: Batch | ImageBatch, seed: int) -> Int[torch.Tensor, " prediction"]:
    """The row of each of `predictions`."""
    if isinstance(batch, ImageBatch):
        return torch.arange(len(batch.labels))
    asked = mask_tokens(model, batch, seed)[1] if task_of(model) == "masked" else batch.counted[:, 1:]
    return asked.nonzero()[:, 0]


DRAWS = 2000
# Documents of either side below which drawing them anew says nothing.
FEWEST = 5


class Interval(NamedTuple):
    """A number with its 95 % confidence interval; its ends are NaN where there were too few documents for one.

    Example:
        >>> str(Interval(0.1234, 0.1, 0.15))
        '12.3 [10.0, 15.0]'
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """In percentage points."""
        if math.isnan(self.low):
            return f"{100 * self.value:.1f} (too few documents for an interval)"
        return f"{100 * self.value:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


@dataclass(frozen=True, eq=False)
class DocumentHits:
    """Of each held-out document (or image), how much was asked and how much was right before and after a change.

    Attributes:
        tensors: `forget_counts`, `forget_before`, `forget_after`, the losses in nats summed up, `forget_nats_before`
            and `forget_nats_after`, and the same of retain: [document].
    """

    tensors: Mapping[str, Float[torch.Tensor, " document"]]

    @property
    def selectivity(self) -> float:
        """The drop in forget accuracy less the drop in retain accuracy, as a share."""
        return float(self._selectivities({side: np.ones((1, len(self._of(side)[0]))) for side in SIDES})[0])

    def draws(self, *, seed: int = 0) -> Float[np.ndarray, " draw"]:
        """The selectivity of as many documents drawn with replacement, 2000 times; NaN where there are fewer than 5.

        Two changes of the same model on the same documents are drawn alike, so that the difference of their draws is
        that of a paired bootstrap.
        """
        weights = self._weights(seed)
        return np.full(DRAWS, np.nan) if weights is None else self._selectivities(weights)

    def drop(self, side: Side) -> Interval:
        """By how much the accuracy on a side fell, as a share, drawn as `draws` are."""
        return self._interval(side, lambda counts, before, after: (before - after) / counts)

    def perplexity(self, side: Side) -> Interval:
        """exp(mean loss) on a side after the change, drawn as `draws` are."""
        return self._interval(side, lambda counts, before, after: np.exp(after / counts), what="nats_")

    def interval(self) -> Interval:
        """The selectivity with the 2.5th and the 97.5th percentile of the draws."""
        return interval(self.selectivity, self.draws())

    def more_than(self, other: "DocumentHits") -> Interval:
        """By how much this selectivity is above another, of the same documents."""
        return interval(self.selectivity - other.selectivity, self.draws() - other.draws())

    def _weights(self, seed: int = 0) -> dict[str, np.ndarray] | None:
        """How often each document is in each draw, of either side; None where there are too few."""
        generator = np.random.default_rng(seed)
        sizes = {side: len(self._of(side)[0]) for side in SIDES}
        if min(sizes.values()) < FEWEST:
            return None
        return {side: generator.multinomial(size, np.full(size, 1 / size), size=DRAWS) for side, size in sizes.items()}

    def _interval(self, side: str, measure: Callable[..., np.ndarray], what: str = "") -> Interval:
        """Something measured of sums over the documents of a side, with the interval of its draws."""
        sums = np.array(self._of(side, what))  # [counts, before, after; document]
        weights = self._weights()
        draws = np.full(DRAWS, np.nan) if weights is None else measure(*(sums @ weights[side].T))
        return interval(float(measure(*sums.sum(axis=1))), draws)

    def _selectivities(self, weights: Mapping[str, np.ndarray]) -> np.ndarray:
        drops = {}
        for side in SIDES:
            counts, before, after = self._of(side)
            drops[side] = weights[side] @ (before - after) / (weights[side] @ counts)
        return drops["forget"] - drops["retain"]

    def _of(self, side: str, what: str = "") -> list[np.ndarray]:
        names = ("counts", f"{what}before", f"{what}after")
        return [self.tensors[f"{side}_{name}"].double().numpy() for name in names]

    def save(self, path: str | Path) -> None:
        """Write to a safetensors file, whole or not at all."""
        save_tensors(path, "DocumentHits", self.tensors, {})

    @classmethod
    def load(cls, path: str | Path) -> "DocumentHits":
        """Read what `save` wrote.

        Raises:
            SpLensError: when the file is missing, cut short, or holds something else.
        """
        with opened(path, "DocumentHits", {}) as (tensors, _):
            for side in SIDES:
                _check_documents(tensors, side)
            return cls(tensors)


def _check_documents(tensors: Mapping[str, torch.Tensor], side: str) -> None:
    """Refuse hits that are not of as many documents as there are counts, or of documents that nothing was asked of."""
    counts = tensors[f"{side}_counts"]
    if counts.ndim != 1 or not len(counts) or not (counts > 0).all() or not counts.isfinite().all():
        raise SpLensError(f"{side}_counts are {tuple(counts.shape)}: expected a number above 0 for each document.")
    for what in ("before", "after"):  # those of nats are missing where an older version wrote them
        hits = tensors[f"{side}_{what}"]
        nats = tensors.get(f"{side}_nats_{what}", hits)
        for name, one in ((what, hits), (f"nats_{what}", nats)):
            if one.shape != counts.shape or not (one >= 0).all():
                raise SpLensError(f"{side}_{name} is {tuple(one.shape)}: expected 0 or more, {len(counts)} times.")
        if (hits > counts).any():
            raise SpLensError(f"{side}_{what}: more was right than was asked.")


def document_hits(
    model: Any,
    corpora: Mapping[str, Any],
    changed: AbstractContextManager[Any],
    *,
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = True,
) -> DocumentHits:
    """Evaluate both held-out corpora document by document: the model as it is, and within `changed`.

    Args:
        model: a bridge or a `HookedTransformer`.
        corpora: `eval_forget` and `eval_retain` among them, as `load_corpora` returns them.
        changed: `ablate(model, mask)`, or `run.applied(model)` of a baseline.
        seed: of the tokens that a masked language model is asked for.
        batch_tokens: tokens in a batch, padding included.
        progress: show a bar.

    Raises:
        SpLensError: as `evaluate`.
    """
    tensors = {}
    with tqdm(desc="by document", unit=" predictions", disable=not progress) as bar:
        for when, change in (("before", nullcontext()), ("after", changed)):
            with change:
                for side in SIDES:
                    found = sums_by_item(
                        model, corpora[f"eval_{side}"], _right_and_nats, seed=seed, batch_tokens=batch_tokens, bar=bar
                    )
                    tensors[f"{side}_counts"] = found.counts
                    tensors[f"{side}_{when}"], tensors[f"{side}_nats_{when}"] = found.sums.unbind(dim=1)
    return DocumentHits(tensors)


def _right_and_nats(logits: torch.Tensor, targets: torch.Tensor) -> Float[torch.Tensor, "prediction 2"]:
    return torch.stack([logits.argmax(dim=1) == targets, losses(logits, targets)], dim=1)


def bootstrap_mean(values: Float[np.ndarray, " item"]) -> Interval:
    """The mean of some numbers, between the percentiles of its bootstrap over them."""
    drawn = np.random.default_rng(0).choice(values, size=(DRAWS, len(values)))
    return interval(float(np.mean(values)), drawn.mean(axis=1))


def interval(value: float, draws: Float[np.ndarray, " draw"]) -> Interval:
    """A number between the 2.5th and the 97.5th percentile of its draws."""
    low, high = np.percentile(draws, [2.5, 97.5])
    return Interval(value, float(low), float(high))
