"""Compute attention with one fused kernel where no hook needs the intermediate results."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import MethodType
from typing import Any

import torch

from sp_lens.models.hooks import attentions


@contextmanager
def fused_attention(model: Any) -> Iterator[bool]:
    """Context manager that computes attention with `torch.nn.functional.scaled_dot_product_attention`.

    TransformerLens computes attention step by step, so that hooks can see the scores and the pattern. That keeps one
    number for each head and each pair of tokens in memory, several times. If only the input of W_O is needed, the fused
    kernel gives the same result up to rounding. It is faster, and its memory grows linearly with the length of the rows
    instead of quadratically.

    The model stays as it is in these cases: it is a `HookedTransformer`; transformers has no such kernel for it (Gemma
    2, which caps the scores); it was loaded with another kernel; TransformerLens holds copies of the weights (GPT-NeoX)
    or has processed them (`enable_compatibility_mode`); or a hook is attached inside an attention layer to anything but
    its input, its output, or z.

    Yields:
        Whether attention is fused.

    Example:
        >>> import sp_lens as sp
        >>> model = sp.load_model("demo")
        >>> with fused_attention(model) as fused:
        ...     fused
        True
        >>> hook = ("blocks.0.attn.hook_pattern", lambda pattern, hook: None)
        >>> with model.hooks(fwd_hooks=[hook]), fused_attention(model) as fused:
        ...     fused
        False
    """
    if not _can_be_fused(model):
        yield False
        return
    from transformer_lens.model_bridge.generalized_components.attention import AttentionBridge

    hf_model = model.original_model
    with ExitStack() as stack:
        stack.callback(hf_model.set_attn_implementation, hf_model.config._attn_implementation)
        hf_model.set_attn_implementation("sdpa")
        for attention, output in attentions(model).items():
            for owner, name in _owners_of_output(attention, output):
                stack.enter_context(substituted(owner._modules, name, output))
            # This is how TransformerLens itself delegates: the hook of the input, the computation of transformers, and
            # the hook of the output.
            stack.enter_context(substituted(vars(attention), "forward", MethodType(AttentionBridge.forward, attention)))
        yield True


@contextmanager
def substituted(names: dict[str, Any], name: str, value: Any) -> Iterator[None]:
    """Context manager that temporarily replaces or adds an entry of a dictionary.

    Use it with `vars(component)` to replace the `forward` method of a component of a bridge: an attribute that is
    assigned to the component would be set on the module that it wraps.

    Args:
        names: Dictionary to change.
        name: Key of the entry.
        value: Temporary value.
    """
    existed, before = name in names, names.get(name)
    names[name] = value
    try:
        yield
    finally:
        if existed:
            names[name] = before  # keeps its position: the order of modules determines the fingerprint of the weights
        else:
            del names[name]


def _can_be_fused(model: Any) -> bool:
    """Return whether transformers has the kernel and would compute the same as the model, including its hooks."""
    hf_model = getattr(model, "original_model", None)
    if hf_model is None or not getattr(hf_model, "_supports_sdpa", False):
        return False
    if hf_model.config._attn_implementation not in ("eager", "sdpa"):
        return False
    return all(
        hasattr(attention, "original_component")
        and not attention.compatibility_mode
        and getattr(attention.original_component, "attn_logit_softcapping", None) is None  # transformers 5.18 drops it
        and "forward" not in vars(attention)  # accelerate replaces it if parts of the model are on disk
        and _owners_of_output(attention, output)
        and _has_its_weights(attention)
        and not _is_hooked_inside(attention, output)
        for attention, output in attentions(model).items()
    )


def _owners_of_output(attention: Any, output: Any) -> list[tuple[torch.nn.Module, str]]:
    """Return the modules and attributes in which the attention layer of transformers keeps its output projection.

    The projection there is either the component of the bridge or the module that the component wraps.
    """
    projections = (output, getattr(output, "original_component", None))
    owners = (module for module in attention.original_component.modules() if module is not output)
    return [(owner, name) for owner in owners for name, child in owner.named_children() if child in projections]


def _has_its_weights(attention: Any) -> bool:
    """Return whether transformers would compute with the weights of the hooked attention layer.

    A copy of the weights may have been trained separately.
    """
    wrapped = {id(parameter) for parameter in attention.original_component.parameters()}
    others = [parameter for parameter in attention.parameters() if id(parameter) not in wrapped]
    if not others:
        return True
    storages = {_storage(parameter) for parameter in attention.original_component.parameters()}
    return all(_storage(parameter) in storages for parameter in others) and None not in storages


def _storage(parameter: torch.Tensor) -> tuple[torch.device, int] | None:
    """Return the memory that a weight is stored in, or None if it is on disk."""
    return None if parameter.is_meta else (parameter.device, parameter.untyped_storage().data_ptr())


def _is_hooked_inside(attention: Any, output: Any) -> bool:
    """Return whether a hook is attached to something that transformers does not run, such as scores or the pattern.

    Queries are such a case if transformers has no separate module for them.
    """
    run = {attention, attention.hook_in, attention.hook_out, *output.modules(), *attention.original_component.modules()}
    return any(module._forward_hooks or module._forward_pre_hooks for module in {*attention.modules()} - run)
