"""The weights of a model, lent for the length of a `with`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from sp_lens.errors import SpLensError
from sp_lens.interventions.export import on_meta
from sp_lens.models.hooks import model_name

# Live parameters by name, and the values of such parameters at some time.
Weights = Mapping[str, torch.nn.Parameter]
Values = Mapping[str, torch.Tensor]


def weights_of(model: Any) -> dict[str, torch.nn.Parameter]:
    """The live parameters by name, tied ones once.

    A bridge of a GPT-2 or GPT-NeoX computes with queries, keys and values apart, and has them joined too: of these
    the gradient is None. On GPT-2 both are the same memory.

    Raises:
        SpLensError: for weights that are quantised or on disk, which no gradient step can change.
    """
    inner = getattr(model, "original_model", model)
    weights = dict(inner.named_parameters())
    for name, weight in weights.items():
        if type(weight) is not torch.nn.Parameter or not weight.is_floating_point() or weight.is_meta:
            raise SpLensError(
                f"the weight {name} of {model_name(model)!r} is quantised or offloaded to disk, and these methods "
                "change weights. prune() works on such a model; for a baseline load it in float32 or bfloat16."
            )
    invented = _invented(inner, weights) if inner is not model else ()
    return {name: weight for name, weight in weights.items() if name not in invented}


def _invented(inner: Any, weights: Weights) -> list[str]:
    """Biases that the transformers model does not have: TransformerLens 3.9 gives one of zeros to an unembedding."""
    plain = on_meta(inner).state_dict()
    own = {name: name.replace("._original_component", "") for name in weights if name.endswith(".bias")}
    return [name for name, short in own.items() if short not in plain and f"{short[:-4]}weight" in plain]


def gradients(loss: torch.Tensor, weights: Weights) -> dict[str, torch.Tensor]:
    """The gradient with respect to each weight that the loss depends on; `.grad` is left alone."""
    found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    return {name: gradient for name, gradient in zip(weights, found, strict=True) if gradient is not None}


@contextmanager
def lent(model: Any) -> Iterator[tuple[Weights, Values]]:
    """The live parameters, to change for the length of a `with`, and what they were; bit by bit so again after it.

    No dropout meanwhile, so that a gradient is that of the loss which is evaluated.
    """
    weights, training = weights_of(model), model.training
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    settings = {name: (weight.requires_grad, weight.grad) for name, weight in weights.items()}
    model.eval()
    try:
        for weight in weights.values():
            weight.requires_grad_(True).grad = None
        yield weights, before
    finally:
        write(weights, before)
        for name, (requires_grad, grad) in settings.items():
            weights[name].requires_grad_(requires_grad).grad = grad
        model.train(training)


@contextmanager
def swapped(weights: Weights, values: Values) -> Iterator[None]:
    """Other values in the live parameters for the length of a `with`: the model as another would be."""
    own = {name: weights[name].detach().clone() for name in values}
    write(weights, values)
    try:
        yield
    finally:
        write(weights, own)


def write(weights: Weights, values: Values) -> None:
    """Put other values into the live parameters that are named."""
    with torch.no_grad():
        for name, value in values.items():
            weights[name].copy_(value)
