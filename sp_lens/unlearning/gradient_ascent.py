"""Gradient ascent on the forget corpus."""

from typing import Any

from typing_extensions import Unpack

from sp_lens.data.corpora import Corpora
from sp_lens.unlearning.run import UnlearningRun
from sp_lens.unlearning.training import TrainingKeywords, TrainingOptions, train
from sp_lens.unlearning.unlearn import unlearn


def gradient_ascent(
    model: Any, forget: Any, retain: Any, *, eval_forget: Any, eval_retain: Any, **options: Unpack[TrainingKeywords]
) -> UnlearningRun:
    """Increase the loss on the forget corpus by gradient steps.

    The unlearning of text by Jang et al. 2023 ("Knowledge Unlearning for Mitigating Privacy Risks in Language Models",
    arXiv 2210.01504). Nothing preserves the other capabilities of the model, so enough steps destroy all of them. The
    history shows after how many.

    Args:
        model: A `TransformerBridge` or a `HookedTransformer`. Its weights are restored afterwards.
        forget: Corpus on which the loss is increased, as `load_corpus` or `load_images` returns it.
        retain: Corpus to keep. It is read only to verify that the evaluation data is held out.
        eval_forget: Held-out data of the forget corpus.
        eval_retain: Held-out data of the retain corpus.
        **options: `steps`, `optimizer`, `learning_rate`, `updates`, `seed`, `batch_tokens` and `progress`, see
            `TrainingOptions`.

    Raises:
        SpLensError: Before any long computation, if the model has no head, its weights cannot be changed, an option is
            invalid, or the corpora overlap or cannot be read. Later, if the weights become NaN.
    """
    training = TrainingOptions(**options)
    return unlearn(
        model,
        Corpora(forget, retain, eval_forget, eval_retain),
        lambda weights, _, corpora: train(model, weights, corpora["forget"], training, ascend=True),
        method="gradient ascent",
        settings=training.settings(),
        options=training,
    )
