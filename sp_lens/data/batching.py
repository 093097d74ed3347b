"""Read a corpus in batches: pad rows, share batches among ranks, assign folds, and split batches that do not fit."""

import itertools
import logging
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from accelerate.utils import memory
from jaxtyping import Int

from sp_lens import distributed
from sp_lens.data.batch import AnyBatch, Batch, ImageBatch
from sp_lens.data.pixels import Picture, pictures
from sp_lens.data.rows import Row, rows
from sp_lens.errors import SpLensError, check_at_least
from sp_lens.models.forward import input_device
from sp_lens.models.task import patches_of, reads_images

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# With fewer folds of documents, a jackknife standard error is meaningless.
MIN_FOLDS = 5
# Number of rows that are sorted by length before they are batched: less padding, and the corpus is still streamed.
_SORT_WINDOW = 256
# A row that would need more padding than this starts a new batch. Every batch has a fixed cost, which is that of about
# as many tokens: little on a CPU, more on an accelerator, which runs several hundred tokens in the time of one.
_MAX_PADDING_ON_CPU, _MAX_PADDING_ON_ACCELERATORS = 64, 1024


class BatchStream:
    """The batches of a corpus that this rank reads, run one by one through a function.

    A batch that does not fit into memory is split into halves until they fit. From then on, all batches are split to
    that size from the start.

    Args:
        model: A `TransformerBridge` or a `HookedTransformer`.
        corpus: Text or images, see `items`.
        batch_tokens: Number of tokens per batch, including padding.
        folds: Number of folds that documents are assigned to, see `assign_folds`.
        fold_documents: Number of documents in a fold, instead of `folds`. Without either, no folds are assigned.
        ranks: Share the batches among the ranks of this `distributed.fail_together`. None reads all of them here.

    Example:
        >>> import sp_lens as sp
        >>> stream = BatchStream(sp.load_model("demo"), [torch.arange(5, 9), torch.arange(5, 7)], batch_tokens=4)
        >>> [(batch.number, size) for batch, size in stream.map(lambda batch: tuple(batch.tokens.shape))]
        [(0, (1, 4)), (1, (1, 2))]
    """

    def __init__(
        self,
        model: Any,
        corpus: Any,
        *,
        batch_tokens: int,
        folds: int | None = None,
        fold_documents: int | None = None,
        ranks: distributed.Ranks | None = None,
    ) -> None:
        self._batches = batches(model, corpus, batch_tokens=batch_tokens)
        self._fold_of = assign_folds(model, corpus, folds=folds, fold_documents=fold_documents)
        self._ranks = ranks
        self._max_tokens = math.inf  # including padding, that are run at once; finite after running out of memory

    def folds_of(self, batch: AnyBatch) -> Int[torch.Tensor, " row"] | None:
        """Return the fold of each row; None without folds."""
        return torch.tensor([self._fold_of[item] for item in batch.items]) if self._fold_of else None

    @property
    def documents_by_fold(self) -> list[int]:
        """Number of documents in each fold; empty without folds."""
        counts = Counter(self._fold_of.values())
        return [counts[fold] for fold in range(len(counts))]

    def map(self, function: Callable[[Any], Result]) -> Iterator[tuple[Any, Result]]:
        """Yield each batch of this rank, or each part of a split batch, with the result of the function for it.

        Args:
            function: Function of a `Batch` or an `ImageBatch`. It is called again with parts of the batch after running
                out of memory, so it must have no side effects.

        Raises:
            SpLensError: If a single row does not fit into memory.
        """
        for batch in self._batches if self._ranks is None else self._ranks.share(self._batches):
            yield from self._run(function, batch)

    def _run(self, function: Callable[[Any], Result], batch: AnyBatch) -> Iterator[tuple[AnyBatch, Result]]:
        rows, positions = batch.in_context.shape
        if rows == 1 or rows * positions <= self._max_tokens:
            try:
                result = function(batch)
            except RuntimeError as error:
                if not memory.should_reduce_batch_size(error):
                    raise
                reason = str(error).split("\n")[0]
                if rows == 1:
                    raise SpLensError(
                        f"a row of {positions} tokens does not fit into memory ({reason}). Use shorter rows with "
                        "load_corpus(..., row_tokens=...), or load the model in bfloat16 or on several devices."
                    ) from error
            else:
                yield batch, result
                return
            # This is outside of `except`, where the error still holds the tensors of the failed forward pass.
            memory.clear_device_cache(garbage_collection=True)
            self._max_tokens = rows * positions // 2
            logger.warning(
                "out of memory with %d tokens per batch, continuing with half (%s)", rows * positions, reason
            )
        for half in (slice(0, rows // 2), slice(rows // 2, rows)):
            yield from self._run(function, batch.part(half))


def batches(model: Any, corpus: Any, *, batch_tokens: int) -> Iterator[Batch] | Iterator[ImageBatch]:
    """Yield the rows or images of a corpus in batches.

    Rows of tokens are sorted by length within a window of 256 rows, so batches are not in the order of the corpus, but
    always in the same order. Images keep their order.

    Args:
        model: A `TransformerBridge` or a `HookedTransformer`.
        corpus: Text or images, see `items`.
        batch_tokens: Number of tokens per batch, including padding. A longer row is a batch of its own.
    """
    if reads_images(model):
        return _image_batches(model, corpus, batch_tokens)
    return text_batches(model, corpus, batch_tokens=batch_tokens)


def _image_batches(model: Any, corpus: Any, batch_tokens: int) -> Iterator[ImageBatch]:
    before, patches = patches_of(model)
    is_patch = torch.arange(before + patches) >= before
    images = enumerate(pictures(model, corpus))
    for number in itertools.count():
        batch = list(itertools.islice(images, max(1, batch_tokens // (before + patches))))
        if not batch:
            return
        yield ImageBatch(
            pixels=torch.stack([image.pixels for _, image in batch]),
            labels=torch.tensor([image.label for _, image in batch]),
            in_context=is_patch.expand(len(batch), -1),
            images=tuple(index for index, _ in batch),
            number=number,
        )


def text_batches(model: Any, corpus: Any, *, batch_tokens: int) -> Iterator[Batch]:
    """Yield the batches of a corpus of text, see `batches`."""
    pad_id = getattr(getattr(model, "tokenizer", None), "pad_token_id", None) or 0
    if pad_id >= model.cfg.d_vocab:  # a pad token was added without an embedding; the attention mask hides any other
        pad_id = 0
    max_padding = _MAX_PADDING_ON_CPU if input_device(model).type == "cpu" else _MAX_PADDING_ON_ACCELERATORS
    corpus_rows = iter(rows(model, corpus))
    numbers = itertools.count()
    while window := list(itertools.islice(corpus_rows, _SORT_WINDOW)):
        window.sort(key=lambda row: -len(row.tokens))
        while window:
            longest = len(window[0].tokens)
            fitting = window[: max(1, batch_tokens // longest)]
            batch = [row for row in fitting if longest - len(row.tokens) <= max_padding]
            yield _pad(batch, pad_id, next(numbers))
            window = window[len(batch) :]


def _pad(batch: list[Row], pad_id: int, number: int) -> Batch:
    def padded(tensors: list[torch.Tensor], value: int) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)

    return Batch(
        tokens=padded([row.tokens for row in batch], pad_id),
        attention_mask=padded([torch.ones_like(row.tokens) for row in batch], 0),
        counted=padded([row.counted for row in batch], False),
        rows=tuple(batch),
        number=number,
    )


def items(model: Any, corpus: Any) -> Iterator[Row] | Iterator[Picture]:
    """Yield the rows of tokens of a corpus if the model reads text (see `rows`), else the images (see `pictures`)."""
    return pictures(model, corpus) if reads_images(model) else rows(model, corpus)


def documents_in(model: Any, corpus: Any) -> list[Hashable]:
    """Return the documents of a corpus in its order, as in `Batch.items` and `ImageBatch.items`."""
    if reads_images(model):
        return list(range(sum(1 for _ in pictures(model, corpus))))
    return list(dict.fromkeys(row.item for row in rows(model, corpus)))


def assign_folds(model: Any, corpus: Any, *, folds: int | None, fold_documents: int | None) -> Mapping[Hashable, int]:
    """Assign the documents of a corpus to folds in turn: the first to fold 0, the second to fold 1, and so on.

    This reads the corpus once, without running the model.

    Args:
        model: A `TransformerBridge` or a `HookedTransformer`.
        corpus: Text or images that can be read more than once.
        folds: Number of folds, at least 5.
        fold_documents: Number of documents in a fold, instead of `folds`. Documents that would not fill another fold
            are added to the others, one to each.

    Returns:
        The fold of each document of `documents_in`. Empty if both numbers are None.

    Raises:
        SpLensError: If both numbers are given, there would be fewer than 5 folds, there are fewer documents than folds,
            or the corpus is an iterator.
    """
    if folds is None and fold_documents is None:
        return {}
    if folds is not None and fold_documents is not None:
        raise SpLensError(f"folds={folds} and fold_documents={fold_documents} exclude each other: pass one of them.")
    if folds is not None and folds < MIN_FOLDS:
        raise SpLensError(
            f"folds={folds} is too few to estimate a standard error. Use at least {MIN_FOLDS}, for example folds=20."
        )
    if fold_documents is not None:
        check_at_least(1, fold_documents=fold_documents)
    if isinstance(corpus, Iterator):
        raise SpLensError(
            "the corpus is an iterator, which can be read once only. Folds need a second pass, so pass a list."
        )
    documents = documents_in(model, corpus)
    if folds is None:
        folds = len(documents) // (fold_documents or 1)
        if folds < MIN_FOLDS:
            raise SpLensError(
                f"fold_documents={fold_documents}, but the corpus has only {len(documents)} documents, and at least "
                f"{MIN_FOLDS} folds are needed. Use fewer documents in a fold, or add documents."
            )
    if len(documents) < folds:
        fix = f"Use at most folds={len(documents)}" if len(documents) >= MIN_FOLDS else "Omit folds"
        raise SpLensError(
            f"folds={folds}, but the corpus has only {len(documents)} documents. {fix}, or add documents. A document "
            "is never divided among folds, because its tokens are not independent."
        )
    return {document: index % folds for index, document in enumerate(documents)}


def no_counted_token() -> SpLensError:
    """Return the error for a corpus without a token whose activations are collected."""
    return SpLensError(
        "no token of the corpus counts: a token counts if it is text (no special token) and follows other text in its "
        "row. Use longer rows."
    )


def reusable(corpus: Any) -> Any:
    """Return the corpus, as a list if it is an iterator, so that it can be read more than once."""
    return list(corpus) if hasattr(corpus, "__next__") else corpus
