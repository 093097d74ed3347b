"""Where a model has its neurons: the one room that knows TransformerLens' blocks, hooks and weights.

A neuron's output weights are a row of `W_out` or `W_O`.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float

from sp_lens.errors import SpLensError
from sp_lens.neurons.layout import Layout, NeuronGroup
from sp_lens.neurons.mask import NeuronMask
from sp_lens.typing import HOOKS, Site

_OUTPUT: dict[Site, tuple[str, str]] = {"attn": ("W_O", "o"), "mlp": ("W_out", "out")}  # and a bridge's module of it


def layout_of(model: Any) -> Layout:
    """The neuron groups of a bridge or a `HookedTransformer`, with widths read off the weights.

    Never off `cfg`: `cfg.d_mlp` is wrong for an OPT with an own `ffn_dim`, and n_heads * d_head differs
    from d_model on Qwen3 and Gemma.

    Raises:
        SpLensError: for something that is no TransformerLens model, an encoder-decoder, a mixture of experts
            (whose `mlp.hook_post` is the output of the block and no neuron), and blocks without neurons.
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
                    "of one down-projection, so it has no neurons to score. Bring a model with dense MLPs."
                )
            groups.append(group)
    if not groups:
        parts = [name for block in blocks for name, part in block.named_children() if hasattr(part, "hook_out")]
        raise SpLensError(
            f"{kind_of(model)} has neither attn.hook_z nor mlp.hook_post in any block: its blocks are made of "
            f"{', '.join(dict.fromkeys(parts)) or 'nothing that is hooked'}. Bring a model with attention and MLPs."
        )
    for group in groups:
        hook_point(model, group)  # refuses before any work what would fail in the middle of it
    return Layout(tuple(groups))


def hook_point(model: Any, group: NeuronGroup) -> Any:
    """The `HookPoint` through which the group's activations pass.

    Raises:
        SpLensError: when the model does not have it, with the hooks that it has there instead.
    """
    part, hook = HOOKS[group.site]
    component = getattr(model.blocks[group.layer], part)
    point = getattr(component, hook, None)
    if point is None:
        modules = [name.replace("_original_component.", "") for name, _ in component.named_modules()]
        there = [name for name in dict.fromkeys(modules) if name.rpartition(".")[2].startswith("hook_")]
        raise SpLensError(
            f"{kind_of(model)} has no hook {group.name}: its {type(component).__name__} has "
            f"{', '.join(there) or 'no hook at all'}. TransformerLens must show the input of the output weights."
        )
    return point


def upstream(model: Any, group: NeuronGroup) -> list[torch.nn.Module]:
    """The modules that no ablation of the group reaches: the blocks below, and of an MLP the attention beside it."""
    blocks = list(blocks_of(model))
    attention = getattr(blocks[group.layer], "attn", None)
    return [*blocks[: group.layer], *([attention] if group.site == "mlp" and attention is not None else [])]


def shares_keys(model: Any) -> bool:
    """Whether blocks read keys and values of blocks below (Gemma 4), and so more than the residual stream."""
    config = getattr(getattr(model, "original_model", None), "config", None)
    return config is not None and bool(getattr(config.get_text_config(), "num_kv_shared_layers", 0))


def attentions(model: Any) -> dict[torch.nn.Module, torch.nn.Module | None]:
    """The attentions of a model, each with a bridge's module of its output weights (a `HookedTransformer` has none)."""
    found = ((getattr(block, "attn", None), layer, block) for layer, block in enumerate(blocks_of(model)))
    return {attn: _output(block, layer, "attn")[1] for attn, layer, block in found if attn is not None}


def output_weight(model: Any, group: NeuronGroup) -> Float[torch.Tensor, "neuron d_model"]:
    """The live output weights of the group: writing to the result changes the model.

    Raises:
        SpLensError: for weights that are quantised or on disk, whose rows can't be written to.
    """
    weight, module = _output(model.blocks[group.layer], group.layer, group.site)
    # A packed format is a class of its own, whose transpose may be a copy in floats: writing to that changes nothing.
    if weight is None or type(getattr(module, "weight", weight)) not in (torch.Tensor, torch.nn.Parameter):
        raise SpLensError(
            f"the weights behind {group.name} are quantised or offloaded to disk, so that their rows can't be zeroed. "
            "Ablation by hooks works on them (ablate, prune); to fold or export, load the model in float16 or bfloat16."
        )
    return weight.view(-1, weight.shape[-1])  # view, not reshape: a copy would not be live


