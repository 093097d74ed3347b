"""What a model predicts in a batch, the correct answers, and the loss of each prediction."""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float, Int

from sp_lens.data.batching import Batch, ImageBatch
from sp_lens.data.masked_lm import mask_tokens
from sp_lens.errors import SpLensError
from sp_lens.models.forward import forward
from sp_lens.models.task import task_of


def predictions(
    model: Any, batch: Batch | ImageBatch, seed: int
) -> tuple[Float[torch.Tensor, "prediction d_vocab"], Int[torch.Tensor, " prediction"]]:
    """The float32 logits of all that the model is asked for in a batch, and the right answers."""
    logits, targets, asked = _answers(model, batch, seed)
    return logits[asked].float(), targets[asked]


def predictions_by_row(
    model: Any, batch: Batch | ImageBatch, seed: int
) -> Iterator[tuple[Float[torch.Tensor, "prediction d_vocab"], Int[torch.Tensor, " prediction"]]]:
    """The `predictions` of each row, one after the other."""
    for logits, targets, asked in zip(*_answers(model, batch, seed), strict=True):
        yield logits[asked].float(), targets[asked]


def prediction_losses(model: Any, batch: Batch | ImageBatch, seed: int) -> Float[torch.Tensor, " prediction"]:
    """Nats of each of the `predictions`, in their order."""
    return torch.cat([losses(logits, targets) for logits, targets in predictions_by_row(model, batch, seed)])


def _answers(
    model: Any, batch: Batch | ImageBatch, seed: int
) -> tuple[Float[torch.Tensor, "row ... d_vocab"], Int[torch.Tensor, "row ..."], Bool[torch.Tensor, "row ..."]]:
    """The logits of a batch, what is right in each place, and in which places the model is asked."""
    if isinstance(batch, ImageBatch):
        logits = forward(model, batch)
        targets = batch.labels.to(logits.device)
        return logits, targets, torch.ones_like(targets, dtype=torch.bool)
    if task_of(model) == "masked":
        hidden, asked = mask_tokens(model, batch, seed)
        logits = forward(model, hidden)
        return logits, batch.tokens.to(logits.device), asked.to(logits.device)
    logits = forward(model, batch)
    return logits[:, :-1], batch.tokens[:, 1:].to(logits.device), batch.counted[:, 1:].to(logits.device)


def nothing_to_predict() -> SpLensError:
    """The error of a corpus in which the model is asked for nothing."""
    return SpLensError(
        "nothing to predict: no row of the corpus has a token that counts (for a causal model, with one before it)."
    )


def nan_logits() -> SpLensError:
    """The error of a model that computes no numbers."""
    return SpLensError(
        "the model's logits are NaN: load it in float32 or bfloat16, find the broken weight, or, where it was "
        "trained, take smaller steps."
    )


def losses(
    logits: Float[torch.Tensor, "token d_vocab"], targets: Int[torch.Tensor, " token"]
) -> Float[torch.Tensor, " token"]:
    """Cross-entropy in nats of each prediction.

    Raises:
        SpLensError: when a logit is NaN.
    """
    nats = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    if nats.isnan().any():
        raise nan_logits()
    return nats
