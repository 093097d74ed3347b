"""The strongest contexts of chosen neurons as tensors: those of a batch, and of two batches together."""

import math
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int

from sp_lens.data.batching import Batch
from sp_lens.models.forward import input_device, require_finite, visit
from sp_lens.neurons.layout import NeuronGroup

OUTSIDE = -1  # in the place of a token, beyond the ends of a row


class Contexts(NamedTuple):
    """The strongest contexts so far of the chosen neurons of a group, best first.

    Attributes:
        strength: |z| at the peak, negative where the row has no token that counts.
        row: the row's place in the corpus.
        position: of the peak in its row.
        tokens: around the peak.
        z: at each of them.
    """

    strength: Float[torch.Tensor, "chosen kept"]
    row: Int[torch.Tensor, "chosen kept"]
    position: Int[torch.Tensor, "chosen kept"]
    tokens: Int[torch.Tensor, "chosen kept window"]
    z: Float[torch.Tensor, "chosen kept window"]

    def merge(self, other: "Contexts", k: int) -> "Contexts":
        """The `k` strongest of both."""
        both = [torch.cat(pair, dim=1) for pair in zip(self, other, strict=True)]
        order = _strongest(both[0], both[1], k)
        neuron = torch.arange(len(order))[:, None]
        return Contexts(*(tensor[neuron, order] for tensor in both))


def contexts_of_batch(
    model: Any, batch: Batch, number: int, chosen: Mapping[NeuronGroup, torch.Tensor], *, k: int, context: int
) -> dict[str, Contexts]:
    """By hook name, the `k` strongest contexts of the chosen neurons in one batch, so many tokens on either side."""
    found: dict[str, Contexts] = {}
    device = input_device(model)
    counts = batch.in_context.to(device)
    tokens = batch.tokens.masked_fill(batch.attention_mask == 0, OUTSIDE).to(device)
    rows = torch.tensor([row.number for row in batch.rows], device=device)
    window = torch.arange(-context, context + 1, device=device)

    def look(group: NeuronGroup, activation: torch.Tensor) -> None:
        z = activation[..., chosen[group].to(activation.device)].float().to(device)  # [row pos chosen]
        strength, peak = z.abs().masked_fill(~counts[..., None], -1).max(dim=1)  # the first of equals
        order = _strongest(strength.T, rows.expand(len(chosen[group]), -1), k)  # [chosen kept], indices of rows
        neuron = torch.arange(len(order), device=device)[:, None]
        position = peak[order, neuron]
        places = position[..., None] + window
        inside = (places >= 0) & (places < tokens.shape[1])
        at = (order[..., None], places.clamp(0, tokens.shape[1] - 1))
        found[group.name] = Contexts(
            strength=strength[order, neuron],
            row=rows[order],
            position=position,
            tokens=tokens[at].masked_fill(~inside, OUTSIDE),
            z=z[(*at, neuron[..., None])].masked_fill(~(inside & counts[at]), math.nan),
        )

    visit(model, batch, tuple(chosen), look)
    for group in chosen:
        require_finite(found[group.name].strength, group, number)
    return {name: Contexts(*(tensor.cpu() for tensor in contexts)) for name, contexts in found.items()}


def _strongest(
    strength: Float[torch.Tensor, "chosen row"], row: Int[torch.Tensor, "chosen row"], k: int
) -> Int[torch.Tensor, "chosen kept"]:
    """Which `k` are strongest, best first; of equals those of the earlier rows."""
    by_row = row.argsort(dim=1)
    order = strength.gather(1, by_row).argsort(dim=1, descending=True, stable=True)
    return by_row.gather(1, order)[:, :k]


def token_text(tokenizer: Any, token: int) -> str:
    r"""What one token stands for, spaces and line breaks as they are.

    A token can be a part of a character: "€" is three of them, where a byte-level tokenizer does not know it.
    Decoding such a token alone gives "�", whichever it is. Here its bytes are written out instead ("\xe2"),
    as Python does, or left as a tokenizer itself writes them ("<0xE2>").

    Example:
        >>> import sp_lens as sp
        >>> tokenizer = sp.load_model("demo").tokenizer
        >>> [token_text(tokenizer, token) for token in tokenizer("5 €", add_special_tokens=False)["input_ids"]]
        ['5', ' ', '\\xe2', '\\x82', '\\xac']
    """
    piece = tokenizer.convert_ids_to_tokens(token)
    if piece is None:  # an embedding that no token has, as models round their vocabulary up
        return f"<{token}>"
    if token in tokenizer.all_special_ids:
        return piece
    if all(char in _byte_of_char() for char in piece):
        plain = bytes(_byte_of_char()[char] for char in piece)
        # That these are its bytes is for the tokenizer to say: an "é" of SentencePiece's looks like one of them.
        if plain.decode(errors="replace") == tokenizer.decode([token], clean_up_tokenization_spaces=False):
            return plain.decode(errors="backslashreplace")
    return piece.replace("▁", " ")  # SentencePiece's space


@cache
def _byte_of_char() -> dict[str, int]:
    """The alphabet in which byte-level tokenizers write bytes, that of GPT-2."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {char: byte for byte, char in bytes_to_unicode().items()}
