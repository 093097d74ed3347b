"""Run a model: contexts for inference and gradients, forward passes, and callbacks that see the activations."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float

from sp_lens.errors import SpLensError
from sp_lens.models.exclusive import exclusive
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

    @property
    def row_numbers(self) -> Sequence[int]: ...

    def to(self: Self, device: torch.device) -> Self: ...


class Place(NamedTuple):
    """Where the activations of a forward pass are in a corpus.

    Attributes:
        rows: Index of each row in the corpus.
        start: Position in the row of the first token that the pass reads. Earlier tokens are in a cache.
    """

    rows: Sequence[int]
    start: int = 0


# Hooks are called by the model, which knows nothing of a corpus. A context variable is not shared between threads.
_PLACE: ContextVar[Place | None] = ContextVar("place", default=None)


@contextmanager
def placed(place: Place) -> Iterator[None]:
    """Context manager for a forward pass whose hooks read `place_of`."""
    token = _PLACE.set(place)
    try:
        yield
    finally:
        _PLACE.reset(token)


def place_of(activation: torch.Tensor) -> Place:
    """Return where the rows of an activation are, inside a hook.

    In a forward pass of the user, these are the rows of the input, from 0.
    """
    return _PLACE.get() or Place(range(len(activation)))


@contextmanager
def inference(model: Any) -> Iterator[bool]:
    """Context manager that disables gradients and dropout and uses `fused_attention` if the model supports it.

    Yields:
        Whether attention is fused.
    """
    with exclusive(model), evaluation_mode(model), torch.no_grad(), fused_attention(model) as fused:
        yield fused


@contextmanager
def evaluation_mode(model: Any) -> Iterator[None]:
    """Context manager that disables dropout. Afterwards, each module has the mode that it had before."""
    # A bridge does not register the wrapped model as a submodule.
    roots = [model, getattr(model, "original_model", None)]
    modules = {module for root in roots if isinstance(root, torch.nn.Module) for module in root.modules()}
    training = [module for module in modules if module.training]
    if training:  # eval() takes as long as a forward pass of a small model, because it visits shared modules repeatedly
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def require_gradients(model: Any) -> None:
    """Raise SpLensError if gradients cannot be computed, because of torch's inference mode."""
    if torch.is_inference_mode_enabled():
        raise SpLensError("gradients are needed, but torch.inference_mode() is active: call this outside of it.")
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise SpLensError(
            "gradients are needed, but the model was loaded within torch.inference_mode(), and its weights can have "
            "none: load it outside of it."
        )


@contextmanager
def differentiable(model: Any) -> Iterator[None]:
    """Context manager that enables gradients of activations, but not of parameters, and disables dropout."""
    require_gradients(model)
    with exclusive(model), evaluation_mode(model):
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        try:
            for parameter in trainable:
                parameter.requires_grad_(False)
            with torch.enable_grad():
                yield
        finally:
            for parameter in trainable:
                parameter.requires_grad_(True)


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
    with placed(Place(batch.row_numbers)):
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


class _AllVisited(Exception):
    """Raised by the last hook to end the forward pass: the rest, above all the unembedding, is not needed."""


def visit_activations(
    model: Any,
    batch: ModelInput,
    groups: Sequence[NeuronGroup],
    visit: Callable[[NeuronGroup, Float[torch.Tensor, "row pos neuron"]], None],
) -> None:
    """Call `visit` with the activations of each group, in one forward pass that ends at the last of these groups.

    Args:
        model: A `TransformerBridge` or a `HookedTransformer`.
        batch: Input of the model.
        groups: Neuron groups whose activations are visited.
        visit: Function of a group and its activations, called while the forward pass runs. The axes of heads and
            neurons in a head are flattened into one.

    Raises:
        SpLensError: If the hook of a group does not fire exactly once.
    """
    visited: set[str] = set()

    def hook_of(group: NeuronGroup) -> Callable[..., None]:
        def hook(activation: torch.Tensor, hook: Any) -> None:
            if group.name in visited:
                raise SpLensError(
                    f"{group.name} fired twice in one forward pass, so its neurons would be counted twice. Use a model "
                    "that runs each block once."
                )
            visit(group, activation.flatten(2))
            visited.add(group.name)
            if len(visited) == len(groups):
                raise _AllVisited

        return hook

    with attached(model, [(group, hook_of(group)) for group in groups]), suppress(_AllVisited):
        forward(model, batch)
    if missing := [group.name for group in groups if group.name not in visited]:
        raise SpLensError(
            f"{len(missing)} hooks did not fire in a forward pass, for example {missing[0]!r}. The model must run "
            "every block on each forward pass."
        )


def require_finite_activations(values: torch.Tensor, group: NeuronGroup, batch_number: int) -> None:
    """Raise SpLensError if values computed from the activations of a group are NaN or infinite.

    Call this after the forward pass. Inside a hook, it would make a GPU wait at every layer.

    Args:
        values: Statistics of the activations that are NaN or infinite if an activation is.
        group: Neuron group of the activations.
        batch_number: Index of the batch in the corpus, for the error message.
    """
    if not values.isfinite().all():
        raise SpLensError(
            f"NaN or infinite activation at site {group.site!r}, layer {group.layer}, batch {batch_number}, or so "
            "large that its sum is infinite. Load the model in float32 or bfloat16, or repair its weights."
        )
