"""Forgetting by a bad teacher."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float

from sp_lens.data.batching import Batch, ImageBatch
from sp_lens.errors import check_positive
from sp_lens.evaluation.predictions import predictions
from sp_lens.typing import BATCH_TOKENS
from sp_lens.unlearning.run import UnlearningRun
from sp_lens.unlearning.training import Judge, Optimizer, check_training, train_on_both
from sp_lens.unlearning.unlearn import unlearn
from sp_lens.unlearning.weights import Values, Weights, swapped

# The standard deviation with which GPT-2, OPT, BERT and ViT begin.
INITIAL_SPREAD = 0.02


def bad_teacher(
    model: Any,
    forget: Any,
    retain: Any,
    *,
    eval_forget: Any,
    eval_retain: Any,
    steps: int = 20,
    temperature: float = 1.0,
    optimizer: Optimizer = "adamw",
    learning_rate: float = 1e-4,
    updates: int = 1,
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = True,
) -> UnlearningRun:
    """Learn from one who knows nothing what to say of the forget corpus, and of the retain corpus from the model.

    Chundawat et al. 2023 ("Can Bad Teaching Induce Forgetting?", arXiv 2205.08096), called blindspot in their code. The
    student begins as the model, and lowers KL(teacher || student) of the predictions, softened by the temperature.
    The teacher is on the forget corpus the same architecture with random weights, and on the retain corpus the
    model as it came. Written over predictions, it goes for language models as for classifiers of images.

    Where it differs from their code: an update sees both corpora in proportion to their sizes, where theirs draws from
    both together; the divergence is summed over the classes (they divide by their number, which AdamW does not see);
    and the bad teacher's matrices are drawn with a standard deviation of 0.02, its gains are 1 and its biases 0,
    whatever the architecture begins with. They take 30 % of the retained data, one epoch, and Adam at 1e-4.

    Args:
        model: a bridge or a `HookedTransformer`, which comes back as it was.
        forget: corpus to forget, as `load_corpus` or `load_images` returns it.
        retain: corpus to keep.
        eval_forget: held-out text of the forget corpus.
        eval_retain: held-out text of the retain corpus.
        steps: how many times the model is evaluated.
        temperature: by which the logits of teacher and student are divided.
        optimizer: "adamw" or "sgd", neither with weight decay.
        learning_rate: of the optimiser.
        updates: optimiser updates a step.
        seed: of the bad teacher, of the order of the batches, and of the tokens that a masked language model is asked
            for.
        batch_tokens: tokens in a batch, padding included: what one update sees of both corpora.
        progress: show a bar.

    Raises:
        SpLensError: as `gradient_ascent`.
    """
    check_training(optimizer, learning_rate, updates)
    check_positive(temperature=temperature)
    how: dict[str, Any] = {"optimizer": optimizer, "learning_rate": learning_rate, "updates": updates}

    def change(weights: Weights, before: Values, corpora: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        teachers = {"forget": _untrained(weights, seed), "retain": before}
        judges = {side: _divergence(model, weights, teacher, temperature) for side, teacher in teachers.items()}
        for _ in train_on_both(model, weights, corpora, judges, seed=seed, batch_tokens=batch_tokens, **how):
            yield {}

    corpora = {"forget": forget, "retain": retain, "eval_forget": eval_forget, "eval_retain": eval_retain}
    return unlearn(
        model,
        corpora,
        change,
        method="bad teacher",
        options={**how, "temperature": temperature},
        steps=steps,
        seed=seed,
        batch_tokens=batch_tokens,
        progress=progress,
    )


def _untrained(weights: Weights, seed: int) -> dict[str, torch.Tensor]:
    """Values with which the model knows nothing: matrices drawn anew, gains of 1, biases of 0."""
    generator = torch.Generator().manual_seed(seed)
    values = {}
    for name, weight in weights.items():
        own = name.rpartition(".")[2]  # of a bias: "bias", and in a HookedTransformer "b" or "b_Q"
        if own.endswith("bias") or own.partition("_")[0] == "b":
            value = torch.zeros(weight.shape)
        elif weight.ndim > 1:
            value = torch.randn(weight.shape, generator=generator) * INITIAL_SPREAD
        else:
            value = torch.ones(weight.shape)
        values[name] = value.to(weight)
    return values


def _divergence(model: Any, weights: Weights, teacher: Values, temperature: float) -> Judge:
    """KL(teacher || student) in nats, of each prediction."""

    def nats(batch: Batch | ImageBatch, place: int, asked: int) -> Float[torch.Tensor, " prediction"]:
        with swapped(weights, teacher), torch.no_grad():
            wanted, _ = predictions(model, batch, asked)
        with torch.enable_grad():
            said, _ = predictions(model, batch, asked)
            by_student, by_teacher = ((logits / temperature).log_softmax(-1) for logits in (said, wanted))
            return torch.nn.functional.kl_div(by_student, by_teacher, reduction="none", log_target=True).sum(dim=-1)

    return nats
