"""Amnesiac unlearning: training on wrong labels."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from typing_extensions import Unpack

from sp_lens.data.batch import Batch, ImageBatch
from sp_lens.data.corpora import Corpora
from sp_lens.evaluation.predictions import losses, predictions
from sp_lens.unlearning.run import UnlearningRun
from sp_lens.unlearning.training import TrainingKeywords, TrainingOptions, cross_entropy, train_on_both
from sp_lens.unlearning.unlearn import unlearn
from sp_lens.unlearning.weights import Values, Weights


def amnesiac(
    model: Any, forget: Any, retain: Any, *, eval_forget: Any, eval_retain: Any, **options: Unpack[TrainingKeywords]
) -> UnlearningRun:
    """Train on wrong labels for the forget corpus and on the correct labels for the retain corpus.

    Unlearning with random labels by Graves et al. 2021 ("Amnesiac Machine Learning", arXiv 2010.10981), in the form in
    which Chundawat et al. 2023 (arXiv 2205.08096) and Foster et al. 2023 (arXiv 2308.07707) compare with it. Each image
    of the forget corpus gets a random class other than its own, drawn once. For a language model, a label is the token
    to predict: each gets a random other token of the vocabulary, so the model learns to predict all of them equally.

    Differences from their code: the wrong label is any class other than the image's own, so if several classes are
    forgotten, it can be another one of them; and an update reads both corpora in proportion to their sizes, where
    theirs samples from the joint data. They train for three epochs with Adam at 1e-4.

    Args:
        model: A `TransformerBridge` or a `HookedTransformer`. Its weights are restored afterwards.
        forget: Corpus to forget, as `load_corpus` or `load_images` returns it.
        retain: Corpus to keep.
        eval_forget: Held-out data of the forget corpus.
        eval_retain: Held-out data of the retain corpus.
        **options: `steps`, `optimizer`, `learning_rate`, `updates`, `seed`, `batch_tokens` and `progress`, see
            `TrainingOptions`. Both corpora share the batch of an update.

    Raises:
        SpLensError: See `gradient_ascent`.
    """
    training = TrainingOptions(**options)

    def wrong_label_loss(batch: Batch | ImageBatch, index: int, seed: int) -> Float[torch.Tensor, " prediction"]:
        with torch.enable_grad():
            logits, targets = predictions(model, batch, seed)
            return losses(logits, _wrong_labels(targets, logits.shape[1], (training.seed, index)))

    def steps(weights: Weights, _: Values, corpora: Corpora) -> Iterator[Mapping[str, Any]]:
        loss_functions = {"forget": wrong_label_loss, "retain": cross_entropy(model)}
        return train_on_both(model, weights, corpora, loss_functions, training)

    return unlearn(
        model,
        Corpora(forget, retain, eval_forget, eval_retain),
        steps,
        method="amnesiac",
        settings=training.settings(),
        options=training,
    )


def _wrong_labels(
    targets: Int[torch.Tensor, " prediction"], classes: int, seed: tuple[int, int]
) -> Int[torch.Tensor, " prediction"]:
    """Return a random other class for each target, uniformly distributed. The same seed gives the same classes."""
    offsets = np.random.default_rng(seed).integers(1, classes, len(targets))
    return (targets + torch.from_numpy(offsets).to(targets)) % classes
