"""Compute the predictions of a model on a batch, the correct answers, and the loss of each prediction."""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float, Int

from sp_lens.data.batch import AnyBatch, ImageBatch
from sp_lens.data.masked_lm import mask_tokens
from sp_lens.errors import SpLensError
from sp_lens.models.forward import forward
from sp_lens.models.task import task_of


def predictions(
    model: Any, batch: AnyBatch, seed: int
) -> tuple[Float[torch.Tensor, "prediction d_vocab"], Int[torch.Tensor, " prediction"]]:
    """Return the float32 logits and the target of every prediction in a batch, in the order of rows and positions.

    Args:
        model: A `TransformerBridge` or a `HookedTransformer`.
        batch: Rows of tokens or images.
        seed: Seed of the random choice of tokens that a masked language model predicts.
    """
    logits, targets, predicted = _logits_and_targets(model, batch, seed)
    return logits[predicted].float(), targets[predicted]


def predictions_by_row(
    model: Any, batch: AnyBatch, seed: int
) -> Iterator[tuple[Float[torch.Tensor, "prediction d_vocab"], Int[torch.Tensor, " prediction"]]]:
    """Yield the `predictions` of each row. Only one row at a time is copied to float32."""
    for logits, targets, predicted in zip(*_logits_and_targets(model, batch, seed), strict=True):
        yield logits[predicted].float(), targets[predicted]


def prediction_losses(model: Any, batch: AnyBatch, seed: int) -> Float[torch.Tensor, " prediction"]:
    """Return the loss in nats of each of the `predictions`."""
    return torch.cat([losses(logits, targets) for logits, targets in predictions_by_row(model, batch, seed)])


def prediction_rows(model: Any, batch: AnyBatch, seed: int) -> Int[torch.Tensor, " prediction"]:
    """Return the row in the batch of each of the `predictions`, without running the model."""
    if isinstance(batch, ImageBatch):
        return torch.arange(len(batch.labels))
    predicted = mask_tokens(model, batch, seed)[1] if task_of(model) == "masked" else batch.counted[:, 1:]
    return predicted.nonzero()[:, 0]


def _logits_and_targets(
    model: Any, batch: AnyBatch, seed: int
) -> tuple[Float[torch.Tensor, "row ... d_vocab"], Int[torch.Tensor, "row ..."], Bool[torch.Tensor, "row ..."]]:
    """Return the logits of a batch, the correct answer at each position, and True where it is to be predicted."""
    if isinstance(batch, ImageBatch):
        logits = forward(model, batch)
        targets = batch.labels.to(logits.device)
        return logits, targets, torch.ones_like(targets, dtype=torch.bool)
    if task_of(model) == "masked":
        masked_batch, chosen = mask_tokens(model, batch, seed)
        logits = forward(model, masked_batch)
        return logits, batch.tokens.to(logits.device), chosen.to(logits.device)
    logits = forward(model, batch)
    return logits[:, :-1], batch.tokens[:, 1:].to(logits.device), batch.counted[:, 1:].to(logits.device)


def nothing_to_predict() -> SpLensError:
    """Return the error for a corpus in which there is nothing to predict."""
    return SpLensError(
        "nothing to predict: no row of the corpus has a text token (for a causal model, one with a token before it). "
        "Use longer rows."
    )


def nan_logits() -> SpLensError:
    """Return the error for a model whose logits are NaN."""
    return SpLensError(
        "the model's logits are NaN: load it in float32 or bfloat16, repair its weights, or, if it was just trained, "
        "use a lower learning rate or smaller steps."
    )


def losses(
    logits: Float[torch.Tensor, "token d_vocab"], targets: Int[torch.Tensor, " token"]
) -> Float[torch.Tensor, " token"]:
    """Return the cross-entropy in nats of each prediction.

    Raises:
        SpLensError: If a logit is NaN.
    """
    nats = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    if nats.isnan().any():
        raise nan_logits()
    return nats
