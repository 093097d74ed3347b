"""Pruned model -> a Hugging Face folder that plain transformers loads, checked by loading it."""

import copy
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from sp_lens.data.pixels import processor_of
from sp_lens.data.tokenization import tokenizer_as_it_came, tokenizer_of
from sp_lens.errors import SpLensError
from sp_lens.interventions.ablation import ablate, folded
from sp_lens.interventions.compaction import compacted
from sp_lens.models.forward import inference, input_device, random_inputs
from sp_lens.models.hooks import check_mask, model_name
from sp_lens.models.task import reads_images
from sp_lens.neurons.mask import NeuronMask

# Largest difference in log-probability that a reloaded model may show in float32; other dtypes round more.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-1, torch.float16: 2e-2}
# What transformers calls the width of the feed-forward layers: one number for all of them.
_WIDTHS = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")


def export(
    model: Any,
    mask: NeuronMask,
    folder: str | Path,
    *,
    compact: bool = False,
    hf_model: Any = None,
    overwrite: bool = False,
) -> Path:
    """Save the model with the masked neurons' output weights zeroed, as transformers saves a model.

    The shapes are those of the whole model. With `compact` pruned feed-forward neurons are left out, as far as
    transformers can load that: its configurations have one width for all layers, so each gets that of the layer with
    most neurons left, in multiples of eight. Neuron `i` of a layer there is the `i`-th that the mask leaves, and
    zeroed ones fill up behind. A smaller file, that any program for such models runs faster; how much
    depends on how evenly the mask prunes. In memory, layer by layer: `sp_lens.compact`.

    The model in memory stays as it is. The folder is loaded back with plain transformers, and its
    log-probabilities are compared with those of the model ablated by hooks (of the model cut alike, with `compact`),
    before it gets its name.

    Args:
        model: a bridge. A `HookedTransformer` holds processed weights in TransformerLens' own shapes, so
            with one give `hf_model` too.
        mask: True is pruned.
        folder: to make; must not be there yet.
        compact: leave pruned feed-forward neurons out.
        hf_model: with a `HookedTransformer`, the transformers model that it was made from.
        overwrite: replace a folder that is there.

    Returns:
        The folder.

    Raises:
        SpLensError: for a mask of another model, a folder that is there, a `HookedTransformer` without
            `hf_model`, weights that are quantised or on disk, or a reloaded model that differs; with
            `compact` for an architecture whose configuration has no such width.
    """
    check_mask(model, mask)
    folder = Path(folder)
    if folder.exists() and not overwrite:
        raise SpLensError(f"{folder} is there already: name another folder, or say overwrite=True.")
    bridge = _bridge(model, hf_model)
    if getattr(bridge.original_model.config, "quantization_config", None) is not None:
        raise SpLensError(
            f"{model_name(model)!r} is quantised: rows of packed integers can't be zeroed. Ablation by hooks works "
            "on it (ablate, prune); to export, load the model in float16 or bfloat16, and apply the mask to that."
        )
    reader = processor_of(model) if reads_images(model) else tokenizer_as_it_came(tokenizer_of(model))
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unnamed = NeuronMask(mask.layout, mask.tensors)  # the bridge around hf_model may have another name
    if compact:
        with compacted(bridge, unnamed) as width:
            _save(bridge.original_model, unfinished, width)
    else:
        with folded(bridge, unnamed):
            _save(bridge.original_model, unfinished)
    reader.save_pretrained(unfinished)
    mask.save(unfinished / "sp_lens_mask.safetensors")
    _verify(model, mask, unfinished, bridge.original_model, compacted if compact else ablate)
    if folder.exists():
        shutil.rmtree(folder)
    unfinished.rename(folder)
    return folder


def plain_state(bridged: torch.nn.Module, shell: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of a model inside a bridge under the names that transformers knows, those of the empty `shell`.

    A bridge wraps the modules of the model that it was given, which then can't save itself.
    """
    fresh = shell.state_dict()
    state = {name.replace("._original_component", ""): tensor for name, tensor in bridged.state_dict().items()}
    if missing := [name for name in fresh if name not in state]:
        raise SpLensError(f"the bridged {type(bridged).__name__} has no weight {missing[0]!r}: it can't be exported.")
    if other := [name for name, tensor in fresh.items() if tensor.shape != state[name].shape]:
        raise SpLensError(
            f"{other[0]} of {type(bridged).__name__} is {tuple(state[other[0]].shape)}, and its configuration makes it "
            f"{tuple(fresh[other[0]].shape)}, so transformers could not load it. Was the model compacted? Export the "
            "whole one, with compact=True if you like."
        )
    return {name: state[name] for name in fresh}


def _save(bridged: Any, folder: Path, width: int | None = None) -> None:
    shell = on_meta(bridged, width)
    if generation_config := getattr(bridged, "generation_config", None):  # a masked language model has none
        shell.generation_config = generation_config
    shell.save_pretrained(folder, state_dict=plain_state(bridged, shell))


def on_meta(bridged: Any, width: int | None = None) -> Any:
    """A model of the same class and configuration without any weights; with feed-forward layers of another `width`."""
    config = copy.deepcopy(bridged.config)
    if width is not None:
        if not (names := [name for name in _WIDTHS if hasattr(config, name)]):
            raise SpLensError(
                f"{type(config).__name__} has no width of feed-forward layers to set: export without compact."
            )
        setattr(config, names[0], width)
    config.dtype = next(bridged.parameters()).dtype
    config.output_attentions = False  # TransformerLens asked for them, and the kernel that is the default has none
    with torch.device("meta"):
        return type(bridged)(config)


def _bridge(model: Any, hf_model: Any) -> Any:
    """The bridge whose weights are saved: the model itself, or one around `hf_model`."""
    if hasattr(model, "original_model"):
        return model
    if hf_model is None:
        raise SpLensError(
            "a HookedTransformer holds weights that TransformerLens has processed: give the transformers model that it "
            "was made from, export(model, mask, folder, hf_model=AutoModelForCausalLM.from_pretrained(...))."
        )
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers(
        str(model.cfg.model_name), hf_model=copy.deepcopy(hf_model), tokenizer=tokenizer_of(model), device="cpu"
    )


def _verify(
    model: Any, mask: NeuronMask, folder: Path, plain: Any, pruned: Callable[[Any, NeuronMask], AbstractContextManager]
) -> None:
    """Compare the saved model, loaded by transformers and placed as it was, with the one in memory while `pruned`."""
    dtype, device = next(model.parameters()).dtype, input_device(model)
    inputs = random_inputs(model).to(device)
    with inference(model) as fused, pruned(model, mask):
        in_memory = model(inputs, return_type="logits").float().log_softmax(-1)
        reloaded = type(plain).from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation="sdpa" if fused else "eager",
            local_files_only=True,
            device_map=getattr(plain, "hf_device_map", None) or {"": device},
        )
        by_weights = reloaded.eval()(inputs).logits.float().log_softmax(-1)[..., : in_memory.shape[-1]]
    difference = float((in_memory - by_weights.to(in_memory.device)).abs().max())
    if not difference <= TOLERANCE.get(dtype, 1e-1):
        raise SpLensError(
            f"{model_name(model)!r} as saved differs from the model ablated by hooks by {difference:.2g} nats; "
            f"{folder} was left for you to look at. Were its weights processed (enable_compatibility_mode)? "
            "Load it with load_model."
        )
