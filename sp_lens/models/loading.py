"""Load a hooked model, and run one: by name, from a folder, from a GGUF file, or the bundled one."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sp_lens.errors import SpLensError, check_choice
from sp_lens.models.task import check_vocabulary
from sp_lens.storage.serialization import require_files

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

# The models in sp_lens.assets: a causal and a masked language model, and a classifier of images.
BUNDLED = ("demo", "demo-masked", "demo-vision")
# A CPU runs no model in 8-bit floats, and transformers none in integers.
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# How accelerate splits a model over several devices; a mapping says it module by module.
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


def load_model(
    name: str | Path,
    *,
    device: str | torch.device | None = None,
    device_map: str | Mapping[str, str | int] | None = None,
    dtype: torch.dtype = torch.float32,
    quantization_config: Any = None,
    trust_remote_code: bool = False,
) -> "TransformerBridge":
    """Load a model as a `TransformerBridge`, with its weights as they are.

    No weight processing (`enable_compatibility_mode`, folded layer norms or value biases): folding value
    biases changes `hook_z`, and pruning by hook would then differ from pruning the weights.

    Args:
        name: "demo" (the bundled model; "demo-masked" is a RoBERTa, "demo-vision" a ViT), a Hugging Face name
            such as "facebook/opt-125m", a local folder, or a GGUF file.
        device: where to; None lets TransformerLens choose.
        device_map: instead of `device`, over several GPUs: "auto", "balanced", "balanced_low_0",
            "sequential", or {module: device} in the names of transformers. On TransformerLens 4 a map
            without a GPU may leave weights on "disk".
        dtype: of the weights: float32, bfloat16, float16 or float64.
        quantization_config: a configuration of transformers, `BitsAndBytesConfig(load_in_4bit=True)`:
            the weights are quantised as they are loaded, `dtype` is what is computed in. Such weights are
            read, ablated by hooks and pruned; they can't be folded or exported.
        trust_remote_code: run the Python that comes with a model; off unless you ask for it. Weights that come as a
            pickle (`pytorch_model.bin` and no safetensors) are read by torch's loader of weights alone, which runs
            nothing.

    Raises:
        SpLensError: when there is no such model, or the Hub can't be reached; for another dtype, a device that
            is not here, a quantisation that can't be had; for code that came with the model and was not asked for; and
            for the tokenizer of another model.

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
            options["hf_model"] = _quantised(source, quantization_config, device_map=placed, **options)
        bridge = TransformerBridge.boot_transformers(source, **options)
    except SpLensError:
        raise
    except (ImportError, RuntimeError) as error:  # no such quantisation, weights of another size, too little memory
        how = "" if quantization_config is None else " with this quantization_config"
        raise SpLensError(f"cannot load the model {str(name)!r}{how}. {_reason(error)}") from error
    except Exception as error:  # nothing there, of an unknown kind, or damaged: each library has errors of its own
        if "trust_remote_code" in str(error):
            raise SpLensError(
                f"the model {str(name)!r} comes with Python of its own, which was not run. Read it; if you trust it, "
                "say load_model(..., trust_remote_code=True)."
            ) from error
        raise SpLensError(
            f"cannot load the model {str(name)!r}: expected {', '.join(BUNDLED)}, a local folder, a GGUF file, or the "
            f"name of a Hugging Face model while the Hub can be reached. {_reason(error)}"
        ) from error
    check_vocabulary(bridge)
    return bridge.eval()


def weights_fingerprint(model: Any) -> str:
    """A hash of every parameter: tells a model from another of the same name, a folded or a fine-tuned one."""
    from accelerate.utils import align_module_device

    digest = hashlib.sha256()
    seen: set[int] = set()
    for module in getattr(model, "original_model", model).modules():
        new = [name for name, parameter in module.named_parameters(recurse=False) if id(parameter) not in seen]
        seen.update(id(parameter) for parameter in module.parameters(recurse=False))
        with align_module_device(module):  # what is on disk is read
            for name in new:
                for tensor in _plain_tensors(module.get_parameter(name).detach()):
                    digest.update(tensor.cpu().reshape(-1).contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _plain_tensors(tensor: Any) -> Iterator[Any]:
    """The tensor, or those that a quantised one is made of: numbers, scales and zeros."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _plain_tensors(getattr(tensor, name))


def _checked_map(device: Any, device_map: Any) -> Any:
    """The device map as TransformerLens takes it, if that is how the model is to be placed and it can be."""
    if device is not None and device_map is not None:
        raise SpLensError(f"device={device!r} and device_map={device_map!r}: give one of them.")
    if device_map is not None and not isinstance(device_map, Mapping):
        check_choice("device_map", device_map, DEVICE_MAPS)
        return device_map
    for place in [device] if device_map is None else device_map.values():
        try:
            torch.empty(0, device=None if place == "disk" else place)
        except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without it
            raise SpLensError(
                f"there is no device {str(place)!r} here ({_reason(error)}): choose another, 'cpu' for one."
            ) from error
    return None if device_map is None else dict(device_map)


def _reason(error: Exception) -> str:
    """The kind of an error of other libraries, and the first line of what they say; of a long one, its two ends."""
    line = (str(error).strip() or "without a word").splitlines()[0]
    # TransformerLens lists every architecture that it knows, and says after them which one came.
    return f"{type(error).__name__}: {line if len(line) < 400 else f'{line[:200]} [...] {line[-150:]}'}"


def _quantised(source: str, quantization_config: Any, **options: Any) -> Any:
    """The transformers model, quantised as it is loaded, which TransformerLens does not do by itself."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=options["trust_remote_code"])
    masked = any(name.endswith("ForMaskedLM") for name in config.architectures or ())
    if any(name.endswith("ForImageClassification") for name in config.architectures or ()):
        raise SpLensError("a classifier of images is not quantised here: leave quantization_config out.")
    auto = transformers.AutoModelForMaskedLM if masked else transformers.AutoModelForCausalLM
    # Eager, as TransformerLens 3.9 leaves a model that it is given as it is, and hooks on the pattern need it.
    return auto.from_pretrained(source, quantization_config=quantization_config, attn_implementation="eager", **options)


def _converted_gguf(file: Path) -> Path:
    """The folder with a GGUF file's weights as safetensors, made once: reading GGUF takes a minute."""
    if not file.is_file():
        raise SpLensError(f"there is no GGUF file {file}.")
    folder = cache_folder() / _digest(file) / file.stem  # the folder's name is what the model is called
    if folder.is_dir():
        return folder

    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        own: dict[str, Any] = {"gguf_file": file.name, "trust_remote_code": False}  # not of what lies beside it
        loaded = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **own)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **own)
    except ImportError as error:
        raise SpLensError(f"reading {file.name} needs more packages: pip install 'sp-lens[gguf]' ({error}).") from error
    # transformers refuses to save a model that says it is quantised; these weights no longer are.
    settings = {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
    config = type(loaded.config).from_dict(settings)
    plain = type(loaded)(config)
    plain.load_state_dict(loaded.state_dict())
    plain.tie_weights()
    unfinished = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    plain.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(folder)
    return folder


def cache_folder() -> Path:
    """Where converted models are kept: `SP_LENS_CACHE`, or sp_lens in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sp_lens"
    return Path(os.environ.get("SP_LENS_CACHE", default))


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:12]
