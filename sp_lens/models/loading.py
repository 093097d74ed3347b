"""Load a hooked model by name, from a folder, from a GGUF file, or one of the bundled models."""

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sp_lens.errors import SpLensError, check_choice
from sp_lens.models.plain_model import mark_verified, verify_bridge
from sp_lens.models.task import check_vocabulary
from sp_lens.storage.serialization import require_files

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

# The models in sp_lens.assets: a causal language model, a masked language model, and an image classifier.
BUNDLED = ("demo", "demo-masked", "demo-vision")
# A CPU cannot run models in 8-bit floats, and transformers cannot run models in integers.
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Ways in which accelerate places a model on several devices. A mapping gives the device of each module instead.
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


def load_model(
    name: str | Path,
    *,
    device: str | torch.device | None = None,
    device_map: str | Mapping[str, str | int] | None = None,
    dtype: torch.dtype = torch.float32,
    quantization_config: Any = None,
    trust_remote_code: bool = False,
    verify: bool = True,
) -> "TransformerBridge":
    """Load a model as a `TransformerBridge`, without weight processing.

    Weight processing (`enable_compatibility_mode`, folded layer norms or value biases) is not used, because folding
    value biases changes `hook_z`, and ablation by hooks would then differ from pruning the weights.

    Args:
        name: Name of a bundled model ("demo", "demo-masked" for a RoBERTa, "demo-vision" for a ViT), name of a Hugging
            Face model such as "facebook/opt-125m", path of a local folder, or path of a GGUF file.
        device: Device of the model. None lets TransformerLens choose.
        device_map: Placement on several GPUs, instead of `device`: "auto", "balanced", "balanced_low_0", "sequential",
            or {module: device} with the module names of transformers. With TransformerLens 4, a mapping without GPUs
            may leave weights on "disk".
        dtype: Data type of the weights: float32, bfloat16, float16 or float64.
        quantization_config: Configuration of transformers, such as `BitsAndBytesConfig(load_in_4bit=True)`. The weights
            are quantized while they are loaded, and `dtype` is the type of the computation. Quantized models support
            collection, ablation by hooks and pruning, but not folding or export.
        trust_remote_code: Whether to run the Python code that comes with a model. Weights in a pickle
            (`pytorch_model.bin` without safetensors) are always read by torch's weights-only loader, which runs no
            code.
        verify: Whether to compare the logits of the bridge with those of the transformers model on a short padded
            batch, because TransformerLens implements some architectures incorrectly. Quantized models and models on
            several devices are not compared, and half precision hides small errors in rounding.

    Returns:
        The bridge in evaluation mode.

    Raises:
        SpLensError: If the model does not exist, or the Hub cannot be reached; the dtype, device or quantization is not
            available; the model needs `trust_remote_code`; its tokenizer belongs to another model; or TransformerLens
            computes other logits than transformers.

    Example:
        >>> import sp_lens as sp
        >>> sp.load_model("demo").cfg.n_layers
        4
    """
    from transformer_lens.model_bridge import TransformerBridge

    check_choice("dtype", dtype, DTYPES)
    device_map = _checked_map(device, device_map)
    options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": trust_remote_code}
    try:
        if name in BUNDLED:
            source = str(files("sp_lens.assets") / str(name))
        elif str(name).endswith(".gguf"):
            source = str(_converted_gguf(Path(name)))
        else:
            source = str(name)
        if Path(source).is_dir():
            require_files(source)
        if quantization_config is None:
            options |= {"device": device, "device_map": device_map}
        else:
            placed = device_map or ("auto" if device is None else {"": device})
            options["hf_model"] = _quantized(source, quantization_config, device_map=placed, **options)
        bridge = TransformerBridge.boot_transformers(source, **options)
    except SpLensError:
        raise
    except (ImportError, RuntimeError) as error:  # missing package, weights of another shape, too little memory
        how = "" if quantization_config is None else " with this quantization_config"
        raise SpLensError(f"cannot load the model {str(name)!r}{how}. {_reason(error)}") from error
    except Exception as error:  # missing, damaged, or of an unknown kind; each library raises its own exceptions
        if "trust_remote_code" in str(error):
            raise SpLensError(
                f"the model {str(name)!r} comes with its own Python code, which was not run. Read the code. If you "
                "trust it, pass trust_remote_code=True to load_model."
            ) from error
        raise SpLensError(
            f"cannot load the model {str(name)!r}: expected {', '.join(BUNDLED)}, a local folder, a GGUF file, or, if "
            f"the Hub can be reached, the name of a Hugging Face model. {_reason(error)}"
        ) from error
    check_vocabulary(bridge)
    if verify:
        verify_bridge(bridge.eval())
    mark_verified(bridge)
    return bridge.eval()


