"""Results on disk: safetensors with a JSON header, written whole or not at all. No pickle."""

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
from sp_lens.storage.schema import fitted

_HEADER = "sp_lens"
# What results and models are made of. Others, of 4 bits and of 8, can be in a file and hardly be computed with.
_DTYPES = {torch.bool, torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64}

Result = TypeVar("Result")


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


def require_files(folder: str | Path) -> None:
    """Refuse a folder in which something is neither a file nor a folder: reading a pipe or a device may never end.

    Raises:
        SpLensError: naming it.
    """
    for place, _, names in os.walk(folder):
        for name in names:
            if not (path := Path(place, name)).is_file():
                raise SpLensError(
                    f"{path} is no file (a pipe, a device, or a link to nothing): take it out of {folder}."
                )


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: str | Path) -> Any:
    """Read JSON.

    Raises:
        SpLensError: when the file is missing, is no file (a pipe is never read: it may never end), or is not JSON.
    """
    try:
        if not Path(path).is_file():
            raise OSError("there is no such file")
        return json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # RecursionError: lists in lists, by the thousand
        raise SpLensError(f"cannot read {path} as JSON ({error}): was it written by sp_lens?") from error


def load_values(path: str | Path, kind: type[Result], **wanted: Any) -> Result:
    """A result that is plain values, which `write_json({"kind": ..., **asdict(result)})` wrote.

    Args:
        path: the file.
        kind: the class of the result, a dataclass.
        wanted: of a field, what it must hold beyond what the class says, as `fitted` takes it.

    Raises:
        SpLensError: when the file is missing, is not JSON, or is of another kind.
        DamagedFile: when a part of it is missing, or is not what it should be.
    """
    values = read_json(path)
    if not isinstance(values, dict) or values.pop("kind", None) != kind.__name__:
        raise SpLensError(f"{path} is not {_named(kind.__name__)} that sp_lens saved: name another file.")
    with refused(path, kind.__name__):
        return fitted(fitted(values, wanted, "it"), kind, "it")


@contextmanager
def refused(path: str | Path, kind: str) -> Iterator[None]:
    """Whatever is refused of what a file holds, a missing tensor too, is told as a fault of this file."""
    try:
        yield
    except (SpLensError, KeyError) as error:
        said = f"it has no {error}" if isinstance(error, KeyError) else str(error).rstrip(".")
        raise DamagedFile(
            f"{path} is not {_named(kind)} that sp_lens saved, or was changed ({said}): make it again, or name another "
            "file."
        ) from error


@contextmanager
def opened(
    path: str | Path, kind: str, wanted: Mapping[str, Any]
) -> Iterator[tuple[dict[str, torch.Tensor], dict[str, Any]]]:
    """The tensors and the header of a file, for the length of a `with` in which a `load` makes its result of them.

    Args:
        path: the file.
        kind: as `save_tensors` was told.
        wanted: what the header must hold, as `fitted` takes it.

    Raises:
        DamagedFile: as `load_tensors`, and for whatever is refused within the `with`.
        SpLensError: as `load_tensors`.
    """
    tensors, header = load_tensors(path, kind)
    with refused(path, kind):
        yield tensors, fitted(header, wanted, "its header")


def _named(kind: str) -> str:
    return f"{'an' if kind[0] in 'AEIOU' else 'a'} {kind}"


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
        if unfit := {str(tensor.dtype) for tensor in tensors.values()} - {str(dtype) for dtype in _DTYPES}:
            raise ValueError(f"it has tensors of {min(unfit)}")
        header = json.loads(metadata[_HEADER])
        if metadata["sha256"] != _digest(metadata[_HEADER], tensors):
            raise ValueError("its checksum does not agree")
        if not isinstance(header, dict):
            raise ValueError("its header is no mapping")
    except OSError as error:
        raise SpLensError(f"cannot read {path} ({error}): expected {_named(kind)} that may be read.") from error
    except (SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise DamagedFile(
            f"{path} is not {_named(kind)} that sp_lens saved, or it was cut short ({error}): "
            "make it again, or name another file."
        ) from error
    if header.get("kind") != kind:
        raise SpLensError(f"{path} holds a {header.get('kind')}, and {_named(kind)} was expected.")
    return tensors, header
