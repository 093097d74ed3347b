"""Adapt TransformerLens models: find blocks, hook points and output weights, and attach hooks.

This is the only module that knows the names and weights of TransformerLens. The names of the two hook points that have
neurons are in `sp_lens.typing.HOOKS`. The output weights of a neuron are a row of `W_out` or `W_O`.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float

from sp_lens.errors import SpLensError
from sp_lens.models.exclusive import exclusive
from sp_lens.models.processed_weights import value_biases_are_folded, warn_if_processed
from sp_lens.neurons.layout import Layout, NeuronGroup
from sp_lens.neurons.mask import NeuronMask
from sp_lens.typing import HOOKS, Site

# The attribute of a component with its output weights, and the name of a bridge's module for them.
_OUTPUT: dict[Site, tuple[str, str]] = {"attn": ("W_O", "o"), "mlp": ("W_out", "out")}


def layout_of(model: Any) -> Layout:
    """Return the neuron groups of a model, with widths read from its weights.

    The configuration is not used, because `cfg.d_mlp` is wrong for an OPT with its own `ffn_dim`, and n_heads * d_head
    differs from d_model on Qwen3 and Gemma.

    Args:
        model: A `TransformerBridge` or a `HookedTransformer`.

    Raises:
        SpLensError: If the model is not a TransformerLens model, is an encoder-decoder or a mixture of experts (whose
            `mlp.hook_post` is the output of the block), or has blocks without neurons.
    """
    groups = []
    blocks = blocks_of(model)
    for layer, block in enumerate(blocks):
        if (attn := _group(model, layer, "attn")) is not None:
            groups.append(attn)
        if (mlp := getattr(block, "mlp", None)) is not None:
            if (group := _group(model, layer, "mlp")) is None:
                raise SpLensError(
                    f"block {layer} is a mixture of experts ({type(mlp).__name__}): its mlp.hook_post is not the input "
                    "of one down-projection, so it has no neurons to score. Load a model with dense MLPs."
                )
            groups.append(group)
    if not groups:
        parts = [name for block in blocks for name, part in block.named_children() if hasattr(part, "hook_out")]
        raise SpLensError(
            f"{kind_of(model)} has neither attn.hook_z nor mlp.hook_post in any block: its blocks consist of "
            f"{', '.join(dict.fromkeys(parts)) or 'modules without hooks'}. Load a model with attention and MLPs."
        )
    for group in groups:
        hook_point(model, group)  # raises before any work if a hook point is missing
    warn_if_processed(model)
    return Layout(tuple(groups))


def hook_point(model: Any, group: NeuronGroup) -> Any:
    """Return the `HookPoint` for the activations of a neuron group.

    Args:
        model: Hooked model.
        group: Neuron group.

    Raises:
        SpLensError: If the model does not have this hook point. The message lists the hook points that it has instead.
    """
    part, hook = HOOKS[group.site]
    component = getattr(model.blocks[group.layer], part)
    point = getattr(component, hook, None)
    if point is None:
        modules = [name.replace("_original_component.", "") for name, _ in component.named_modules()]
        hooks = [name for name in dict.fromkeys(modules) if name.rpartition(".")[2].startswith("hook_")]
        raise SpLensError(
            f"{kind_of(model)} has no hook {group.name}: its {type(component).__name__} has "
            f"{', '.join(hooks) or 'no hook at all'}. TransformerLens must provide the input of the output weights."
        )
    return point


def upstream(model: Any, group: NeuronGroup) -> list[torch.nn.Module]:
    """Return the modules whose outputs do not depend on the neurons of a group.

    These are the earlier blocks and, for an MLP, the attention of the same block.
    """
    blocks = list(blocks_of(model))
    attention = getattr(blocks[group.layer], "attn", None)
    return [*blocks[: group.layer], *([attention] if group.site == "mlp" and attention is not None else [])]


def shares_keys(model: Any) -> bool:
    """Return whether blocks read the keys and values of earlier blocks, besides the residual stream (Gemma 4)."""
    config = getattr(getattr(model, "original_model", None), "config", None)
    return config is not None and bool(getattr(config.get_text_config(), "num_kv_shared_layers", 0))


def attentions(model: Any) -> dict[torch.nn.Module, torch.nn.Module | None]:
    """Return the attention layers, each with the bridge's module of its output weights (None without a bridge)."""
    layers = ((getattr(block, "attn", None), layer, block) for layer, block in enumerate(blocks_of(model)))
    return {attn: _output(block, layer, "attn")[1] for attn, layer, block in layers if attn is not None}


def output_weight(model: Any, group: NeuronGroup) -> Float[torch.Tensor, "neuron d_model"]:
    """Return the live output weights of a group. Writing to the result changes the model.

    Args:
        model: Hooked model.
        group: Neuron group.

    Raises:
        SpLensError: If the weights are quantized, on disk, or made in inference mode, so they cannot be written to.
    """
    weight, module = _output(model.blocks[group.layer], group.layer, group.site)
    # A packed format is a class of its own. Its transpose may be a copy in floats, and writing to it has no effect.
    if weight is None or type(getattr(module, "weight", weight)) not in (torch.Tensor, torch.nn.Parameter):
        raise SpLensError(
            f"the weights behind {group.name} are quantized or offloaded to disk, so their rows cannot be set to zero. "
            "Ablation by hooks works (ablate, prune). To fold or export, load the model in float16 or bfloat16."
        )
    if weight.is_inference() and not torch.is_inference_mode_enabled():
        raise SpLensError(
            "the model was loaded within torch.inference_mode(), and its weights cannot be changed outside of it: load "
            "it outside of it."
        )
    return weight.view(-1, weight.shape[-1])  # not reshape, which may return a copy


