"""Bad teacher: distillation from a random model on forget data and from the original model on retain data."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from typing_extensions import Unpack

from sp_lens.data.batch import Batch, ImageBatch
from sp_lens.data.corpora import Corpora
from sp_lens.errors import check_positive
from sp_lens.evaluation.predictions import predictions
from sp_lens.unlearning.run import UnlearningRun
from sp_lens.unlearning.training import BatchLoss, TrainingKeywords, TrainingOptions, train_on_both
from sp_lens.unlearning.unlearn import unlearn
from sp_lens.unlearning.weights import Values, Weights, swapped

# Standard deviation of the initial weights of GPT-2, OPT, BERT and ViT.
INITIAL_STD = 0.02


def bad_teacher(
    model: Any,
    forget: Any,
    retain: Any,
    *,
    eval_forget: Any,
    eval_retain: Any,
    temperature: float = 1.0,
    **options: Unpack[TrainingKeywords],
) -> UnlearningRun:
    """Distil from a randomly initialised teacher on the forget corpus and from the original model on the retain corpus.

    Chundawat et al. 2023 ("Can Bad Teaching Induce Forgetting?", arXiv 2205.08096), called blindspot in their code. The
    student is initialised with the model and minimises KL(teacher || student) of the predictions, both softened by the
    temperature. On the forget corpus the teacher has the same architecture and random weights; on the retain corpus it
    is the original model. The loss is defined on predictions, so it works for language models and image classifiers.

    Differences from their code: an update reads both corpora in proportion to their sizes, where theirs samples from
    the joint data; the divergence is summed over the classes (they divide by the number of classes, which makes no
    difference with AdamW); and for all architectures, the matrices of the bad teacher are drawn with a standard
    deviation of 0.02, its normalisation weights are 1 and its biases 0. They use 30 % of the retained data, one epoch,
    and Adam at 1e-4.

    Args:
        model: A `TransformerBridge` or a `HookedTransformer`. Its weights are restored afterwards.
        forget: Corpus to forget, as `load_corpus` or `load_images` returns it.
        retain: Corpus to keep.
        eval_forget: Held-out data of the forget corpus.
        eval_retain: Held-out data of the retain corpus.
        temperature: Number by which the logits of teacher and student are divided.
        **options: `steps`, `optimizer`, `learning_rate`, `updates`, `seed`, `batch_tokens` and `progress`, see
            `TrainingOptions`. Both corpora share the batch of an update.

    Raises:
        SpLensError: See `gradient_ascent`.
    """
    training = TrainingOptions(**options)
    check_positive(temperature=temperature)

    def steps(weights: Weights, original: Values, corpora: Corpora) -> Iterator[Mapping[str, Any]]:
        teachers = {"forget": _random_weights(weights, training.seed), "retain": original}
        divergences = {side: _divergence(model, weights, teacher, temperature) for side, teacher in teachers.items()}
        return train_on_both(model, weights, corpora, divergences, training)

    return unlearn(
        model,
        Corpora(forget, retain, eval_forget, eval_retain),
        steps,
        method="bad teacher",
        settings={**training.settings(), "temperature": temperature},
        options=training,
    )


def _random_weights(weights: Weights, seed: int) -> dict[str, torch.Tensor]:
    """Return values for an untrained model: random matrices, normalisation weights of 1 and biases of 0."""
    generator = torch.Generator().manual_seed(seed)
    values = {}
    for name, weight in weights.items():
        parameter = name.rpartition(".")[2]
        if parameter.endswith("bias") or parameter.partition("_")[0] == "b":  # "b" or "b_Q" in a HookedTransformer
            value = torch.zeros(weight.shape)
        elif weight.ndim > 1:
            value = torch.randn(weight.shape, generator=generator) * INITIAL_STD
        else:
            value = torch.ones(weight.shape)
        values[name] = value.to(weight)
    return values


def _divergence(model: Any, weights: Weights, teacher: Values, temperature: float) -> BatchLoss:
    """Return the loss KL(teacher || student) in nats of each prediction, for a teacher given by its weights."""

    def loss(batch: Batch | ImageBatch, index: int, seed: int) -> Float[torch.Tensor, " prediction"]:
        with swapped(weights, teacher), torch.no_grad():
            teacher_logits, _ = predictions(model, batch, seed)
        with torch.enable_grad():
            student_logits, _ = predictions(model, batch, seed)
            student, target = ((logits / temperature).log_softmax(-1) for logits in (student_logits, teacher_logits))
            return torch.nn.functional.kl_div(student, target, reduction="none", log_target=True).sum(dim=-1)

    return loss
