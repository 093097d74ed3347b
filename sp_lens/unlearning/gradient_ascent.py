"""Gradient ascent on the forget corpus."""

from collections.abc import Iterator, Mapping
from typing import Any

from sp_lens.typing import BATCH_TOKENS
from sp_lens.unlearning.run import UnlearningRun
from sp_lens.unlearning.training import Optimizer, check_training, train
from sp_lens.unlearning.unlearn import unlearn
from sp_lens.unlearning.weights import Values, Weights


def gradient_ascent(
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
    """Raise the loss on the forget corpus by gradient steps, and look at nothing else.

    As Jang et al. 2023 ("Knowledge Unlearning for Mitigating Privacy Risks in Language Models", arXiv
    2210.01504) unlearn text. Without anything that holds on to the rest it destroys all of it when it goes
    on for long: the curve says how long that is.

    Args:
        model: a bridge or a `HookedTransformer`, which comes back as it was.
        forget: corpus whose loss rises, as `load_corpus` or `load_images` returns it.
        retain: is not read, but for the check that what is evaluated is held out.
        eval_forget: held-out text of the forget corpus.
        eval_retain: held-out text of the retain corpus.
        steps: how many times the model is evaluated.
        optimizer: "adamw" or "sgd", neither with weight decay.
        learning_rate: of the optimiser.
        updates: optimiser updates a step, one a batch.
        seed: of the order of the batches, and of the tokens that a masked language model is asked for.
        batch_tokens: tokens in a batch, padding included: what one update sees.
        progress: show a bar.

    Raises:
        SpLensError: before any long work, for a model without a head or with weights that can't be changed, bad
            settings, and corpora that overlap or can't be read; later for weights that became NaN.
    """
    check_training(optimizer, learning_rate, updates)
    how: dict[str, Any] = {"optimizer": optimizer, "learning_rate": learning_rate, "updates": updates}

    def change(weights: Weights, before: Values, corpora: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        for _ in train(model, weights, corpora["forget"], ascend=True, seed=seed, batch_tokens=batch_tokens, **how):
            yield {}

    corpora = {"forget": forget, "retain": retain, "eval_forget": eval_forget, "eval_retain": eval_retain}
    return unlearn(
        model,
        corpora,
        change,
        method="gradient ascent",
        options=how,
        steps=steps,
        seed=seed,
        batch_tokens=batch_tokens,
        progress=progress,
    )
