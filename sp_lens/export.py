"""Pruned model -> a Hugging Face folder that plain transformers loads, checked by loading it."""

import copy
import shutil
from pathlib import Path
from typing import Any

import torch

from sp_lens.ablation import ablate, check_mask, folded
from sp_lens.errors import SpLensError
from sp_lens.models import inference, input_device, model_name
from sp_lens.neurons import NeuronMask
from sp_lens.pictures import processor_of
from sp_lens.rows import tokenizer_of
from sp_lens.tasks import reads_images

# Largest difference in log-probability that a reloaded model may show in float32; other dtypes round more.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-1, torch.float16: 2e-2}


def export(model: Any, mask: NeuronMask, folder: str | Path, *, hf_model: Any = None, overwrite: bool = False) -> Path:
    """Save the model with the masked neurons' output weights zeroed, as transformers saves a model.

    The model in memory stays as it is. The folder is loaded back with plain transformers, and its
    log-probabilities are compared with those of the model ablated by hooks, before it gets its name.

    Args:
        model: a bridge. A `HookedTransformer` holds processed weights in TransformerLens' own shapes, so
            with one give `hf_model` too.
        mask: True is pruned.
        folder: to make; must not be there yet.
        hf_model: with a `HookedTransformer`, the transformers model that it was made from.
        overwrite: replace a folder that is there.

    Returns:
        The folder.

    Raises:
        SpLensError: for a mask of another model, a folder that is there, a `HookedTransformer` without
            `hf_model`, weights that are quantised or on disk, or a reloaded model that differs.
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
    with folded(bridge, NeuronMask(mask.layout, mask.tensors)):
        _save(bridge.original_model, unfinished)
    reader.save_pretrained(unfinished)
    mask.save(unfinished / "sp_lens_mask.safetensors")
    _verify(model, mask, unfinished, bridge.original_model)
    if folder.exists():
        shutil.rmtree(folder)
    unfinished.rename(folder)
    return folder


def plain_state(bridged: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of a model inside a bridge under the names that transformers knows.

    A bridge wraps the modules of the model that it was given, which then can't save itself.
    """
    fresh = on_meta(bridged).state_dict()
    state = {name.replace("._original_component", ""): tensor for name, tensor in bridged.state_dict().items()}
    if missing := [name for name in fresh if name not in state]:
        raise SpLensError(f"the bridged {type(bridged).__name__} has no weight {missing[0]!r}: it can't be exported.")
    return {name: state[name] for name in fresh}


def _save(bridged: Any, folder: Path) -> None:
    shell = on_meta(bridged)
    if generation_config := getattr(bridged, "generation_config", None):  # a masked language model has none
        shell.generation_config = generation_config
    shell.save_pretrained(folder, state_dict=plain_state(bridged))


def tokenizer_as_it_came(tokenizer: Any) -> Any:
    """The tokenizer without what TransformerLens changed: its copy puts BOS before every text and has a pad token."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(tokenizer.name_or_path, local_files_only=True)
    except (OSError, ValueError):  # it was made in memory, or its folder is gone
        return tokenizer


def on_meta(bridged: Any) -> Any:
    """A model of the same class and configuration without any weights."""
    config = copy.deepcopy(bridged.config)
    config.dtype = next(bridged.parameters()).dtype
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


def _verify(model: Any, mask: NeuronMask, folder: Path, plain: Any) -> None:
    """Compare the saved model, loaded by transformers and placed as it was, with the one ablated by hooks."""
    dtype, device = next(model.parameters()).dtype, input_device(model)
    inputs = _random_inputs(model).to(device)
    reloaded = type(plain).from_pretrained(
        folder,
        dtype=dtype,
        attn_implementation="eager",
        local_files_only=True,
        device_map=getattr(plain, "hf_device_map", None) or {"": device},
    )
    with inference(model), ablate(model, mask):
        by_hooks = model(inputs, return_type="logits").float().log_softmax(-1)
        by_weights = reloaded.eval()(inputs).logits.float().log_softmax(-1)[..., : by_hooks.shape[-1]]
    difference = float((by_hooks - by_weights.to(by_hooks.device)).abs().max())
    if not difference <= TOLERANCE.get(dtype, 1e-1):
        raise SpLensError(
            f"{model_name(model)!r} as saved differs from the model ablated by hooks by {difference:.2g} nats; "
            f"{folder} was left for you to look at. Were its weights processed (enable_compatibility_mode)? "
            "Load it with load_model."
        )


def _random_inputs(model: Any) -> torch.Tensor:
    """Two rows of tokens, or two images."""
    generator = torch.Generator().manual_seed(0)
    if reads_images(model):
        config, dtype = model.original_model.config, next(model.parameters()).dtype
        shape = (2, config.num_channels, config.image_size, config.image_size)
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(model.cfg.d_vocab, (2, min(model.cfg.n_ctx, 64)), generator=generator)
