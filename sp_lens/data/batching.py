"""Rows of tokens, or images -> batches, which say which of their positions count."""

import itertools
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int

from sp_lens.data.pixels import Picture, pictures
from sp_lens.data.tokenization import Row, rows
from sp_lens.errors import SpLensError
from sp_lens.models.task import patches_of, reads_images

# Folds of documents below which a standard error says nothing.
MIN_FOLDS = 5
# Rows that are sorted by length together before they are batched: less padding, and still a stream.
_SORTED_TOGETHER = 256


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows padded on the right to the longest.

    Attributes:
        tokens: [row pos].
        attention_mask: 1 on the row's tokens, 0 on padding.
        counted: True on real text: no padding and no special token.
        rows: the rows themselves, in the same order.
    """

    tokens: Int[torch.Tensor, "row pos"]
    attention_mask: Int[torch.Tensor, "row pos"]
    counted: Bool[torch.Tensor, "row pos"]
    rows: tuple[Row, ...]

    @property
    def inputs(self) -> Int[torch.Tensor, "row pos"]:
        """What the model reads."""
        return self.tokens

    @property
    def options(self) -> dict[str, Any]:
        """Further arguments of the model's forward method."""
        return {"attention_mask": self.attention_mask}

    @property
    def in_context(self) -> Bool[torch.Tensor, "row pos"]:
        """The counted tokens that have another before them: those whose activations are collected.

        The first token of a row has no context, and is where models keep attention sinks. On SmolLM2-135M
        one neuron is at 2000 there and at 0.07 elsewhere: three rows in 9000 tokens made it seem specific
        to a corpus, and pruning it destroys the model whatever it reads.
        """
        return self.counted & (self.counted.cumsum(dim=1) > 1)

    @property
    def uncounted(self) -> Bool[torch.Tensor, "row pos"]:
        """What is in the rows, padding left out, and is not collected: special tokens and the first of a row."""
        return self.attention_mask.bool() & ~self.in_context

    def repeated(self, copies: int) -> "Batch":
        """The rows so many times over, one copy of all after the other."""
        padded = (tensor.repeat(copies, 1) for tensor in (self.tokens, self.attention_mask, self.counted))
        return Batch(*padded, rows=self.rows * copies)

    def part(self, rows: slice) -> "Batch":
        """Some of the rows, as long as the longest of them."""
        longest = max(len(row.tokens) for row in self.rows[rows])
        padded = (tensor[rows, :longest] for tensor in (self.tokens, self.attention_mask, self.counted))
        return Batch(*padded, rows=self.rows[rows])

    def to(self, device: torch.device) -> "Batch":
        """The padded tensors on a device."""
        return Batch(self.tokens.to(device), self.attention_mask.to(device), self.counted.to(device), self.rows)


@dataclass(frozen=True, eq=False)
class ImageBatch:
    """Images of one size, with their classes.

    Attributes:
        pixels: as the model reads them.
        labels: the class of each.
        in_context: True on the patches, which are the tokens of an image; False on the class token before them.
    """

    pixels: Float[torch.Tensor, "row channel height width"]
    labels: Int[torch.Tensor, " row"]
    in_context: Bool[torch.Tensor, "row pos"]

    @property
    def inputs(self) -> Float[torch.Tensor, "row channel height width"]:
        """What the model reads."""
        return self.pixels

    @property
    def options(self) -> dict[str, Any]:
        """Further arguments of the model's forward method: none."""
        return {}

    @property
    def uncounted(self) -> Bool[torch.Tensor, "row pos"]:
        """What is not collected: the class token, as the BOS of a text."""
        return ~self.in_context

    def repeated(self, copies: int) -> "ImageBatch":
        """The images so many times over, one copy of all after the other."""
        return ImageBatch(
            self.pixels.repeat(copies, 1, 1, 1), self.labels.repeat(copies), self.in_context.repeat(copies, 1)
        )

    def part(self, rows: slice) -> "ImageBatch":
        """Some of the images."""
        return ImageBatch(self.pixels[rows], self.labels[rows], self.in_context[rows])

    def to(self, device: torch.device) -> "ImageBatch":
        """The tensors on a device."""
        return ImageBatch(self.pixels.to(device), self.labels.to(device), self.in_context.to(device))


