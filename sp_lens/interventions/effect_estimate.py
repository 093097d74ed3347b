"""Definition 3 by gradient: a first-order estimate of what ablating each neuron does to the loss."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from tqdm.auto import tqdm

from sp_lens.data.batching import batches
from sp_lens.errors import SpLensError, check_choice
from sp_lens.evaluation.predictions import nothing_to_predict, prediction_losses
from sp_lens.interventions.ablation import check_reference
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
    """`ablation_effect` of every neuron of both sites, estimated to first order in one forward and one backward pass.

    A neuron that is ablated by the amount a, from 0 to 1, is z + a * (rest - z) in place of z, at all positions, where
    rest is 0 or its mean. The estimate is the derivative of the mean loss by a at 0, with the zero in place the sum
    of -z * dL/dz over the positions: what the loss would rise by at a = 1, were it linear in a. That is the criterion
    of Molchanov et al. 2017 (arXiv 1611.06440) with its sign kept, and attribution patching (Nanda 2023;
    Syed et al. 2023, arXiv 2310.10348) from an ablation.

    Where the loss bends it misleads: it can't see that the second of two neurons does what the first no longer does,
    nor a softmax that is saturated. It is for choosing which neurons to ablate: on the bundled model and code it ranks
    100 neurons of the MLP as their ablation does with a correlation of 0.94 (Spearman), 100 of the attention with 0.93,
    and the 24 heads, whose effects it makes too small, with 0.61.

    Args:
        model: a bridge or a `HookedTransformer`; ablations in force stay so, and ablated neurons are estimated at 0.
        corpus: held-out text, as `evaluate` takes it.
        mode: "zero" or "mean" (then `reference` has the means).
        reference: statistics with the means.
        seed: of what a masked language model is asked for, as in `evaluate`.
        batch_tokens: tokens in a batch, padding included. The graph of a batch is in memory; the parameters have no
            gradients, and keep those that they have.
        progress: show a bar.

    Returns:
        Nats per prediction, with the sign of `ablation_effect`: positive where the model needs the neuron.
        `.heads("sum")` is the estimate of each head.

    Raises:
        SpLensError: for an unknown mode, a missing or foreign reference, a corpus with nothing to predict, a model
            without a head, and logits that are NaN.

    Example:
        >>> import sp_lens as sp
        >>> model = sp.load_model("demo")
        >>> effect_estimate(model, ["def f(x):"], progress=False).heads("sum").stack().shape
        torch.Size([4, 6])
    """
    check_choice("mode", mode, ("zero", "mean"))
    require_task(model)
    layout = layout_of(model)
    rest = {group.name: torch.zeros(group.width) for group in layout}
    if mode == "mean":
        if not isinstance(reference, ActivationStats):
            raise SpLensError('mode "mean" puts in the means of a corpus: reference=collect(model, corpus).')
        check_reference(model, reference)
        layout.require_same(reference.layout, "the reference")
        rest = {name: reference[name].mean for name in rest}
    sums = {group.name: torch.zeros(group.width, dtype=torch.float64) for group in layout}
    asked = 0
    with differentiable(model), tqdm(desc="estimate", unit=" predictions", disable=not progress) as bar:
        for batch in batches(model, corpus, batch_tokens=batch_tokens):
            amounts: dict[str, torch.Tensor] = {}
            with attached(model, [(group, _ablated_by(group, rest[group.name], amounts)) for group in layout]):
                nats = prediction_losses(model, batch, seed)
            slopes = torch.autograd.grad(nats.double().sum(), list(amounts.values()))
            for name, slope in zip(amounts, slopes, strict=True):
                sums[name] += slope.flatten().double().cpu()
            asked += len(nats)
            bar.update(len(nats))
    if not asked:
        raise nothing_to_predict()
    about = {"model": model_name(model), "metric": "estimated ablation effect", "mode": mode}
    return NeuronValues(layout, {name: total / asked for name, total in sums.items()}, about)


def _ablated_by(group: NeuronGroup, rest: torch.Tensor, amounts: dict[str, torch.Tensor]) -> Callable[..., Any]:
    """A hook that ablates by an amount of 0 for each neuron, of which there is a derivative."""

    def ablated(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        # In float32 or better, as slopes are summed over the positions.
        kind = {"device": activation.device, "dtype": torch.promote_types(activation.dtype, torch.float32)}
        shape = activation.shape[2:]
        amount = amounts.setdefault(group.name, torch.zeros(shape, requires_grad=True, **kind))
        return (activation + amount * (rest.to(**kind).view(shape) - activation)).to(activation.dtype)

    return ablated