@contextmanager
def attached(model: Any, hooks: Iterable[tuple[NeuronGroup, Callable[..., Any]]]) -> Iterator[None]:
    """Hooks on the model's own hook points for the length of a `with`, and no trace of them after it.

    They are put on the `HookPoint`s directly: going by name through `run_with_hooks` ignores unknown
    names (TransformerLens 3.9) and rebuilds the map of names each time. The user's own hooks stay.
    """
    placed = []
    try:
        for group, function in hooks:
            point = hook_point(model, group)
            point.add_hook(function)
            placed.append((point, point.fwd_hooks[-1]))
        yield
    finally:
        for point, handle in reversed(placed):
            handle.hook.remove()
            if handle in point.fwd_hooks:  # not there any more if the user called reset_hooks()
                point.fwd_hooks.remove(handle)


def blocks_of(model: Any) -> Any:
    """The blocks of a hooked model.

    Raises:
        SpLensError: for something that is no TransformerLens model, and for one with several stacks of blocks.
    """
    blocks = getattr(model, "blocks", None)
    if blocks is not None and hasattr(model, "hook_dict"):
        return blocks
    hooked = hasattr(model, "hook_dict")
    if hooked and (stacks := [name for name, _ in model.named_children() if name.endswith("_blocks")]):
        raise SpLensError(
            f"{kind_of(model)} is an encoder-decoder: it has {' and '.join(stacks)}, and one stack of blocks was "
            "expected. Bring a decoder (GPT-2, Llama) or an encoder (BERT)."
        )
    raise SpLensError(
        f"expected a TransformerBridge or a HookedTransformer with blocks, got {type(model).__name__}: "
        'load one with sp_lens.load_model("gpt2") or TransformerBridge.boot_transformers(...).'
    )


def kind_of(model: Any) -> str:
    """What the model is, by the class of the transformers model in a bridge."""
    return type(getattr(model, "original_model", model)).__name__


def _group(model: Any, layer: int, site: Site) -> NeuronGroup | None:
    """The neurons of a site in a block, as many as the output weights have rows; None without such weights."""
    weight, module = _output(model.blocks[layer], layer, site)
    if weight is not None:
        width, heads = weight.shape[:-1].numel(), weight.shape[0]
    else:  # the shape of packed integers says nothing, the module that unpacks them does (GPT-2's calls it nx)
        width, heads = getattr(module, "in_features", getattr(module, "nx", 0)), model.cfg.n_heads
    return NeuronGroup(site, layer, width, heads if site == "attn" else 0) if width else None


def _output(block: Any, layer: int, site: Site) -> tuple[Any, Any]:
    """The output weights in TransformerLens' shape, if they can be read as a matrix, and a bridge's module of them."""
    component = getattr(block, site, None)
    name, module = _OUTPUT[site]
    try:
        weight = getattr(component, name, None)
    except NotImplementedError:  # TransformerLens: packed integers, or a placeholder of what is on disk
        weight = None
    except ValueError as error:  # 4.x: the heads of this layer are not of the configuration's size
        raise SpLensError(
            f"the {site} of block {layer} has no {name} that can be cut into neurons, as in latent attention "
            f"(DeepSeek): {error}"
        ) from error
    return weight, getattr(component, module, None)


def check_mask(model: Any, mask: NeuronMask) -> None:
    """Refuse a mask that was made for another model: other neurons, or another name where it is known."""
    here = {group.name: group for group in layout_of(model)}
    for group in mask.layout:
        if here.get(group.name) != group:
            raise SpLensError(
                f"the mask is of another model: it has {group.shape} at {group.name}, and {model_name(model)!r} has "
                f"{here[group.name].shape if group.name in here else 'no such hook'}. Make it again from this model."
            )
    made_for = mask.about.get("model")
    if made_for and made_for != model_name(model):
        raise SpLensError(
            f"the mask was made for the model {made_for!r}, not for {model_name(model)!r}. To use it all the same: "
            "NeuronMask(mask.layout, mask.tensors)."
        )


def model_name(model: Any) -> str:
    """The last part of the model's name: "opt-125m" for "facebook/opt-125m" and for a folder of that name."""
    path = Path(str(model.cfg.model_name))
    return path.name if path.name not in ("", "..") else path.resolve().name  # of the folder "." or ".."