def items(model: Any, corpus: Any) -> Iterator[Row] | Iterator[Picture]:
    """The rows of tokens, or the images, of whatever came as a corpus, by what the model reads."""
    return pictures(model, corpus) if reads_images(model) else rows(model, corpus)


def documents_of(batch: Batch | ImageBatch, *, images_before: int) -> list[Hashable]:
    """What each row of a batch belongs to: its document, itself where it is of none; an image to itself, by number."""
    if isinstance(batch, ImageBatch):
        return list(range(images_before, images_before + len(batch.labels)))
    return [row.owner for row in batch.rows]


def documents_in(model: Any, corpus: Any) -> list[Hashable]:
    """The documents of a corpus as `documents_of` has them, in its order; rows that are of none, or images."""
    if reads_images(model):
        return list(range(sum(1 for _ in pictures(model, corpus))))
    return list(dict.fromkeys(row.owner for row in rows(model, corpus)))


def deal(model: Any, corpus: Any, folds: int) -> Mapping[Hashable, int]:
    """The fold of each document of a corpus (row that is of none, image), as `documents_of` has them: dealt in turn.

    Reads the corpus once, without the model.

    Raises:
        SpLensError: for fewer than 5 folds, fewer documents than folds, and a corpus that can be read only once.
    """
    if folds < MIN_FOLDS:
        raise SpLensError(f"folds={folds}: expected {MIN_FOLDS} or more, 20 for instance; fewer say nothing.")
    if isinstance(corpus, Iterator):
        raise SpLensError("the corpus can be read once only, and dealing it to folds takes a pass: make it a list.")
    documents = documents_in(model, corpus)
    if len(documents) < folds:
        enough = f"ask for {len(documents)} folds at most" if len(documents) >= MIN_FOLDS else "none can be made"
        raise SpLensError(
            f"folds={folds}, and the corpus has {len(documents)} documents: {enough}, or bring more of them. A fold "
            "is of whole documents, as the tokens of one are too much alike to count each."
        )
    return {document: place % folds for place, document in enumerate(documents)}


def batches(model: Any, corpus: Any, *, batch_tokens: int) -> Iterator[Batch] | Iterator[ImageBatch]:
    """The rows of a corpus in batches of at most `batch_tokens` tokens, padding included.

    A row longer than that is a batch of its own. Rows are sorted by length within a window, so the order
    of the batches is not that of the rows; it is the same each time. Images come in their own order.
    """
    if reads_images(model):
        return _image_batches(model, corpus, batch_tokens)
    return text_batches(model, corpus, batch_tokens=batch_tokens)


def _image_batches(model: Any, corpus: Any, batch_tokens: int) -> Iterator[ImageBatch]:
    before, patches = patches_of(model)
    images = pictures(model, corpus)
    while batch := list(itertools.islice(images, max(1, batch_tokens // (before + patches)))):
        patch = torch.arange(before + patches) >= before
        yield ImageBatch(
            torch.stack([image.pixels for image in batch]),
            torch.tensor([image.label for image in batch]),
            patch.expand(len(batch), -1),
        )


def text_batches(model: Any, corpus: Any, *, batch_tokens: int) -> Iterator[Batch]:
    """`batches` for what works on text alone."""
    window: list[Row] = []
    for row in rows(model, corpus):
        window.append(row)
        if len(window) == _SORTED_TOGETHER:
            yield from _packed(model, window, batch_tokens)
            window = []
    yield from _packed(model, window, batch_tokens)


def _packed(model: Any, window: list[Row], batch_tokens: int) -> Iterator[Batch]:
    window = sorted(window, key=lambda row: -len(row.tokens))
    while window:
        size = max(1, batch_tokens // len(window[0].tokens))
        yield _pad(window[:size], pad_id=getattr(getattr(model, "tokenizer", None), "pad_token_id", None) or 0)
        window = window[size:]


def _pad(batch: list[Row], pad_id: int) -> Batch:
    def padded(tensors: list[torch.Tensor], value: int) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)

    return Batch(
        tokens=padded([row.tokens for row in batch], pad_id),
        attention_mask=padded([torch.ones_like(row.tokens) for row in batch], 0),
        counted=padded([row.counted for row in batch], False),
        rows=tuple(batch),
    )


def reusable(corpus: Any) -> Any:
    """The corpus, or a list of it where it could be gone through only once."""
    return list(corpus) if hasattr(corpus, "__next__") else corpus
