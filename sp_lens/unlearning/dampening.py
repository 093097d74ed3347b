"""Selective synaptic dampening."""

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

import torch

from sp_lens.data.batching import batches
from sp_lens.errors import SpLensError, check_positive
from sp_lens.evaluation.predictions import nothing_to_predict
from sp_lens.typing import BATCH_TOKENS
from sp_lens.unlearning.run import UnlearningRun
from sp_lens.unlearning.training import mean_loss
from sp_lens.unlearning.unlearn import unlearn
from sp_lens.unlearning.weights import Values, Weights, gradients, write


def selective_synaptic_dampening(
    model: Any,
    forget: Any,
    retain: Any,
    *,
    eval_forget: Any,
    eval_retain: Any,
    steps: int = 10,
    alpha: float = 10.0,
    decay: float = 0.7,
    dampening: float = 1.0,
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = True,
) -> UnlearningRun:
    """Shrink each weight that matters more for the forget corpus than for the retain corpus; no training.

    Foster et al. 2023 ("Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening",
    arXiv 2308.07707), with F the diagonal of the empirical Fisher information: where F_forget > alpha *
    F_retain, a weight is multiplied by min(dampening * F_retain / F_forget, 1).

    They do it once. Here the first step is theirs, and each later one starts from the same weights with a
    smaller alpha, so that more of them are dampened: a curve, as of the other methods. Two more differences:
    F_retain is that of the retain corpus, where they take all of the training data; and an example is one
    row (one image), its loss the mean over what it predicts, where their code takes a batch for one.

    Args:
        model: a bridge or a `HookedTransformer`, which comes back as it was.
        forget: corpus to forget, as `load_corpus` or `load_images` returns it.
        retain: corpus to keep.
        eval_forget: held-out text of the forget corpus.
        eval_retain: held-out text of the retain corpus.
        steps: how many alphas are tried.
        alpha: of the first step; 10 is what their code takes for a ResNet.
        decay: each alpha is this times the one before it; above 0 and below 1.
        dampening: their lambda.
        seed: of the tokens that a masked language model is asked for.
        batch_tokens: tokens in a batch of evaluation, padding included.
        progress: show a bar.

    Returns:
        Its `history` has one more column, `dampened`: the share of all weights that a step shrinks; NaN at step 0.

    Raises:
        SpLensError: as `gradient_ascent`.
    """
    check_positive(alpha=alpha, dampening=dampening)
    if not 0 < decay < 1:
        raise SpLensError(f"decay={decay}: expected a number above 0 and below 1, by which alpha shrinks at each step.")

    def change(weights: Weights, before: Values, corpora: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        for_forget, for_retain = (_fisher(model, weights, corpora[side], seed) for side in ("forget", "retain"))
        for step in count():
            factors = {}
            for name, forgotten in for_forget.items():
                chosen = forgotten > alpha * decay**step * for_retain[name]
                factor = (dampening * for_retain[name] / forgotten).clamp(max=1)
                factors[name] = factor.masked_fill(~chosen, 1).to(before[name].dtype)
            write(weights, {name: before[name] * factor for name, factor in factors.items()})
            shrunk = sum(int((factor < 1).sum()) for factor in factors.values())
            yield {"dampened": shrunk / sum(factor.numel() for factor in factors.values())}

    corpora = {"forget": forget, "retain": retain, "eval_forget": eval_forget, "eval_retain": eval_retain}
    return unlearn(
        model,
        corpora,
        change,
        method="selective synaptic dampening",
        options={"alpha": alpha, "decay": decay, "dampening": dampening},
        steps=steps,
        seed=seed,
        batch_tokens=batch_tokens,
        progress=progress,
    )


def _fisher(model: Any, weights: Weights, corpus: Any, seed: int) -> dict[str, torch.Tensor]:
    """The mean over the rows of the squared gradient of a row's loss, in float32 or better.

    Without the weights that the model does not compute with. Dampening by none of their own would undo that of the
    weights which they share memory with.
    """
    totals: dict[str, torch.Tensor] = {}
    rows = 0
    for row in batches(model, corpus, batch_tokens=1):  # a batch for each row, which is longer than that
        if (loss := mean_loss(model, row, seed)) is None:
            continue
        rows += 1
        for name, gradient in gradients(loss, weights).items():
            square = gradient.to(torch.promote_types(gradient.dtype, torch.float32)).square()
            totals[name] = totals[name] + square if name in totals else square
    if not rows:
        raise nothing_to_predict()
    return {name: total / rows for name, total in totals.items()}
