"""Attention in one fused kernel, where nobody looks inside it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import MethodType
from typing import Any

import torch

from sp_lens.models.hooks import attentions


@contextmanager
def fused_attention(model: Any) -> Iterator[bool]:
    """For the length of a `with`, attention as transformers computes it by default; whether that could be done.

    TransformerLens takes attention apart, so that hooks see its scores and its pattern: for each head a number for each
    pair of tokens, in memory several times over. Who reads what goes into W_O alone can have it from one kernel
    (`torch.nn.functional.scaled_dot_product_attention`), which keeps none of them: the same up to rounding, sooner,
    and in memory that grows with the length of the rows and not with its square.

    Nothing is changed for a `HookedTransformer`, for an attention that transformers has no such kernel for (Gemma 2,
    whose scores are capped), for one that was loaded with another kernel, whose weights TransformerLens has copies of
    (GPT-NeoX) or has processed (`enable_compatibility_mode`), and where a hook is on anything inside an attention but
    its input, its output and z.

    Example:
        >>> import sp_lens as sp
        >>> model = sp.load_model("demo")
        >>> with fused_attention(model) as fused:
        ...     fused
        True
        >>> watch = ("blocks.0.attn.hook_pattern", lambda pattern, hook: None)
        >>> with model.hooks(fwd_hooks=[watch]), fused_attention(model) as fused:
        ...     fused
        False
    """
    if not _can_be_fused(model):
        yield False
        return
    from transformer_lens.model_bridge.generalized_components.attention import AttentionBridge

    plain = model.original_model
    with ExitStack() as stack:
        stack.callback(plain.set_attn_implementation, plain.config._attn_implementation)
        plain.set_attn_implementation("sdpa")
        for attention, output in attentions(model).items():
            for owner, name in _places(attention, output):
                stack.enter_context(substituted(owner._modules, name, output))
            # TransformerLens' own way to delegate: the input's hook, what transformers computes, the output's hook.
            stack.enter_context(substituted(vars(attention), "forward", MethodType(AttentionBridge.forward, attention)))
        yield True


@contextmanager
def substituted(names: dict[str, Any], name: str, value: Any) -> Iterator[None]:
    """The value under that name for the length of a `with`, and what was there, or nothing, after it.

    So is the `forward` of a bridge's component set, in its `vars`: what is assigned to the component goes to the module
    that it wraps.
    """
    was_there, before = name in names, names.get(name)
    names[name] = value
    try:
        yield
    finally:
        if was_there:
            names[name] = before  # in its place: the order of modules is that of the weights in a fingerprint
        else:
            del names[name]


def _can_be_fused(model: Any) -> bool:
    """Whether transformers has the kernel, and computes by it what the model computes, hooks included."""
    plain = getattr(model, "original_model", None)
    if plain is None or not getattr(plain, "_supports_sdpa", False):
        return False
    if plain.config._attn_implementation not in ("eager", "sdpa"):
        return False
    return all(
        hasattr(attention, "original_component")
        and not attention.compatibility_mode
        and getattr(attention.original_component, "attn_logit_softcapping", None) is None  # transformers 5.18 drops it
        and "forward" not in vars(attention)  # accelerate's, on a model that is partly on disk
        and _places(attention, output)
        and _has_its_weights(attention)
        and not _is_watched(attention, output)
        for attention, output in attentions(model).items()
    )


def _places(attention: Any, output: Any) -> list[tuple[torch.nn.Module, str]]:
    """Where transformers' attention has the module of the output weights, a bridge's or the one that it wraps."""
    kept = (output, getattr(output, "original_component", None))
    owners = (module for module in attention.original_component.modules() if module is not output)
    return [(owner, name) for owner in owners for name, child in owner.named_children() if child in kept]


def _has_its_weights(attention: Any) -> bool:
    """Whether transformers computes with the weights of the hooked attention: a copy may have been trained, or not."""
    own = {id(parameter) for parameter in attention.original_component.parameters()}
    others = [parameter for parameter in attention.parameters() if id(parameter) not in own]
    if not others:
        return True
    there = {_storage(parameter) for parameter in attention.original_component.parameters()}
    return all(_storage(parameter) in there for parameter in others) and None not in there


def _storage(parameter: torch.Tensor) -> tuple[torch.device, int] | None:
    """Which memory a weight is in; None of what is on disk."""
    return None if parameter.is_meta else (parameter.device, parameter.untyped_storage().data_ptr())


def _is_watched(attention: Any, output: Any) -> bool:
    """Whether a hook is on what transformers does not run: scores, pattern, and queries that it has no module for."""
    run = {attention, attention.hook_in, attention.hook_out, *output.modules(), *attention.original_component.modules()}
    return any(module._forward_hooks or module._forward_pre_hooks for module in {*attention.modules()} - run)
