"""Run a model: contexts for inference and gradients, forward passes, and callbacks that see the activations."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float

from sp_lens.errors import SpLensError
from sp_lens.models.fused_attention import fused_attention
from sp_lens.models.hooks import attached
from sp_lens.models.task import reads_images
from sp_lens.neurons.layout import NeuronGroup

Self = TypeVar("Self")


@runtime_checkable
class ModelInput(Protocol):
    """A batch for `forward`: the input tensor of the model, and keyword arguments of its forward method."""

    @property
    def inputs(self) -> torch.Tensor: ...

    @property
    def options(self) -> dict[str, Any]: ...

    def to(self: Self, device: torch.device) -> Self: ...


@contextmanager
def inference(model: Any) -> Iterator[bool]:
    """Context manager that disables gradients and dropout and uses `fused_attention` if the model supports it.

    Yields:
        Whether attention is fused.
    """
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), fused_attention(model) as fused:
            yield fused
    finally:
        model.train(training)


@contextmanager
def differentiable(model: Any) -> Iterator[None]:
    """Context manager that enables gradients of activations, but not of parameters, and disables dropout."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    training = model.training
    model.eval()
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        with torch.enable_grad():
            yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        model.train(training)


def input_device(model: Any) -> torch.device:
    """Return the device that inputs must be on, which is the device of the embedding.

    A model on several devices moves the activations between them itself.
    """
    device = next(model.parameters()).device  # the first parameter belongs to the embedding in both libraries
    # Weights that are offloaded to disk are on "meta", and TransformerLens computes with them on the CPU.
    return torch.device("cpu") if device.type == "meta" else device


def forward(
    model: Any, batch: ModelInput
) -> Float[torch.Tensor, "row pos d_vocab"] | Float[torch.Tensor, "row n_classes"]:
    """Return the logits of a batch, which are [row pos d_vocab] for text and [row n_classes] for images.

    Args:
        model: Hooked model.
        batch: Tokens, with an explicit attention mask among the options if there is padding, or pixels.
    """
    batch = batch.to(input_device(model))
    inputs = batch.inputs
    if inputs.is_floating_point():  # pixels
        inputs = inputs.to(next(model.parameters()).dtype)
    return model(inputs, return_type="logits", **batch.options)


def random_inputs(model: Any, *, longest: int = 64) -> torch.Tensor:
    """Return two rows of random tokens, or two random images, which are the same in every call.

    Args:
        model: Hooked model.
        longest: Maximum number of tokens per row.
    """
    generator = torch.Generator().manual_seed(0)
    if reads_images(model):
        config, dtype = model.original_model.config, next(model.parameters()).dtype
        shape = (2, config.num_channels, config.image_size, config.image_size)
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(model.cfg.d_vocab, (2, min(model.cfg.n_ctx, longest)), generator=generator)


class _AllSeen(Exception):
    """Ends a forward pass after the last hook, so that the unembedding is not computed."""


def visit(
    model: Any,
    batch: ModelInput,
    groups: Sequence[NeuronGroup],
    look: Callable[[NeuronGroup, Float[torch.Tensor, "row pos neuron"]], None],
) -> None:
    """Call a function with the activations of each group, in one forward pass that stops after the last group.

    Args:
        model: Hooked model.
        batch: Batch to run the model on.
        groups: Neuron groups whose activations are needed.
        look: Function that is called with each group and its activations. The activations of attention heads are
            flattened into one axis.

    Raises:
        SpLensError: The hook of a group did not fire exactly once.
    """
    seen: set[str] = set()

    def hook_of(group: NeuronGroup) -> Callable[..., None]:
        def hook(activation: torch.Tensor, hook: Any) -> None:
            if group.name in seen:
                raise SpLensError(f"{group.name} fired twice in one forward pass: its neurons would be counted twice.")
            look(group, activation.flatten(2))
            seen.add(group.name)
            if len(seen) == len(groups):
                raise _AllSeen

        return hook

    with attached(model, [(group, hook_of(group)) for group in groups]), suppress(_AllSeen):
        forward(model, batch)
    if missing := [group.name for group in groups if group.name not in seen]:
        raise SpLensError(f"{len(missing)} hooks did not fire in a forward pass; the first of them is {missing[0]!r}.")


def require_finite(values: torch.Tensor, group: NeuronGroup, number: int) -> None:
    """Raise SpLensError if the activations of a batch contained NaN or infinity.

    Call this after the forward pass. Inside a hook it would make a GPU wait at every layer.

    Args:
        values: Any reduction of the activations that keeps NaN and infinity.
        group: Neuron group of the activations, for the message.
        number: Number of the batch, for the message.
    """
    if not values.isfinite().all():
        raise SpLensError(
            f"NaN or infinite activation at site {group.site!r}, layer {group.layer}, batch {number}: "
            "load the model in float32 or bfloat16, or look for damaged weights."
        )
