"""Fine-tuning on the retain corpus."""

from typing import Any

from typing_extensions import Unpack

from sp_lens.data.corpora import Corpora
from sp_lens.unlearning.run import UnlearningRun
from sp_lens.unlearning.training import TrainingKeywords, TrainingOptions, train
from sp_lens.unlearning.unlearn import unlearn


def fine_tune(
    model: Any, forget: Any, retain: Any, *, eval_forget: Any, eval_retain: Any, **options: Unpack[TrainingKeywords]
) -> UnlearningRun:
    """Train on the retain corpus only, without any update against the forget corpus.

    The simplest method in the comparison of arXiv 2403.01267, from Golatkar et al. 2020 ("Eternal Sunshine of the
    Spotless Net", arXiv 1911.04933). A useful unlearning method has to forget more than fine-tuning does.

    Args:
        model: A `TransformerBridge` or a `HookedTransformer`. Its weights are restored afterwards.
        forget: Corpus to forget. It is read only to verify that the evaluation data is held out.
        retain: Corpus to train on, as `load_corpus` or `load_images` returns it.
        eval_forget: Held-out data of the forget corpus.
        eval_retain: Held-out data of the retain corpus.
        **options: `steps`, `optimizer`, `learning_rate`, `updates`, `seed`, `batch_tokens` and `progress`, see
            `TrainingOptions`.

    Raises:
        SpLensError: See `gradient_ascent`.
    """
    training = TrainingOptions(**options)
    return unlearn(
        model,
        Corpora(forget, retain, eval_forget, eval_retain),
        lambda weights, _, corpora: train(model, weights, corpora["retain"], training),
        method="fine-tuning",
        settings=training.settings(),
        options=training,
    )
