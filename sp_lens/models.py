"""Load a hooked model, and run one: by name, from a folder, from a GGUF file, or the bundled one."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError

from sp_lens.batches import Batch, ImageBatch
from sp_lens.errors import SpLensError, check_choice

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

# The models in sp_lens.assets: a causal and a masked language model, and a classifier of images.
BUNDLED = ("demo", "demo-masked", "demo-vision")
# A CPU runs no model in 8-bit floats, and transformers none in integers.
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def load_model(
    name: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
) -> "TransformerBridge":
    """Load a model as a `TransformerBridge`, with its weights as they are.

    No weight processing (`enable_compatibility_mode`, folded layer norms or value biases): folding value
    biases changes `hook_z`, and pruning by hook would then differ from pruning the weights.

    Args:
        name: "demo" (the bundled model; "demo-masked" is a RoBERTa, "demo-vision" a ViT), a Hugging Face name
            such as "facebook/opt-125m", a local folder, or a GGUF file.
        device: where to; None lets TransformerLens choose.
        dtype: of the weights: float32, bfloat16, float16 or float64.
        trust_remote_code: passed on to transformers; off unless you ask for it.

    Raises:
        SpLensError: when there is no such model, or the Hub can't be reached, and for another dtype.

    Example:
        >>> import sp_lens as sp
        >>> sp.load_model("demo").cfg.n_layers
        4
    """
    from transformer_lens.model_bridge import TransformerBridge

    check_choice("dtype", dtype, DTYPES)
    try:
        if name in BUNDLED:
            source = str(files("sp_lens.assets") / str(name))
        elif str(name).endswith(".gguf"):
            source = str(_converted_gguf(Path(name)))
        else:
            source = str(name)
        bridge = TransformerBridge.boot_transformers(
            source, device=device, dtype=dtype, trust_remote_code=trust_remote_code
        )
    except SpLensError:
        raise
    except (OSError, ValueError, SafetensorError) as error:  # nothing there, of an unknown kind, or cut short
        raise SpLensError(
            f"cannot load the model {str(name)!r}: expected 'demo', a local folder or GGUF file, or the name of a "
            f"Hugging Face model while the Hub can be reached. {type(error).__name__}: {str(error).splitlines()[0]}"
        ) from error
    return bridge.eval()


def model_name(model: Any) -> str:
    """The last part of the model's name: "opt-125m" for "facebook/opt-125m" and for a folder of that name."""
    return Path(str(model.cfg.model_name)).name


def weights_fingerprint(model: Any) -> str:
    """A hash of every parameter: tells a model from another of the same name, a folded or a fine-tuned one."""
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


@contextmanager
def inference(model: Any) -> Iterator[None]:
    """No gradients and no dropout for the length of a `with`; the model's mode comes back after it."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def forward(model: Any, batch: Batch | ImageBatch) -> Float[torch.Tensor, "row pos d_vocab"]:
    """The logits of a batch (of images: [row class]); padding is told by an explicit attention mask."""
    batch = batch.to(next(model.parameters()).device)
    if isinstance(batch, ImageBatch):
        return model(batch.pixels.to(next(model.parameters()).dtype), return_type="logits")
    return model(batch.tokens, attention_mask=batch.attention_mask, return_type="logits")


def _converted_gguf(file: Path) -> Path:
    """The folder with a GGUF file's weights as safetensors, made once: reading GGUF takes a minute."""
    if not file.is_file():
        raise SpLensError(f"there is no GGUF file {file}.")
    folder = cache_folder() / _digest(file) / file.stem  # the folder's name is what the model is called
    if folder.is_dir():
        return folder

    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
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
