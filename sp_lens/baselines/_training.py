"""Gradients and gradient steps on a corpus, in plain torch."""

from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float

from sp_lens.baselines._steps import check_positive
from sp_lens.baselines._weights import Weights, gradients
from sp_lens.batches import Batch, ImageBatch, batches
from sp_lens.errors import check_choice
from sp_lens.evaluate import losses, nothing_to_predict, predictions

Optimizer = Literal["adamw", "sgd"]
OPTIMIZERS: tuple[Optimizer, ...] = get_args(Optimizer)


def check_training(optimizer: Optimizer, learning_rate: float, updates: int) -> None:
    """Refuse settings with which `train` can't work."""
    check_choice("optimizer", optimizer, OPTIMIZERS)
    check_positive(learning_rate=learning_rate, updates=updates)


def mean_loss(model: Any, batch: Batch | ImageBatch, seed: int) -> Float[torch.Tensor, ""] | None:
    """Nats per prediction of a batch, as `evaluate` judges it, with its graph; None where nothing is predicted."""
    with torch.enable_grad():
        logits, targets = predictions(model, batch, seed)
        return losses(logits, targets).mean() if len(targets) else None


def train(
    model: Any,
    weights: Weights,
    corpus: Any,
    *,
    optimizer: Optimizer,
    learning_rate: float,
    ascend: bool = False,
    updates: int,
    seed: int,
    batch_tokens: int,
) -> Iterator[None]:
    """`updates` optimiser updates each time the next thing is asked for, one a batch, without weight decay.

    The batches come in a new random order each time all are through; a masked language model is then asked for
    other tokens.

    Raises:
        SpLensError: for a corpus that has nothing to predict.
    """
    kind = torch.optim.AdamW if optimizer == "adamw" else torch.optim.SGD
    steps = kind(weights.values(), lr=learning_rate, weight_decay=0.0, maximize=ascend)
    losses_ = _losses(model, corpus, seed, batch_tokens)
    while True:
        for _ in range(updates):
            for name, gradient in gradients(next(losses_), weights).items():
                weights[name].grad = gradient
            steps.step()
            steps.zero_grad()
        yield


def _losses(model: Any, corpus: Any, seed: int, batch_tokens: int) -> Iterator[Float[torch.Tensor, ""]]:
    """The losses of the batches, over and over, each computed when it is asked for."""
    generator = torch.Generator().manual_seed(seed)
    parts = list(batches(model, corpus, batch_tokens=batch_tokens))
    asked = seed
    while True:
        some = False
        for place in torch.randperm(len(parts), generator=generator).tolist():
            if (loss := mean_loss(model, parts[place], asked)) is not None:
                some = True
                yield loss
        if not some:
            raise nothing_to_predict()
        asked += 1