def weights_fingerprint(model: Any) -> str:
    """Return a hash of all parameters.

    It distinguishes models of the same name, for example before and after folding a mask or fine-tuning.
    """
    from accelerate.utils import align_module_device

    digest = hashlib.sha256()
    seen: set[int] = set()
    for module in getattr(model, "original_model", model).modules():
        new = [name for name, parameter in module.named_parameters(recurse=False) if id(parameter) not in seen]
        seen.update(id(parameter) for parameter in module.parameters(recurse=False))
        with align_module_device(module):  # reads weights on disk
            for name in new:
                for tensor in _plain_tensors(module.get_parameter(name).detach()):
                    digest.update(tensor.cpu().reshape(-1).contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _plain_tensors(tensor: Any) -> Iterator[Any]:
    """Yield the tensor, or the parts of a quantized tensor: integers, scales and zero points."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _plain_tensors(getattr(tensor, name))


def _checked_map(device: Any, device_map: Any) -> Any:
    """Return the device map for TransformerLens, or None without one. Raise SpLensError if a device does not exist."""
    if device is not None and device_map is not None:
        raise SpLensError(f"device={device!r} and device_map={device_map!r}: give only one of them.")
    if device_map is not None and not isinstance(device_map, Mapping):
        check_choice("device_map", device_map, DEVICE_MAPS)
        return device_map
    for target in [device] if device_map is None else device_map.values():
        try:
            torch.empty(0, device=None if target == "disk" else target)
        except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without this backend
            raise SpLensError(
                f"there is no device {str(target)!r} here ({_reason(error)}): choose another one, such as 'cpu'."
            ) from error
    return None if device_map is None else dict(device_map)


def _reason(error: Exception) -> str:
    """Return the class and the first line of an exception of another library. Long lines are shortened."""
    line = (str(error).strip() or "no message").splitlines()[0]
    # TransformerLens lists every architecture that it supports, and then the one that the model has.
    return f"{type(error).__name__}: {line if len(line) < 400 else f'{line[:200]} [...] {line[-150:]}'}"


def _quantized(source: str, quantization_config: Any, **options: Any) -> Any:
    """Load a transformers model with quantized weights, which TransformerLens does not do itself."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=options["trust_remote_code"])
    masked = any(name.endswith("ForMaskedLM") for name in config.architectures or ())
    if any(name.endswith("ForImageClassification") for name in config.architectures or ()):
        raise SpLensError("quantization of image classifiers is not supported: leave out quantization_config.")
    auto = transformers.AutoModelForMaskedLM if masked else transformers.AutoModelForCausalLM
    # Hooks on the attention pattern need eager attention, and TransformerLens 3.9 does not change a loaded model.
    return auto.from_pretrained(source, quantization_config=quantization_config, attn_implementation="eager", **options)


def _converted_gguf(file: Path) -> Path:
    """Return a cached folder with the weights of a GGUF file as safetensors: reading GGUF takes a minute."""
    if not file.is_file():
        raise SpLensError(f"there is no GGUF file {file}.")
    folder = cache_folder() / _digest(file) / file.stem  # the name of the folder becomes the name of the model
    if folder.is_dir():
        return folder

    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        # The folder may contain other files, whose code must not run.
        options: dict[str, Any] = {"gguf_file": file.name, "trust_remote_code": False}
        loaded = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **options)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **options)
    except ImportError as error:
        raise SpLensError(
            f"reading {file.name} needs other packages: pip install 'sp_lens[gguf]' ({error})."
        ) from error
    # The weights are no longer quantized, but transformers refuses to save a model whose configuration says so.
    settings = {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
    config = type(loaded.config).from_dict(settings)
    plain = type(loaded)(config)
    plain.load_state_dict(loaded.state_dict())
    plain.tie_weights()
    unfinished = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    plain.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    publish(unfinished, folder)
    return folder


def publish(unfinished: Path, folder: Path) -> None:
    """Rename a finished folder. If another process has made the same folder in the meantime, that one is kept."""
    try:
        unfinished.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(unfinished)


def cache_folder() -> Path:
    """Return the folder for converted models: `SP_LENS_CACHE`, or sp_lens in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sp_lens"
    return Path(os.environ.get("SP_LENS_CACHE", default))


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:12]