@contextmanager
def attached(model: Any, hooks: Iterable[tuple[NeuronGroup, Callable[..., Any]]]) -> Iterator[None]:
    """Context manager that attaches hooks to the hook points of groups and removes them on exit.

    The hooks are added to the `HookPoint`s directly: `run_with_hooks` ignores unknown names (TransformerLens 3.9) and
    rebuilds the map of names in each call. The hooks of the user are kept.

    Args:
        model: Hooked model.
        hooks: Pairs of a neuron group and a hook function.
    """
    handles = []
    with exclusive(model):
        try:
            for group, function in hooks:
                point = hook_point(model, group)
                point.add_hook(function)
                handles.append((point, point.fwd_hooks[-1]))
            yield
        finally:
            for point, handle in reversed(handles):
                handle.hook.remove()
                if handle in point.fwd_hooks:  # not if the user has called reset_hooks()
                    point.fwd_hooks.remove(handle)


def blocks_of(model: Any) -> Any:
    """Return the transformer blocks of a hooked model.

    Raises:
        SpLensError: If the model is not a TransformerLens model, it has several stacks of blocks, or new tensors are
            not made on the CPU by default.
    """
    if (device := torch.get_default_device()).type != "cpu":
        raise SpLensError(
            f"torch.set_default_device({str(device)!r}) is in effect, so that all new tensors would be made there: "
            "call torch.set_default_device(None). A model that is on another device stays there, and is used there."
        )
    blocks = getattr(model, "blocks", None)
    if blocks is not None and hasattr(model, "hook_dict"):
        return blocks
    hooked = hasattr(model, "hook_dict")
    if hooked and (stacks := [name for name, _ in model.named_children() if name.endswith("_blocks")]):
        raise SpLensError(
            f"{kind_of(model)} is an encoder-decoder: it has {' and '.join(stacks)}, but one stack of blocks was "
            "expected. Load a decoder (GPT-2, Llama) or an encoder (BERT)."
        )
    raise SpLensError(
        f"expected a TransformerBridge or a HookedTransformer with blocks, got {type(model).__name__}: "
        'load one with sp_lens.load_model("gpt2") or TransformerBridge.boot_transformers(...).'
    )


def kind_of(model: Any) -> str:
    """Return the name of the class of the model, which for a bridge is the class of the transformers model."""
    return type(getattr(model, "original_model", model)).__name__


def _group(model: Any, layer: int, site: Site) -> NeuronGroup | None:
    """Return the neuron group at a site, with one neuron per row of the output weights, or None without weights."""
    weight, module = _output(model.blocks[layer], layer, site)
    if weight is not None:
        width, heads = weight.shape[:-1].numel(), weight.shape[0]
    else:  # packed integers have another shape, but their module knows the size (GPT-2 calls it nx)
        width, heads = getattr(module, "in_features", getattr(module, "nx", 0)), model.cfg.n_heads
    return NeuronGroup(site, layer, width, heads if site == "attn" else 0) if width else None


def _output(block: Any, layer: int, site: Site) -> tuple[Any, Any]:
    """Return the output weights in TransformerLens' shape and the bridge's module of them, or None for either."""
    component = getattr(block, site, None)
    name, module = _OUTPUT[site]
    try:
        weight = getattr(component, name, None)
    except NotImplementedError:  # TransformerLens: packed integers, or a placeholder for weights on disk
        weight = None
    except ValueError as error:  # TransformerLens 4: the heads of this layer do not have the size in the configuration
        raise SpLensError(
            f"the {site} of block {layer} has no {name} that can be divided into neurons, as in latent attention "
            f"(DeepSeek): {error}"
        ) from error
    return weight, getattr(component, module, None)


def check_mask(model: Any, mask: NeuronMask) -> None:
    """Raise SpLensError if a mask was made for a model with other neurons, or with another name if that is known."""
    groups = {group.name: group for group in layout_of(model)}
    for group in mask.layout:
        if groups.get(group.name) != group:
            raise SpLensError(
                f"the mask is of another model: it has {group.shape} at {group.name}, but {model_name(model)!r} has "
                f"{groups[group.name].shape if group.name in groups else 'no such hook'}. Create the mask again from "
                "this model."
            )
    made_for = mask.about.get("model")
    if made_for and made_for != model_name(model):
        raise SpLensError(
            f"the mask was made for the model {made_for!r}, not for {model_name(model)!r}. To use it anyway, pass "
            "NeuronMask(mask.layout, mask.tensors)."
        )


def model_name(model: Any) -> str:
    """Return the last part of the model's name: "opt-125m" for "facebook/opt-125m" and for a folder of that name.

    The name says so if value biases were folded, so that results of processed and of original weights are not mixed.
    """
    path = Path(str(model.cfg.model_name))
    name = path.name if path.name not in ("", "..") else path.resolve().name  # the folder is "." or ".."
    return f"{name} with folded value biases" if value_biases_are_folded(model) else name
