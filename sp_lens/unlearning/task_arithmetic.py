"""The negated task vector."""

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

from sp_lens.errors import check_positive
from sp_lens.typing import BATCH_TOKENS
from sp_lens.unlearning.run import UnlearningRun
from sp_lens.unlearning.training import Optimizer, check_training, train
from sp_lens.unlearning.unlearn import unlearn
from sp_lens.unlearning.weights import Values, Weights, write


def task_arithmetic(
    model: Any,
    forget: Any,
    retain: Any,
    *,
    eval_forget: Any,
    eval_retain: Any,
    steps: int = 20,
    scale: float = 0.1,
    optimizer: Optimizer = "adamw",
    learning_rate: float = 1e-4,
    updates: int = 20,
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = True,
) -> UnlearningRun:
    """Fine-tune on the forget corpus, and go the other way: theta - weight * (theta_fine_tuned - theta).

    Forgetting by negation, section 3 of Ilharco et al. 2023 ("Editing Models with Task Arithmetic", arXiv
    2212.04089). The weight grows by `scale` a step, where they choose the best of such a sweep.

    Args:
        model: a bridge or a `HookedTransformer`, which comes back as it was.
        forget: corpus to fine-tune on, as `load_corpus` or `load_images` returns it.
        retain: is not read, but for the check that what is evaluated is held out.
        eval_forget: held-out text of the forget corpus.
        eval_retain: held-out text of the retain corpus.
        steps: how many weights are tried.
        scale: by how much the weight of the subtracted vector grows at each step.
        optimizer: "adamw" or "sgd", neither with weight decay.
        learning_rate: of the optimiser.
        updates: optimiser updates of the fine-tuning, all before the first step, one a batch.
        seed: of the order of the batches, and of the tokens that a masked language model is asked for.
        batch_tokens: tokens in a batch, padding included: what one update sees.
        progress: show a bar.

    Raises:
        SpLensError: as `gradient_ascent`.
    """
    check_training(optimizer, learning_rate, updates)
    check_positive(scale=scale)
    how: dict[str, Any] = {"optimizer": optimizer, "learning_rate": learning_rate, "updates": updates}

    def change(weights: Weights, before: Values, corpora: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        next(train(model, weights, corpora["forget"], seed=seed, batch_tokens=batch_tokens, **how))
        vector = {name: weight.detach() - before[name] for name, weight in weights.items()}
        for step in count(1):
            write(weights, {name: before[name] - step * scale * vector[name] for name in before})
            yield {}

    corpora = {"forget": forget, "retain": retain, "eval_forget": eval_forget, "eval_retain": eval_retain}
    return unlearn(
        model,
        corpora,
        change,
        method="task arithmetic",
        options={**how, "scale": scale},
        steps=steps,
        seed=seed,
        batch_tokens=batch_tokens,
        progress=progress,
    )
