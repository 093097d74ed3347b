"""Run a model: inference mode, forward passes, and hooks that see the activations of one pass."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float

from sp_lens.errors import SpLensError
from sp_lens.models.fused_attention import fused_attention
from sp_lens.models.hooks import attached
from sp_lens.models.memory import keep_freed_memory
from sp_lens.models.task import reads_images
from sp_lens.neurons.layout import NeuronGroup

Self = TypeVar("Self")


@runtime_checkable
class ModelInput(Protocol):
    """A batch as `forward` takes it: the tensor that the model reads, and further arguments of its forward method."""

    @property
    def inputs(self) -> torch.Tensor: ...

    @property
    def options(self) -> dict[str, Any]: ...

    def to(self: Self, device: torch.device) -> Self: ...


@contextmanager
def inference(model: Any) -> Iterator[bool]:
    """No gradients, no dropout and, if it can be, `fused_attention`, for the length of a `with`; whether it can."""
    if input_device(model).type == "cpu":
        keep_freed_memory()
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), fused_attention(model) as fused:
            yield fused
    finally:
        model.train(training)


@contextmanager
def differentiable(model: Any) -> Iterator[None]:
    """Gradients of activations, none of parameters, and no dropout for the length of a `with`; then all as before."""
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    training = model.training
    model.eval()
    try:
        for parameter in learned:
            parameter.requires_grad_(False)
        with torch.enable_grad():
            yield
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)
        model.train(training)


def input_device(model: Any) -> torch.device:
    """Where tokens go: to the embedding. A model on several devices takes activations on from there by itself."""
    device = next(model.parameters()).device  # that of the embedding, in transformers as in TransformerLens
    return torch.device("cpu") if device.type == "meta" else device  # on disk: TransformerLens runs that on the CPU


def forward(model: Any, batch: ModelInput) -> Float[torch.Tensor, "row pos d_vocab"]:
    """The logits of a batch (of images: [row class]); padding is told by an explicit attention mask."""
    batch = batch.to(input_device(model))
    inputs = batch.inputs
    if inputs.is_floating_point():  # pixels
        inputs = inputs.to(next(model.parameters()).dtype)
    return model(inputs, return_type="logits", **batch.options)


def random_inputs(model: Any, *, longest: int = 64) -> torch.Tensor:
    """Two rows of at most `longest` tokens, or two images, to run the model on; always the same."""
    generator = torch.Generator().manual_seed(0)
    if reads_images(model):
        config, dtype = model.original_model.config, next(model.parameters()).dtype
        shape = (2, config.num_channels, config.image_size, config.image_size)
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(model.cfg.d_vocab, (2, min(model.cfg.n_ctx, longest)), generator=generator)


class _AllSeen(Exception):
    """Raised by the last hook of a forward pass: what comes after it, the unembedding above all, is not needed."""


def visit(
    model: Any,
    batch: ModelInput,
    groups: Sequence[NeuronGroup],
    look: Callable[[NeuronGroup, Float[torch.Tensor, "row pos neuron"]], None],
) -> None:
    """Show `look` the activations of each group in one forward pass that ends at the last of them.

    Raises:
        SpLensError: when a group's hook does not fire exactly once.
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
        raise SpLensError(f"{len(missing)} hooks did not fire in a forward pass, {missing[0]!r} the first of them.")


def require_finite(values: torch.Tensor, group: NeuronGroup, number: int) -> None:
    """Refuse what was made of NaN or infinite activations.

    To be asked after the pass: in the hook it would make a GPU wait at each layer.
    """
    if not values.isfinite().all():
        raise SpLensError(
            f"NaN or infinite activation at site {group.site!r}, layer {group.layer}, batch {number}: "
            "load the model in float32 or bfloat16, or find the broken weight."
        )
