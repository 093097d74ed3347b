"""Selective synaptic dampening: shrinking the weights that are important for the forget corpus."""

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

import torch
from typing_extensions import Unpack

from sp_lens.data.batching import batches
from sp_lens.data.corpora import Corpora
from sp_lens.errors import SpLensError, check_positive
from sp_lens.evaluation.predictions import nothing_to_predict
from sp_lens.unlearning.run import UnlearningRun
from sp_lens.unlearning.training import RunKeywords, RunOptions, cross_entropy
from sp_lens.unlearning.unlearn import unlearn
from sp_lens.unlearning.weights import Values, Weights, gradients, write


def selective_synaptic_dampening(
    model: Any,
    forget: Any,
    retain: Any,
    *,
    eval_forget: Any,
    eval_retain: Any,
    alpha: float = 10.0,
    decay: float = 0.7,
    dampening: float = 1.0,
    **options: Unpack[RunKeywords],
) -> UnlearningRun:
    """Shrink each weight that is more important for the forget corpus than for the retain corpus, without training.

    Foster et al. 2023 ("Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening", arXiv
    2308.07707). F is the diagonal of the empirical Fisher information. Where F_forget > alpha * F_retain, a weight is
    multiplied by min(dampening * F_retain / F_forget, 1).

    Differences from their code: they dampen once, which is the first step here; each later step starts from the
    original weights with a smaller alpha, so it dampens more of them, and the result is a curve as for the other
    methods. F_retain is computed on the retain corpus, where they use all training data. An example is one row (one
    image), and its loss is the mean over its predictions, where their code treats a batch as an example.

    Args:
        model: A `TransformerBridge` or a `HookedTransformer`. Its weights are restored afterwards.
        forget: Corpus to forget, as `load_corpus` or `load_images` returns it.
        retain: Corpus to keep.
        eval_forget: Held-out data of the forget corpus.
        eval_retain: Held-out data of the retain corpus.
        alpha: Threshold of the first step. Their code uses 10 for a ResNet.
        decay: Factor between 0 and 1 by which alpha is multiplied after each step.
        dampening: Factor of the dampening (their lambda).
        **options: `steps` (10 by default, one alpha each), `seed`, `batch_tokens` and `progress`, see `RunOptions`.

    Returns:
        A run with one more column in its `history`, `dampened`: the share of all weights that are smaller after the
        step. It is NaN at step 0.

    Raises:
        SpLensError: See `gradient_ascent`.
    """
    options.setdefault("steps", 10)
    run_options = RunOptions(**options)
    check_positive(alpha=alpha, dampening=dampening)
    if not 0 < decay < 1:
        raise SpLensError(f"decay={decay}: expected a number above 0 and below 1, by which alpha shrinks at each step.")

    def steps(weights: Weights, original: Values, corpora: Corpora) -> Iterator[Mapping[str, Any]]:
        fisher_forget = _fisher(model, weights, corpora["forget"], run_options.seed)
        fisher_retain = _fisher(model, weights, corpora["retain"], run_options.seed)
        for step in count():
            factors = {}
            for name, forget_information in fisher_forget.items():
                chosen = forget_information > alpha * decay**step * fisher_retain[name]
                factor = (dampening * fisher_retain[name] / forget_information).clamp(max=1)
                factors[name] = factor.masked_fill(~chosen, 1).to(original[name].dtype)
            write(weights, {name: original[name] * factor for name, factor in factors.items()})
            dampened = sum(int((factor < 1).sum()) for factor in factors.values())
            yield {"dampened": dampened / sum(factor.numel() for factor in factors.values())}

    return unlearn(
        model,
        Corpora(forget, retain, eval_forget, eval_retain),
        steps,
        method="selective synaptic dampening",
        settings={"alpha": alpha, "decay": decay, "dampening": dampening},
        options=run_options,
    )


def _fisher(model: Any, weights: Weights, corpus: Any, seed: int) -> dict[str, torch.Tensor]:
    """Return the mean over the rows of the squared gradient of a row's mean loss, in float32 or better.

    Weights that the model does not compute with are left out. They can share memory with weights that it does compute
    with, and writing their undampened values would undo the dampening.
    """
    loss = cross_entropy(model)
    totals: dict[str, torch.Tensor] = {}
    rows = 0
    for row in batches(model, corpus, batch_tokens=1):  # every row is longer, so each is a batch of its own
        if not len(nats := loss(row, 0, seed)):
            continue
        rows += 1
        for name, gradient in gradients(nats.mean(), weights).items():
            square = gradient.to(torch.promote_types(gradient.dtype, torch.float32)).square()
            totals[name] = totals[name] + square if name in totals else square
    if not rows:
        raise nothing_to_predict()
    return {name: total / rows for name, total in totals.items()}
