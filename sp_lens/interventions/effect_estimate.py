"""Estimate the effect of ablating each neuron on the loss from gradients, to first order."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from tqdm.auto import tqdm

from sp_lens.data.batching import batches
from sp_lens.errors import check_choice
from sp_lens.evaluation.predictions import nothing_to_predict, prediction_losses
from sp_lens.interventions.ablation import check_reference, reference_means
from sp_lens.models.forward import differentiable
from sp_lens.models.hooks import attached, layout_of, model_name
from sp_lens.models.task import require_task
from sp_lens.neurons.layout import NeuronGroup
from sp_lens.neurons.values import NeuronValues
from sp_lens.statistics.activation_stats import ActivationStats
from sp_lens.typing import BATCH_TOKENS


def effect_estimate(
    model: Any,
    corpus: Any,
    *,
    mode: Literal["zero", "mean"] = "zero",
    reference: ActivationStats | None = None,
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = True,
) -> NeuronValues:
    """Estimate `ablation_effect` for every neuron of both sites, with one forward and one backward pass per batch.

    Let a neuron be ablated by an amount a from 0 to 1 at all positions: its activation becomes
    z + a * (replacement - z), where the replacement is 0 or the mean of the neuron. The estimate is the derivative of
    the mean loss with respect to a at a = 0, which is the increase of the loss at a = 1 if the loss is linear in a. For
    zero ablation it is the sum of -z * dL/dz over the positions: the criterion of Molchanov et al. 2017
    (arXiv 1611.06440) with its sign, or attribution patching (Nanda 2023; Syed et al. 2023, arXiv 2310.10348) from an
    ablation.

    The estimate is inaccurate where the loss is not linear: for example, it cannot detect that one neuron compensates
    for another, or that a softmax is saturated. Use it to choose the neurons to ablate. On the bundled model and code,
    its Spearman correlation with `ablation_effect` is 0.94 for 100 MLP neurons, 0.93 for 100 attention neurons, and
    0.61 for the 24 attention heads, whose effects it underestimates.

    Args:
        model: A `TransformerBridge` or a `HookedTransformer`. Active ablations remain in force, and the estimate of an
            ablated neuron is 0.
        corpus: Held-out text or images, as `evaluate` takes them.
        mode: Replacement of the activations: "zero", or "mean" for the mean over a corpus.
        reference: Statistics with the means, from `collect`. Required for mode="mean".
        seed: Seed of the choice of masked tokens for a masked language model, as in `evaluate`.
        batch_tokens: Number of tokens per batch, including padding. The autograd graph of one batch is held in memory.
            No gradients are computed for the parameters, and existing ones are kept.
        progress: Whether to show a progress bar.

    Returns:
        Estimated increase of the mean loss in nats per prediction, positive if the model needs the neuron.
        `.heads("sum")` returns the estimates for attention heads.

    Raises:
        SpLensError: If the mode is unknown, the reference is missing or belongs to another model, the corpus contains
            nothing to predict, the model has no trained head, or its logits are NaN.

    Example:
        >>> import sp_lens as sp
        >>> model = sp.load_model("demo")
        >>> effect_estimate(model, ["def f(x):"], progress=False).heads("sum").stack().shape
        torch.Size([4, 6])
    """
    check_choice("mode", mode, ("zero", "mean"))
    require_task(model)
    layout = layout_of(model)
    if mode == "mean":
        replacements = {group.name: reference_means(group, reference) for group in layout}
        check_reference(model, reference)
    else:
        replacements = {group.name: torch.zeros(group.width) for group in layout}
    sums = {group.name: torch.zeros(group.width, dtype=torch.float64) for group in layout}
    predictions = 0
    with differentiable(model), tqdm(desc="estimate", unit=" predictions", disable=not progress) as bar:
        for batch in batches(model, corpus, batch_tokens=batch_tokens):
            amounts: dict[str, torch.Tensor] = {}
            hooks = [(group, _ablation_by_amount(group, replacements[group.name], amounts)) for group in layout]
            with attached(model, hooks):
                losses = prediction_losses(model, batch, seed)
            derivatives = torch.autograd.grad(losses.double().sum(), list(amounts.values()))
            for name, derivative in zip(amounts, derivatives, strict=True):
                sums[name] += derivative.flatten().double().cpu()
            predictions += len(losses)
            bar.update(len(losses))
    if not predictions:
        raise nothing_to_predict()
    about = {"model": model_name(model), "metric": "estimated ablation effect", "mode": mode}
    return NeuronValues(layout, {name: total / predictions for name, total in sums.items()}, about)


def _ablation_by_amount(
    group: NeuronGroup, replacement: Float[torch.Tensor, " neuron"], amounts: dict[str, torch.Tensor]
) -> Callable[..., Any]:
    """Return a hook that ablates each neuron by an amount of 0, a leaf tensor that it stores in `amounts`."""

    def ablate_by_amount(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        # In float32 or better, because the derivatives are summed over the positions.
        options = {"device": activation.device, "dtype": torch.promote_types(activation.dtype, torch.float32)}
        shape = activation.shape[2:]
        amount = amounts.setdefault(group.name, torch.zeros(shape, requires_grad=True, **options))
        ablated = activation + amount * (replacement.to(**options).view(shape) - activation)
        return ablated.to(activation.dtype)

    return ablate_by_amount
