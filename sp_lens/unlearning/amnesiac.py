"""Amnesiac unlearning: wrong labels."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from sp_lens.data.batching import Batch, ImageBatch
from sp_lens.evaluation.predictions import losses, predictions
from sp_lens.typing import BATCH_TOKENS
from sp_lens.unlearning.run import UnlearningRun
from sp_lens.unlearning.training import Optimizer, check_training, train_on_both, truth
from sp_lens.unlearning.unlearn import unlearn
from sp_lens.unlearning.weights import Values, Weights


def amnesiac(
    model: Any,
    forget: Any,
    retain: Any,
    *,
    eval_forget: Any,
    eval_retain: Any,
    steps: int = 20,
    optimizer: Optimizer = "adamw",
    learning_rate: float = 1e-4,
    updates: int = 1,
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = True,
) -> UnlearningRun:
    """Train on wrong answers for the forget corpus, and on the right ones for the retain corpus.

    The unlearning by random labels of Graves et al. 2021 ("Amnesiac Machine Learning", arXiv 2010.10981), as
    Chundawat et al. 2023 (arXiv 2205.08096) and Foster et al. 2023 (arXiv 2308.07707) compare with it. Each image of
    the forget corpus gets one class that is not its own, drawn once. For a language model a label is the token that
    it is asked for: each gets another token of the vocabulary, so that it learns to expect anything.

    Where it differs from their code: any class but an image's own can be its label, so where several classes are
    forgotten one of them may be that of another; and an update sees both corpora in proportion to their sizes, where
    theirs draws from both together. They take three epochs of Adam at 1e-4.

    Args:
        model: a bridge or a `HookedTransformer`, which comes back as it was.
        forget: corpus to forget, as `load_corpus` or `load_images` returns it.
        retain: corpus to keep.
        eval_forget: held-out text of the forget corpus.
        eval_retain: held-out text of the retain corpus.
        steps: how many times the model is evaluated.
        optimizer: "adamw" or "sgd", neither with weight decay.
        learning_rate: of the optimiser.
        updates: optimiser updates a step.
        seed: of the wrong labels, of the order of the batches, and of the tokens that a masked language model is asked
            for.
        batch_tokens: tokens in a batch, padding included: what one update sees of both corpora.
        progress: show a bar.

    Raises:
        SpLensError: as `gradient_ascent`.
    """
    check_training(optimizer, learning_rate, updates)
    how: dict[str, Any] = {"optimizer": optimizer, "learning_rate": learning_rate, "updates": updates}

    def untruth(batch: Batch | ImageBatch, place: int, asked: int) -> Float[torch.Tensor, " prediction"]:
        with torch.enable_grad():
            logits, targets = predictions(model, batch, asked)
            return losses(logits, _wrong(targets, logits.shape[1], (seed, place)))

    def change(weights: Weights, before: Values, corpora: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        judges = {"forget": untruth, "retain": truth(model)}
        for _ in train_on_both(model, weights, corpora, judges, seed=seed, batch_tokens=batch_tokens, **how):
            yield {}

    corpora = {"forget": forget, "retain": retain, "eval_forget": eval_forget, "eval_retain": eval_retain}
    return unlearn(
        model,
        corpora,
        change,
        method="amnesiac",
        options=how,
        steps=steps,
        seed=seed,
        batch_tokens=batch_tokens,
        progress=progress,
    )


def _wrong(
    targets: Int[torch.Tensor, " prediction"], classes: int, seed: tuple[int, int]
) -> Int[torch.Tensor, " prediction"]:
    """For each answer another one, all others being as likely; the same for the same seed, which a batch has."""
    beside = np.random.default_rng(seed).integers(1, classes, len(targets))
    return (targets + torch.from_numpy(beside).to(targets)) % classes
