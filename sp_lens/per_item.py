"""Something measured of each prediction, added up by the image or the document that the prediction is of."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from tqdm.auto import tqdm

from sp_lens.batches import Batch, ImageBatch, batches, documents_of
from sp_lens.evaluate import losses, nothing_to_predict, predictions
from sp_lens.masking import mask_tokens
from sp_lens.models import inference
from sp_lens.tasks import task_of

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
