"""Gradients and gradient steps on a corpus, or on two at once, in plain torch."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float

from sp_lens.data.batching import Batch, ImageBatch, batches
from sp_lens.errors import check_choice, check_positive
from sp_lens.evaluation.predictions import losses, nothing_to_predict, predictions
from sp_lens.unlearning.weights import Values, Weights, gradients

Optimizer = Literal["adamw", "sgd"]
OPTIMIZERS: tuple[Optimizer, ...] = get_args(Optimizer)

# A batch, its place among the batches of its corpus, and the seed of what a masked language model is asked for -> the
# loss of each prediction, with its graph.
Judge = Callable[[Any, int, int], Float[torch.Tensor, " prediction"]]


def check_training(optimizer: Optimizer, learning_rate: float, updates: int) -> None:
    """Refuse settings with which `train` can't work."""
    check_choice("optimizer", optimizer, OPTIMIZERS)
    check_positive(learning_rate=learning_rate, updates=updates)


def truth(model: Any) -> Judge:
    """Nats per prediction, as `evaluate` judges it."""

    def nats(batch: Batch | ImageBatch, place: int, asked: int) -> Float[torch.Tensor, " prediction"]:
        with torch.enable_grad():
            return losses(*predictions(model, batch, asked))

    return nats


def mean_loss(model: Any, batch: Batch | ImageBatch, seed: int) -> Float[torch.Tensor, ""] | None:
    """The mean over a batch of what `truth` says of it; None where nothing is predicted."""
    nats = truth(model)(batch, 0, seed)
    return nats.mean() if len(nats) else None


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
    judged = _judged(model, corpus, truth(model), seed, batch_tokens)
    found = (gradients(nats.mean(), weights) for nats in judged)
    return _descend(weights, found, optimizer, learning_rate, updates, ascend=ascend)


def train_on_both(
    model: Any,
    weights: Weights,
    corpora: Mapping[str, Any],
    judges: Mapping[str, Judge],
    *,
    optimizer: Optimizer,
    learning_rate: float,
    updates: int,
    seed: int,
    batch_tokens: int,
) -> Iterator[None]:
    """As `train`, on the forget and the retain corpus at once, by what the judge of either says.

    An update sees a batch of each, with as large a share of `batch_tokens` as the corpus has of the two (one row at
    least): a sample of both together, and lowers the mean over all its predictions.

    Raises:
        SpLensError: for a corpus that has nothing to predict.
    """
    sizes = {
        side: sum(batch.in_context.numel() for batch in batches(model, corpora[side], batch_tokens=batch_tokens))
        for side in judges
    }
    shares = {side: max(1, round(batch_tokens * size / sum(sizes.values()))) for side, size in sizes.items()}
    judged = [_judged(model, corpora[side], judge, seed, shares[side]) for side, judge in judges.items()]
    return _descend(weights, _together(judged, weights), optimizer, learning_rate, updates)


def _descend(
    weights: Weights,
    found: Iterator[Values],
    optimizer: Optimizer,
    learning_rate: float,
    updates: int,
    *,
    ascend: bool = False,
) -> Iterator[None]:
    """`updates` optimiser updates each time the next thing is asked for, one a gradient."""
    kind = torch.optim.AdamW if optimizer == "adamw" else torch.optim.SGD
    steps = kind(weights.values(), lr=learning_rate, weight_decay=0.0, maximize=ascend)
    while True:
        for _ in range(updates):
            for name, gradient in next(found).items():
                weights[name].grad = gradient
            steps.step()
            steps.zero_grad()
        yield


def _together(judged: list[Iterator[Float[torch.Tensor, " prediction"]]], weights: Weights) -> Iterator[Values]:
    """The gradient of the mean over the next batches of all; one at a time, so that one graph is kept at most."""
    while True:
        total: dict[str, torch.Tensor] = {}
        count = 0
        for one in judged:
            nats = next(one)
            count += len(nats)
            for name, gradient in gradients(nats.sum(), weights).items():
                total[name] = total[name] + gradient if name in total else gradient
        yield {name: gradient / count for name, gradient in total.items()}


def _judged(
    model: Any, corpus: Any, judge: Judge, seed: int, batch_tokens: int
) -> Iterator[Float[torch.Tensor, " prediction"]]:
    """The losses of the predictions of batch after batch, over and over, each computed when it is asked for."""
    generator = torch.Generator().manual_seed(seed)
    parts = list(batches(model, corpus, batch_tokens=batch_tokens))
    asked = seed
    while True:
        some = False
        for place in torch.randperm(len(parts), generator=generator).tolist():
            if len(nats := judge(parts[place], place, asked)):
                some = True
                yield nats
        if not some:
            raise nothing_to_predict()
        asked += 1
