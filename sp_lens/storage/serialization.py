"""Save and load results: safetensors files with a JSON header, or plain JSON, written atomically. No pickle."""

import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from sp_lens.errors import DamagedFile, SpLensError
from sp_lens.storage.schema import mapping_with, validate

_HEADER = "sp_lens"
# The dtypes of results and models. A file can also contain 4-bit and 8-bit types, which support few operations.
_DTYPES = {torch.bool, torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64}

Result = TypeVar("Result")


def versions() -> dict[str, str]:
    """Return the versions of sp_lens and of the libraries that influence results. Every saved header contains them."""
    return {name: version(name) for name in ("sp_lens", "transformer_lens", "transformers", "torch")}


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file atomically, so that no reader sees an incomplete file.

    The data is written under a temporary name and flushed to disk, and the file is then renamed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: str | Path) -> None:
    """Remove the temporary files of killed processes. Call this only while no other process writes to the folder."""
    for file in Path(folder).glob(f".*.{32 * '[0-9a-f]'}.tmp"):
        file.unlink()


def require_files(folder: str | Path) -> None:
    """Raise SpLensError if the folder contains anything but files and folders.

    Reading from a pipe or a device may never end.
    """
    for parent, _, names in os.walk(folder):
        for name in names:
            if not (path := Path(parent, name)).is_file():
                raise SpLensError(
                    f"{path} is not a regular file (but a pipe, a device, or a broken link): remove it from {folder}."
                )


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        SpLensError: If the file does not exist, is not a regular file, or is not valid JSON.
    """
    try:
        if not Path(path).is_file():
            raise OSError("there is no such file")
        return json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # RecursionError: thousands of nested lists
        raise SpLensError(f"cannot read {path} as JSON ({error}): was it written by sp_lens?") from error


def load_values(path: str | Path, kind: type[Result], **types: Any) -> Result:
    """Load a dataclass of plain values that was saved by `write_json({"kind": ..., **asdict(result)})`.

    Args:
        path: Path of the file.
        kind: Dataclass to create.
        types: Types of fields for which the file must satisfy more than the annotation in the dataclass.

    Raises:
        SpLensError: If the file does not exist, is not valid JSON, or contains another kind of result.
        DamagedFile: If a field is missing or invalid.
    """
    values = read_json(path)
    if not isinstance(values, dict) or values.pop("kind", None) != kind.__name__:
        raise SpLensError(f"{path} is not {_with_article(kind.__name__)} saved by sp_lens: pass the path of one.")
    with damage_reported(path, kind.__name__):
        return validate(validate(values, mapping_with(**types), "content"), kind, "content")


@contextmanager
def damage_reported(path: str | Path, kind: str) -> Iterator[None]:
    """Context manager that turns errors about the content of a file, including missing tensors, into DamagedFile."""
    try:
        yield
    except (SpLensError, KeyError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error).rstrip(".")
        raise DamagedFile(
            f"{path} is not {_with_article(kind)} saved by sp_lens, or it was modified ({reason}): create the file "
            "again, or pass another one."
        ) from error


@contextmanager
def opened(
    path: str | Path, kind: str, types: Mapping[str, Any]
) -> Iterator[tuple[dict[str, torch.Tensor], dict[str, Any]]]:
    """Context manager that yields the tensors and the validated header of a file.

    Create the result inside the `with` block, so that errors about its content are reported as DamagedFile.

    Args:
        path: Path of the file.
        kind: Name of the class of the result, as it was passed to `save_tensors`.
        types: Types of the values in the header, see `mapping_with`.

    Raises:
        DamagedFile: If the file is truncated, was modified, or its content is invalid.
        SpLensError: If the file does not exist or contains another kind of result.
    """
    tensors, header = load_tensors(path, kind)
    with damage_reported(path, kind):
        yield tensors, validate(header, mapping_with(**types), "header")


def _with_article(kind: str) -> str:
    return f"{'an' if kind[0] in 'AEIOU' else 'a'} {kind}"


def save_tensors(path: str | Path, kind: str, tensors: Mapping[str, torch.Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and a JSON header to a safetensors file, atomically.

    Args:
        path: Path of the file. Its folder is created if necessary.
        kind: Name of the class of the result. `load_tensors` rejects files of another kind.
        tensors: Tensors by name, on any device.
        header: Plain values. The versions of the libraries are added to them.
    """
    text = json.dumps({"kind": kind, "versions": versions(), **header})
    # safetensors rejects tensors that share memory, as the edges of several histograms may do, so each is cloned. The
    # memory format is needed because torch considers one element contiguous whatever its strides are, and such a tensor
    # cannot always be viewed as bytes.
    plain = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    write_bytes(path, save(plain, metadata={_HEADER: text, "sha256": _digest(text, plain)}))


def _digest(header: str, tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_tensors(path: str | Path, kind: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the tensors and the header of a file that `save_tensors` wrote. The header is not validated.

    Raises:
        DamagedFile: If the file is truncated, was modified, or was not written by sp_lens.
        SpLensError: If the file does not exist or contains another kind of result.
    """
    if not Path(path).is_file():
        raise SpLensError(f"there is no file {path}: expected the path of a saved {kind}.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        if unsupported := {str(tensor.dtype) for tensor in tensors.values()} - {str(dtype) for dtype in _DTYPES}:
            raise ValueError(f"it has tensors of {min(unsupported)}")
        header = json.loads(metadata[_HEADER])
        if metadata["sha256"] != _digest(metadata[_HEADER], tensors):
            raise ValueError("its checksum does not match")
        if not isinstance(header, dict):
            raise ValueError("its header is not a JSON object")
    except OSError as error:
        raise SpLensError(f"cannot read {path} ({error}): expected {_with_article(kind)} that is readable.") from error
    except (SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise DamagedFile(
            f"{path} is not {_with_article(kind)} saved by sp_lens, or it is truncated ({error}): create the file "
            "again, or pass another one."
        ) from error
    if header.get("kind") != kind:
        raise SpLensError(f"{path} contains {header.get('kind')!r}, but {_with_article(kind)} was expected.")
    return tensors, header
