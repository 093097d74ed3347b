"""Batches of token rows and of images, which record the positions that count."""

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int

from sp_lens.data.rows import Row


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows of tokens, padded on the right to the longest of them.

    Attributes:
        tokens: Token ids.
        attention_mask: 1 at the tokens of a row, 0 at padding.
        counted: True at text, False at special tokens and padding.
        rows: The rows without padding, in the same order.
        number: Index of the batch in its corpus.
    """

    tokens: Int[torch.Tensor, "row pos"]
    attention_mask: Int[torch.Tensor, "row pos"]
    counted: Bool[torch.Tensor, "row pos"]
    rows: tuple[Row, ...]
    number: int = 0

    @property
    def inputs(self) -> Int[torch.Tensor, "row pos"]:
        """The tensor that the model reads."""
        return self.tokens

    @property
    def options(self) -> dict[str, Any]:
        """Further arguments of the model's forward method."""
        return {"attention_mask": self.attention_mask}

    @property
    def row_numbers(self) -> tuple[int, ...]:
        """The index of each row in its corpus."""
        return tuple(row.number for row in self.rows)

    @property
    def in_context(self) -> Bool[torch.Tensor, "row pos"]:
        """True at the counted tokens that follow another counted token: `collect` uses the activations there.

        The first token of a row has no context, and models place attention sinks there. In SmolLM2-135M one neuron has
        an activation of 2000 at the first token and of 0.07 elsewhere. With three rows in 9000 tokens this neuron
        seemed specific to one corpus, and pruning it destroys the model on any text.
        """
        return self.counted & (self.counted.cumsum(dim=1) > 1)

    @property
    def uncounted(self) -> Bool[torch.Tensor, "row pos"]:
        """True at the tokens that are not `in_context`: special tokens and the first token of a row, not padding."""
        return self.not_padding & ~self.in_context

    @property
    def not_padding(self) -> Bool[torch.Tensor, "row pos"]:
        """True at all tokens of a row: text and special tokens."""
        return self.attention_mask.bool()

    @property
    def items(self) -> list[Hashable]:
        """The document of each row; the number of the row in its corpus if it has no document."""
        return [row.item for row in self.rows]

    def repeated(self, copies: int) -> "Batch":
        """Return `copies` copies of all rows, one copy of the whole batch after the other."""
        return replace(
            self,
            tokens=self.tokens.repeat(copies, 1),
            attention_mask=self.attention_mask.repeat(copies, 1),
            counted=self.counted.repeat(copies, 1),
            rows=self.rows * copies,
        )

    def part(self, rows: slice) -> "Batch":
        """Return some of the rows, padded to the longest of them."""
        longest = max(len(row.tokens) for row in self.rows[rows])
        return replace(
            self,
            tokens=self.tokens[rows, :longest],
            attention_mask=self.attention_mask[rows, :longest],
            counted=self.counted[rows, :longest],
            rows=self.rows[rows],
        )

    def to(self, device: torch.device) -> "Batch":
        """Return the batch with its padded tensors on a device."""
        return replace(
            self,
            tokens=self.tokens.to(device),
            attention_mask=self.attention_mask.to(device),
            counted=self.counted.to(device),
        )


@dataclass(frozen=True, eq=False)
class ImageBatch:
    """Images of one size with their classes.

    Attributes:
        pixels: Pixel values as the image processor of the model returns them.
        labels: Class of each image.
        in_context: True at the patches, which are the tokens of an image; False at the class token before them.
        images: Index of each image in its corpus.
        number: Index of the batch in its corpus.
    """

    pixels: Float[torch.Tensor, "row channel height width"]
    labels: Int[torch.Tensor, " row"]
    in_context: Bool[torch.Tensor, "row pos"]
    images: tuple[int, ...]
    number: int = 0

    @property
    def inputs(self) -> Float[torch.Tensor, "row channel height width"]:
        """The tensor that the model reads."""
        return self.pixels

    @property
    def options(self) -> dict[str, Any]:
        """Further arguments of the model's forward method: none."""
        return {}

    @property
    def row_numbers(self) -> tuple[int, ...]:
        """The index of each image in its corpus."""
        return self.images

    @property
    def uncounted(self) -> Bool[torch.Tensor, "row pos"]:
        """True at the class token, whose activations are not collected, like those of the BOS token of a text."""
        return ~self.in_context

    @property
    def not_padding(self) -> Bool[torch.Tensor, "row pos"]:
        """True at the patches and at the class token: images have no padding."""
        return torch.ones_like(self.in_context)

    @property
    def items(self) -> list[Hashable]:
        """The index of each image in its corpus: an image is a document of its own."""
        return list(self.images)

    def repeated(self, copies: int) -> "ImageBatch":
        """Return `copies` copies of all images, one copy of the whole batch after the other."""
        return replace(
            self,
            pixels=self.pixels.repeat(copies, 1, 1, 1),
            labels=self.labels.repeat(copies),
            in_context=self.in_context.repeat(copies, 1),
            images=self.images * copies,
        )

    def part(self, rows: slice) -> "ImageBatch":
        """Return some of the images."""
        return replace(
            self,
            pixels=self.pixels[rows],
            labels=self.labels[rows],
            in_context=self.in_context[rows],
            images=self.images[rows],
        )

    def to(self, device: torch.device) -> "ImageBatch":
        """Return the batch with its tensors on a device."""
        return replace(
            self,
            pixels=self.pixels.to(device),
            labels=self.labels.to(device),
            in_context=self.in_context.to(device),
        )


AnyBatch = Batch | ImageBatch
