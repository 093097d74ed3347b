"""Shared training of the unlearning methods: their options, and loops of optimiser updates on one or two corpora."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, get_args

import torch
from jaxtyping import Float

from sp_lens.data.batch import Batch, ImageBatch
from sp_lens.data.batching import batches
from sp_lens.data.corpora import Corpora
from sp_lens.errors import check_choice, check_positive
from sp_lens.evaluation.predictions import losses, nothing_to_predict, predictions
from sp_lens.typing import BATCH_TOKENS
from sp_lens.unlearning.weights import Values, Weights, gradients

Optimizer = Literal["adamw", "sgd"]
OPTIMIZERS: tuple[Optimizer, ...] = get_args(Optimizer)

# (batch, index of the batch in its corpus, seed of the tokens that a masked language model predicts) -> the loss of
# each prediction, with its graph.
BatchLoss = Callable[[Batch | ImageBatch, int, int], Float[torch.Tensor, " prediction"]]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options that all methods of `sp_lens.unlearning` take as keyword arguments.

    Attributes:
        steps: Number of steps. The model is evaluated after each of them.
        seed: Seed of the order of the batches, of the random draws of the method, and of the choice of tokens that a
            masked language model predicts.
        batch_tokens: Number of tokens per batch, including padding. One optimiser update reads one batch.
        progress: Whether to show a progress bar.

    Raises:
        SpLensError: If a number is not positive.
    """

    steps: int = 20
    seed: int = 0
    batch_tokens: int = BATCH_TOKENS
    progress: bool = True

    def __post_init__(self) -> None:
        check_positive(steps=self.steps, batch_tokens=self.batch_tokens)


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(RunOptions):
    """Options that the methods which train the model take as keyword arguments: those of `RunOptions`, and these.

    Attributes:
        optimizer: "adamw" or "sgd", both without weight decay.
        learning_rate: Learning rate of the optimiser.
        updates: Number of optimiser updates per step, one per batch.

    Raises:
        SpLensError: If a number is not positive or the optimiser is unknown.
    """

    optimizer: Optimizer = "adamw"
    learning_rate: float = 1e-4
    updates: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_positive(learning_rate=self.learning_rate, updates=self.updates)

    def settings(self) -> dict[str, Any]:
        """Return the options of the training, as a run records them."""
        return {"optimizer": self.optimizer, "learning_rate": self.learning_rate, "updates": self.updates}


class RunKeywords(TypedDict, total=False):
    """Keyword arguments of `RunOptions`, for type checkers and editors."""

    steps: int
    seed: int
    batch_tokens: int
    progress: bool


class TrainingKeywords(RunKeywords, total=False):
    """Keyword arguments of `TrainingOptions`, for type checkers and editors."""

    optimizer: Optimizer
    learning_rate: float
    updates: int


def cross_entropy(model: Any) -> BatchLoss:
    """Return the loss that `evaluate` reports: the cross-entropy of each prediction in nats."""

    def loss(batch: Batch | ImageBatch, index: int, seed: int) -> Float[torch.Tensor, " prediction"]:
        with torch.enable_grad():
            return losses(*predictions(model, batch, seed))

    return loss


def train(
    model: Any, weights: Weights, corpus: Any, options: TrainingOptions, *, ascend: bool = False
) -> Iterator[dict[str, Any]]:
    """Train on a corpus: each item of the iterator is one step of `options.updates` optimiser updates.

    The batches are shuffled again after each pass over the corpus, and a masked language model then predicts other
    tokens.

    Args:
        model: A `TransformerBridge` or a `HookedTransformer`.
        weights: Live parameters of the model to train.
        corpus: Corpus to train on.
        options: Optimiser, number of updates per step, seed and batch size.
        ascend: Whether to maximise the loss instead of minimising it.

    Yields:
        An empty mapping after each step, because there is nothing to record besides the evaluation.

    Raises:
        SpLensError: If there is nothing to predict in the corpus.
    """
    batch_losses = _losses(model, corpus, cross_entropy(model), options.seed, options.batch_tokens)
    batch_gradients = (gradients(nats.mean(), weights) for nats in batch_losses)
    return _update(weights, batch_gradients, options, ascend=ascend)


def train_on_both(
    model: Any,
    weights: Weights,
    corpora: Corpora,
    loss_functions: Mapping[str, BatchLoss],
    options: TrainingOptions,
) -> Iterator[dict[str, Any]]:
    """Train on the forget and the retain corpus at once, each with its own loss. The steps are those of `train`.

    An update reads a batch of each corpus. `options.batch_tokens` is divided in proportion to the sizes of the corpora
    (at least one row each), so the two batches are a sample of the joint data. The update lowers the mean loss over all
    predictions of both batches.

    Args:
        model: A `TransformerBridge` or a `HookedTransformer`.
        weights: Live parameters of the model to train.
        corpora: The four corpora, of which forget and retain are read.
        loss_functions: Loss for each of the corpora "forget" and "retain".
        options: Optimiser, number of updates per step, seed and batch size.

    Yields:
        An empty mapping after each step.

    Raises:
        SpLensError: If there is nothing to predict in a corpus.
    """
    sizes = {
        side: sum(
            batch.in_context.numel() for batch in batches(model, corpora[side], batch_tokens=options.batch_tokens)
        )
        for side in loss_functions
    }
    total = sum(sizes.values())
    batch_losses = [
        _losses(model, corpora[side], loss, options.seed, max(1, round(options.batch_tokens * sizes[side] / total)))
        for side, loss in loss_functions.items()
    ]
    return _update(weights, _mean_gradients(batch_losses, weights), options)


def _update(
    weights: Weights, batch_gradients: Iterator[Values], options: TrainingOptions, *, ascend: bool = False
) -> Iterator[dict[str, Any]]:
    """Yield after each step of `options.updates` optimiser updates, one per item of `batch_gradients`."""
    optimizer_class = torch.optim.AdamW if options.optimizer == "adamw" else torch.optim.SGD
    optimizer = optimizer_class(weights.values(), lr=options.learning_rate, weight_decay=0.0, maximize=ascend)
    while True:
        for _ in range(options.updates):
            for name, gradient in next(batch_gradients).items():
                weights[name].grad = gradient
            optimizer.step()
            optimizer.zero_grad()
        yield {}


def _mean_gradients(
    batch_losses: list[Iterator[Float[torch.Tensor, " prediction"]]], weights: Weights
) -> Iterator[Values]:
    """Yield the gradient of the mean loss over the next batch of each corpus, with one graph in memory at a time."""
    while True:
        total: dict[str, torch.Tensor] = {}
        count = 0
        for side_losses in batch_losses:
            nats = next(side_losses)
            count += len(nats)
            for name, gradient in gradients(nats.sum(), weights).items():
                total[name] = total[name] + gradient if name in total else gradient
        yield {name: gradient / count for name, gradient in total.items()}


def _losses(
    model: Any, corpus: Any, loss: BatchLoss, seed: int, batch_tokens: int
) -> Iterator[Float[torch.Tensor, " prediction"]]:
    """Yield the losses of batch after batch in shuffled order, endlessly. Each is computed when it is requested."""
    generator = torch.Generator().manual_seed(seed)
    corpus_batches = list(batches(model, corpus, batch_tokens=batch_tokens))
    while True:
        any_prediction = False
        for index in torch.randperm(len(corpus_batches), generator=generator).tolist():
            if len(nats := loss(corpus_batches[index], index, seed)):
                any_prediction = True
                yield nats
        if not any_prediction:
            raise nothing_to_predict()
        seed += 1  # another choice of masked tokens in the next pass
