"""Find the contexts in which chosen neurons are most active, as tensors, and write tokens as text."""

import codecs
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int

from sp_lens.data.batch import Batch
from sp_lens.models.forward import input_device, require_finite_activations, visit_activations
from sp_lens.neurons.layout import NeuronGroup

_BYTE = re.compile("<0x[0-9A-F]{2}>")  # a single byte in SentencePiece's notation
OUTSIDE = -1  # token id at positions before the start and after the end of a row


class Contexts(NamedTuple):
    """The contexts in which the chosen neurons of a group are most active, strongest first.

    Attributes:
        strength: |z| at the peak; negative if the row has no token that counts.
        row: Number of the row in the corpus.
        position: Token position of the peak in its row.
        tokens: Token ids around the peak.
        z: Activation at each of these tokens; NaN at tokens that do not count.
    """

    strength: Float[torch.Tensor, "chosen kept"]
    row: Int[torch.Tensor, "chosen kept"]
    position: Int[torch.Tensor, "chosen kept"]
    tokens: Int[torch.Tensor, "chosen kept window"]
    z: Float[torch.Tensor, "chosen kept window"]

    def merge(self, other: "Contexts", k: int) -> "Contexts":
        """Return the `k` strongest contexts of both."""
        both = [torch.cat(pair, dim=1) for pair in zip(self, other, strict=True)]
        order = _strongest(both[0], both[1], k)
        neuron = torch.arange(len(order))[:, None]
        return Contexts(*(tensor[neuron, order] for tensor in both))


def strongest_contexts(
    model: Any, batch: Batch, chosen: Mapping[NeuronGroup, torch.Tensor], *, k: int, context: int
) -> dict[str, Contexts]:
    """Run the model on one batch and return the strongest contexts of the chosen neurons in it.

    Args:
        model: A `TransformerBridge` or a `HookedTransformer`.
        batch: Rows of tokens.
        chosen: Indices of the chosen neurons in each group.
        k: Number of contexts per neuron; fewer if the batch has fewer rows.
        context: Number of tokens on either side of the peak.

    Returns:
        `Contexts` by hook name, on the CPU; empty if no token of the batch counts.
    """
    if not batch.in_context.any():
        return {}
    contexts: dict[str, Contexts] = {}
    device = input_device(model)
    counts = batch.in_context.to(device)
    tokens = batch.tokens.masked_fill(batch.attention_mask == 0, OUTSIDE).to(device)
    rows = torch.tensor([row.number for row in batch.rows], device=device)
    window = torch.arange(-context, context + 1, device=device)

    def find_peaks(group: NeuronGroup, activation: torch.Tensor) -> None:
        z = activation[..., chosen[group].to(activation.device)].float().to(device)  # [row pos chosen]
        strength, peak = z.abs().masked_fill(~counts[..., None], -1).max(dim=1)  # the first of equal maxima
        order = _strongest(strength.T, rows.expand(len(chosen[group]), -1), k)  # [chosen kept], indices of rows
        neuron = torch.arange(len(order), device=device)[:, None]
        position = peak[order, neuron]
        positions = position[..., None] + window
        inside = (positions >= 0) & (positions < tokens.shape[1])
        index = (order[..., None], positions.clamp(0, tokens.shape[1] - 1))
        contexts[group.name] = Contexts(
            strength=strength[order, neuron],
            row=rows[order],
            position=position,
            tokens=tokens[index].masked_fill(~inside, OUTSIDE),
            z=z[(*index, neuron[..., None])].masked_fill(~(inside & counts[index]), math.nan),
        )

    visit_activations(model, batch, tuple(chosen), find_peaks)
    for group in chosen:
        require_finite_activations(contexts[group.name].strength, group, batch.number)
    return {name: Contexts(*(tensor.cpu() for tensor in group_contexts)) for name, group_contexts in contexts.items()}


def _strongest(
    strength: Float[torch.Tensor, "chosen row"], row: Int[torch.Tensor, "chosen row"], k: int
) -> Int[torch.Tensor, "chosen kept"]:
    """Return the indices of the `k` largest strengths, largest first; equal ones in the order of their rows."""
    by_row = row.argsort(dim=1)
    order = strength.gather(1, by_row).argsort(dim=1, descending=True, stable=True)
    return by_row.gather(1, order)[:, :k]


def token_text(tokenizer: Any, token: int) -> str:
    r"""Return the text of one token, with spaces and line breaks as they are.

    A token can be a part of a character: a byte-level tokenizer that does not know "€" splits it into three tokens.
    Decoding any such token alone gives "�". This function writes its bytes out instead, either as Python does ("\xe2")
    or, if the tokenizer has its own notation for bytes, as the tokenizer does ("<0xE2>").

    Example:
        >>> import sp_lens as sp
        >>> tokenizer = sp.load_model("demo").tokenizer
        >>> [token_text(tokenizer, token) for token in tokenizer("5 €", add_special_tokens=False)["input_ids"]]
        ['5', ' ', '\\xe2', '\\x82', '\\xac']
    """
    data, piece = _token_bytes(tokenizer, token), tokenizer.convert_ids_to_tokens(token)
    if piece is None:  # an embedding without a token: models round the size of their vocabulary up
        return f"<{token}>"
    if data is None or _BYTE.fullmatch(piece):
        return piece
    return data.decode(errors="backslashreplace")


def decode_jointly(tokenizer: Any, tokens: Sequence[int]) -> list[str]:
    r"""Return the text of consecutive tokens, one string per token.

    A character that is split among tokens is in the string of the last of them, and the strings of the others are
    empty. Only bytes that are no part of a whole character are written out, as by `token_text`.

    Example:
        >>> import sp_lens as sp
        >>> tokenizer = sp.load_model("demo").tokenizer
        >>> tokens = tokenizer("5 €", add_special_tokens=False)["input_ids"]
        >>> decode_jointly(tokenizer, tokens), decode_jointly(tokenizer, tokens[:-1])
        (['5', ' ', '', '', '€'], ['5', ' ', '', '\\xe2\\x82'])
    """
    decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
    texts = []
    for token in tokens:
        data = _token_bytes(tokenizer, token)
        if data is None:
            texts.append(decoder.decode(b"", final=True) + token_text(tokenizer, token))
        else:
            texts.append(decoder.decode(data))
    return [*texts[:-1], texts[-1] + decoder.decode(b"", final=True)] if texts else []


def _token_bytes(tokenizer: Any, token: int) -> bytes | None:
    """Return the bytes that a token stands for, or None for special tokens and numbers without a token."""
    piece = tokenizer.convert_ids_to_tokens(token)
    if piece is None or token in tokenizer.all_special_ids:
        return None
    if _BYTE.fullmatch(piece):
        data = bytes([int(piece[3:5], 16)])
    elif all(char in _byte_of_char() for char in piece):
        data = bytes(_byte_of_char()[char] for char in piece)
    else:
        data = None
    # Only the tokenizer knows whether these are bytes: an "é" of SentencePiece looks like the code of a byte.
    if data and data.decode(errors="replace") == tokenizer.decode([token], clean_up_tokenization_spaces=False):
        return data
    return piece.replace("▁", " ").encode(errors="backslashreplace")  # the space of SentencePiece


@cache
def _byte_of_char() -> dict[str, int]:
    """Return the byte of each character with which byte-level tokenizers write bytes, as in GPT-2."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {char: byte for byte, char in bytes_to_unicode().items()}
