"""Results on disk: safetensors with a JSON header, written whole or not at all. No pickle."""

import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from sp_lens.errors import DamagedFile, SpLensError

_HEADER = "sp_lens"


def versions() -> dict[str, str]:
    """The versions that a result was made with; part of every saved header."""
    return {name: version(name) for name in ("sp_lens", "transformer_lens", "transformers", "torch")}


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write `data` under a temporary name, flush it to disk, then rename: readers never see half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: str | Path) -> None:
    """Remove what killed processes had only half written there; for when no other process writes."""
    for file in Path(folder).glob(f".*.{32 * '[0-9a-f]'}.tmp"):
        file.unlink()


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: str | Path) -> Any:
    """Read JSON.

    Raises:
        SpLensError: when the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise SpLensError(f"cannot read {path} as JSON ({error}): was it written by sp_lens?") from error


def save_tensors(path: str | Path, kind: str, tensors: Mapping[str, torch.Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and a JSON header that names what `kind` of result this is.

    Args:
        path: the file; its folder is made when it is missing.
        kind: the class of the result; `load_tensors` refuses a file of another kind.
        tensors: what to store, on any device.
        header: plain values; the versions are added.
    """
    text = json.dumps({"kind": kind, "versions": versions(), **header})
    # Cloned, as safetensors refuses tensors that share memory (the edges of several histograms may).
    # In that format, as one number is contiguous to torch whatever its strides are, and may not be viewable as bytes.
    plain = {name: one.detach().cpu().clone(memory_format=torch.contiguous_format) for name, one in tensors.items()}
    write_bytes(path, save(plain, metadata={_HEADER: text, "sha256": _digest(text, plain)}))


def _digest(header: str, tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_tensors(path: str | Path, kind: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors and the header of a file that `save_tensors` wrote.

    Raises:
        DamagedFile: when the file is cut short, changed, or foreign.
        SpLensError: when it is missing, or of another kind.
    """
    if not Path(path).is_file():
        raise SpLensError(f"there is no file {path}: expected a saved {kind}.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        header = json.loads(metadata[_HEADER])
        if metadata["sha256"] != _digest(metadata[_HEADER], tensors):
            raise ValueError("its checksum does not agree")
    except (SafetensorError, KeyError, ValueError) as error:
        raise DamagedFile(
            f"{path} is not a {kind} that sp_lens saved, or it was cut short ({error}): "
            "make it again, or name another file."
        ) from error
    if not isinstance(header, dict) or header.get("kind") != kind:
        raise SpLensError(f"{path} holds a {header.get('kind')}, and a {kind} was expected.")
    return tensors, header
