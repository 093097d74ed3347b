"""The live weights of a model: gradients, and context managers that change and restore them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from sp_lens.errors import SpLensError
from sp_lens.models.exclusive import exclusive
from sp_lens.models.forward import evaluation_mode, require_gradients
from sp_lens.models.hooks import model_name
from sp_lens.models.plain_model import without_weights

# Live parameters by name, and values for such parameters.
Weights = Mapping[str, torch.nn.Parameter]
Values = Mapping[str, torch.Tensor]


def weights_of(model: Any) -> dict[str, torch.nn.Parameter]:
    """Return the live parameters by name, tied parameters once.

    The bridge of a GPT-2 or GPT-NeoX computes with separate queries, keys and values but also has the joint parameters,
    for which the gradient is None. On GPT-2 both share memory.

    Raises:
        SpLensError: If weights are quantized or on disk, because gradient steps cannot change them, or if torch's
            inference mode prevents gradients.
    """
    require_gradients(model)
    inner = getattr(model, "original_model", model)
    weights = dict(inner.named_parameters())
    for name, weight in weights.items():
        if type(weight) is not torch.nn.Parameter or not weight.is_floating_point() or weight.is_meta:
            raise SpLensError(
                f"the weight {name} of {model_name(model)!r} is quantized or offloaded to disk, and unlearning methods "
                "change weights. Load the model in float32 or bfloat16, or use prune(), which accepts such a model."
            )
    added = _biases_added_by_bridge(inner, weights) if inner is not model else ()
    return {name: weight for name, weight in weights.items() if name not in added}


def _biases_added_by_bridge(inner: Any, weights: Weights) -> list[str]:
    """Return biases that the transformers model does not have: TransformerLens 3.9 adds zeros to an unembedding."""
    plain = without_weights(inner).state_dict()
    biases = {name: name.replace("._original_component", "") for name in weights if name.endswith(".bias")}
    return [name for name, short in biases.items() if short not in plain and f"{short[:-4]}weight" in plain]


def gradients(loss: torch.Tensor, weights: Weights) -> dict[str, torch.Tensor]:
    """Return the gradient with respect to each weight on which the loss depends. `.grad` is not changed."""
    computed = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    return {name: gradient for name, gradient in zip(weights, computed, strict=True) if gradient is not None}


@contextmanager
def editable(model: Any) -> Iterator[tuple[Weights, Values]]:
    """Context manager that yields the live parameters, to be changed, and a copy of their original values.

    On exit, the parameters have their original values, bit for bit, and their original `requires_grad` and `grad`. The
    model is in evaluation mode meanwhile: without dropout, gradients are those of the loss that `evaluate` reports.
    """
    weights = weights_of(model)
    original = {name: weight.detach().clone() for name, weight in weights.items()}
    gradient_state = {name: (weight.requires_grad, weight.grad) for name, weight in weights.items()}
    with exclusive(model), evaluation_mode(model):
        try:
            for weight in weights.values():
                weight.requires_grad_(True).grad = None
            with torch.enable_grad():
                yield weights, original
        finally:
            write(weights, original)
            for name, (requires_grad, grad) in gradient_state.items():
                weights[name].requires_grad_(requires_grad).grad = grad


@contextmanager
def swapped(weights: Weights, values: Values) -> Iterator[None]:
    """Context manager that temporarily gives the live parameters other values."""
    original = {name: weights[name].detach().clone() for name in values}
    write(weights, values)
    try:
        yield
    finally:
        write(weights, original)


def write(weights: Weights, values: Values) -> None:
    """Copy values into the live parameters of the same names."""
    with torch.no_grad():
        for name, value in values.items():
            weights[name].copy_(value)
