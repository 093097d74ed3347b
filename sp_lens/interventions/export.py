"""Export a pruned model to a folder that transformers loads, and verify the exported model."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import transformers

from sp_lens.data.pixels import processor_of
from sp_lens.data.tokenization import original_tokenizer, tokenizer_of
from sp_lens.errors import SpLensError
from sp_lens.interventions.ablation import ablate, folded
from sp_lens.interventions.compaction import compacted
from sp_lens.models.forward import inference, input_device, random_inputs
from sp_lens.models.hooks import check_mask, model_name
from sp_lens.models.plain_model import plain_state, without_weights
from sp_lens.models.processed_weights import require_unfolded
from sp_lens.models.task import reads_images
from sp_lens.neurons.mask import NeuronMask
from sp_lens.storage.folders import new_folder

# Largest difference in log-probability that an exported model may show after it is loaded again.
TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.bfloat16: 1e-1, torch.float16: 2e-2}
# The heads of the Auto classes with which users load a model.
_HEADS = ("ForCausalLM", "ForMaskedLM", "ForImageClassification", "")
# The names that transformers' configurations have for the width of the feed-forward layers (one for all layers). The
# `intermediate_size` of Llama 4 is that of experts.
_WIDTHS = ("intermediate_size_mlp", "intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")


def export(
    model: Any,
    mask: NeuronMask,
    folder: str | Path,
    *,
    compact: bool = False,
    hf_model: Any = None,
    overwrite: bool = False,
) -> Path:
    """Save a pruned model as a Hugging Face folder: the output weights of the masked neurons are zero.

    All weights keep their shapes. With `compact=True`, pruned feed-forward neurons are removed as far as transformers
    can load the result: its configurations have one width for all layers, so every layer gets the width of the one with
    the most remaining neurons, rounded up to a multiple of eight. In each layer, neuron `i` is then the `i`-th neuron
    that the mask keeps, and zeroed neurons fill the rest. The files are smaller, and any program for such models runs
    them faster; how much depends on how evenly the mask prunes the layers. To compact each layer to its own width in
    memory, use `compact`.

    The model in memory is not changed. Before the folder appears under its name, an Auto class of transformers loads it
    with `dtype="auto"`, and its dtype and log-probabilities are compared with those of the model in memory, ablated
    with hooks (or cut in the same way with `compact=True`). After an error, nothing is left of the folder.

    Args:
        model: A `TransformerBridge`. A `HookedTransformer` stores processed weights in TransformerLens' own shapes, so
            it needs `hf_model` too.
        mask: The neurons to prune (True).
        folder: Folder to create. It may exist if it is empty or `overwrite` is set. Missing parents are created.
        compact: Whether to remove pruned feed-forward neurons from the weights.
        hf_model: The transformers model from which a `HookedTransformer` was made.
        overwrite: Whether to replace an existing folder.

    Returns:
        The path of the folder.

    Raises:
        SpLensError: If the mask belongs to another model; the folder exists and is not empty, cannot be created, or is
            the current folder; a `HookedTransformer` comes without `hf_model`; weights are quantized, offloaded to
            disk, or have folded value biases; or the exported model differs from the one in memory. With
            `compact=True`, also if the configuration of this architecture has no width to set, or for the reasons
            listed at `sp_lens.compact`.

    Example:
        >>> import tempfile
        >>> import sp_lens as sp
        >>> model = sp.load_model("demo")
        >>> mask = sp.NeuronMask.from_neurons(sp.layout_of(model), {"blocks.0.mlp.hook_post": range(100)})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     pruned = sp.load_model(sp.export(model, mask, f"{folder}/pruned"))
        >>> bool(pruned.blocks[0].mlp.W_out[:100].any())
        False
    """
    check_mask(model, mask)
    require_unfolded(model, "exported")
    with new_folder(folder, overwrite=overwrite) as unfinished:
        _export(model, mask, unfinished, compact=compact, hf_model=hf_model)
    return Path(folder)


def _export(model: Any, mask: NeuronMask, folder: Path, *, compact: bool, hf_model: Any) -> None:
    """Save the pruned model in an empty folder, and verify it."""
    bridge = _bridge(model, hf_model)
    if getattr(bridge.original_model.config, "quantization_config", None) is not None:
        raise SpLensError(
            f"{model_name(model)!r} is quantized, and rows of packed integers cannot be set to zero. Ablation by hooks "
            "works (ablate, prune). To export, load the model in float16 or bfloat16 and apply the mask to that."
        )
    processor = processor_of(model) if reads_images(model) else original_tokenizer(model)
    unnamed_mask = NeuronMask(mask.layout, mask.tensors)  # the bridge around hf_model may have another name
    if compact:
        with compacted(bridge, unnamed_mask) as width:
            _save(bridge.original_model, folder, width)
    else:
        with folded(bridge, unnamed_mask):
            _save(bridge.original_model, folder)
    processor.save_pretrained(folder)
    mask.save(folder / "sp_lens_mask.safetensors")
    _verify(model, mask, folder, bridge.original_model, compacted if compact else ablate)


def _save(bridged: Any, folder: Path, width: int | None = None) -> None:
    empty = without_weights(bridged, None if width is None else _with_width(bridged.config, width))
    if generation_config := getattr(bridged, "generation_config", None):  # masked language models have none
        empty.generation_config = generation_config
    empty.save_pretrained(folder, state_dict=plain_state(bridged, empty))


def _with_width(config: Any, width: int) -> Any:
    """Return a configuration with another width of the feed-forward layers."""
    config = copy.deepcopy(config)
    if not (names := [name for name in _WIDTHS if hasattr(config, name)]):
        raise SpLensError(
            f"{type(config).__name__} has no known setting for the width of the feed-forward layers, so the model "
            "cannot be exported with compact=True: export it without."
        )
    setattr(config, names[0], width)
    return config


def _bridge(model: Any, hf_model: Any) -> Any:
    """Return the bridge whose weights are saved: the model itself, or a new one around a copy of `hf_model`."""
    if hasattr(model, "original_model"):
        return model
    if hf_model is None:
        raise SpLensError(
            "a HookedTransformer contains weights that TransformerLens has processed. Pass the transformers model from "
            "which it was made: export(model, mask, folder, hf_model=AutoModelForCausalLM.from_pretrained(...))."
        )
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers(
        str(model.cfg.model_name), hf_model=copy.deepcopy(hf_model), tokenizer=tokenizer_of(model), device="cpu"
    )


def _verify(
    model: Any,
    mask: NeuronMask,
    folder: Path,
    original: Any,
    pruned: Callable[[Any, NeuronMask], AbstractContextManager],
) -> None:
    """Raise SpLensError if the exported model, loaded as users do, differs from the model in memory.

    Args:
        model: The model in memory.
        mask: The pruned neurons.
        folder: Folder of the exported model.
        original: The transformers model in the bridge, which determines the class and the devices.
        pruned: Context manager that prunes the model in memory for the comparison.
    """
    dtype, device = next(original.parameters()).dtype, input_device(model)
    inputs = random_inputs(model).to(device)
    with inference(model) as fused, pruned(model, mask):
        expected = model(inputs, return_type="logits").float().log_softmax(-1)
        exported = _auto_class(original).from_pretrained(
            folder,
            dtype="auto",
            attn_implementation="sdpa" if fused else "eager",
            local_files_only=True,
            device_map=getattr(original, "hf_device_map", None) or {"": device},
        )
        if exported.dtype != dtype:
            raise SpLensError(f"the exported model would be loaded in {exported.dtype}, but the model is in {dtype}.")
        log_probabilities = exported.eval()(inputs).logits.float().log_softmax(-1)[..., : expected.shape[-1]]
    difference = float((expected - log_probabilities.to(expected.device)).abs().max())
    if not difference <= TOLERANCE.get(dtype, 1e-1):
        raise SpLensError(
            f"the exported model differs from the model ablated by hooks by {difference:.2g} nats, so it was not "
            f"saved. If the weights of {model_name(model)!r} were processed (enable_compatibility_mode), load the "
            "model with load_model instead."
        )


def _auto_class(model: Any) -> Any:
    """Return the Auto class that loads models of this class, or the class itself if there is none (custom code)."""
    for head in _HEADS:
        auto = getattr(transformers, f"AutoModel{head}")
        if auto._model_mapping.get(type(model.config), None) is type(model):
            return auto
    return type(model)
