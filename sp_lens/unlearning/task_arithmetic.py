"""Task arithmetic: the negated task vector."""

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

from typing_extensions import Unpack

from sp_lens.data.corpora import Corpora
from sp_lens.errors import check_positive
from sp_lens.unlearning.run import UnlearningRun
from sp_lens.unlearning.training import TrainingKeywords, TrainingOptions, train
from sp_lens.unlearning.unlearn import unlearn
from sp_lens.unlearning.weights import Values, Weights, write


def task_arithmetic(
    model: Any,
    forget: Any,
    retain: Any,
    *,
    eval_forget: Any,
    eval_retain: Any,
    scale: float = 0.1,
    **options: Unpack[TrainingKeywords],
) -> UnlearningRun:
    """Subtract a multiple of the task vector: theta - weight * (theta_fine_tuned - theta).

    Forgetting by negation, section 3 of Ilharco et al. 2023 ("Editing Models with Task Arithmetic", arXiv 2212.04089).
    The task vector is the difference between the model fine-tuned on the forget corpus and the model. Its weight grows
    by `scale` with each step; the authors choose the best weight of such a sweep.

    Args:
        model: A `TransformerBridge` or a `HookedTransformer`. Its weights are restored afterwards.
        forget: Corpus to fine-tune on, as `load_corpus` or `load_images` returns it.
        retain: Corpus to keep. It is read only to verify that the evaluation data is held out.
        eval_forget: Held-out data of the forget corpus.
        eval_retain: Held-out data of the retain corpus.
        scale: Increase of the weight of the task vector per step.
        **options: `steps`, `optimizer`, `learning_rate`, `updates`, `seed`, `batch_tokens` and `progress`, see
            `TrainingOptions`. Here `updates` (20 by default) is the length of the fine-tuning, which is done once,
            before the first step.

    Raises:
        SpLensError: See `gradient_ascent`.
    """
    options.setdefault("updates", 20)
    training = TrainingOptions(**options)
    check_positive(scale=scale)

    def steps(weights: Weights, original: Values, corpora: Corpora) -> Iterator[Mapping[str, Any]]:
        next(train(model, weights, corpora["forget"], training))
        vector = {name: weight.detach() - original[name] for name, weight in weights.items()}
        for step in count(1):
            write(weights, {name: original[name] - step * scale * vector[name] for name in original})
            yield {}

    return unlearn(
        model,
        Corpora(forget, retain, eval_forget, eval_retain),
        steps,
        method="task arithmetic",
        settings={**training.settings(), "scale": scale},
        options=training,
    )
