"""Run the same call in several processes (ranks), each with a copy of the model, and return the same result on all.

Every rank makes the same calls with the same corpora. Each rank forms the same batches as a single process, so that
padding is the same, and runs the model on its share of them. The partial results are then sent to every rank and
merged in rank order, so all ranks hold the same bits. Without `torch.distributed`, or with one process, the functions
below do nothing.
"""

import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch

from sp_lens.errors import SpLensError


@runtime_checkable
class _HasInputs(Protocol):
    """A batch of rows or of images."""

    @property
    def inputs(self) -> torch.Tensor: ...


AnyBatch = TypeVar("AnyBatch", bound=_HasInputs)
Value = TypeVar("Value")

# How long a rank waits for the slowest one. The default of torch, ten minutes, is too short after hours of collecting.
_TIMEOUT = timedelta(hours=2)
_DIFFERENT_CALLS = (
    "the ranks read different corpora or were called with different options. Pass the same whole corpus and the same "
    "options on every rank: sp_lens shares out the batches itself."
)


@contextmanager
def joined() -> Iterator[None]:
    """Context manager that joins the processes started by `accelerate launch` or torchrun, if there are several.

    Raises:
        SpLensError: If WORLD_SIZE is greater than 1 but the processes cannot be joined.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes == 1 or _is_initialized():
        yield
        return
    from accelerate import PartialState

    gpu = torch.accelerator.is_available() and not torch.backends.mps.is_available()
    if PartialState(cpu=not gpu, timeout=_TIMEOUT).num_processes != processes:
        raise SpLensError(
            f"the environment variable WORLD_SIZE is {processes}, but no launcher started that many processes. Run "
            "accelerate launch -m sp_lens.cli ..., or unset WORLD_SIZE."
        )
    yield
    torch.distributed.destroy_process_group()  # not after an error, when it could wait for the other ranks


def world_size() -> int:
    """Return the number of processes; 1 if none were joined."""
    return torch.distributed.get_world_size() if _is_initialized() else 1


def rank() -> int:
    """Return the index of this process, from 0."""
    return torch.distributed.get_rank() if _is_initialized() else 0


def is_main() -> bool:
    """Return whether this is rank 0, the only one that writes files, prints, and shows progress bars."""
    return rank() == 0


def own_device() -> str | None:
    """Return the device of this rank; None in a single process, which may use any device."""
    return None if world_size() == 1 else _device()


def require_one(what: str) -> None:
    """Raise SpLensError if there are several processes.

    Args:
        what: Name of the function or command, as the subject of the error message.
    """
    if (processes := world_size()) > 1:
        raise SpLensError(
            f"{what} runs in one process, and this is one of {processes}. The commands that run in several processes "
            "are collect, evaluate and prune."
        )


class Ranks:
    """Shares batches among the ranks, and checks that all ranks were given the same corpus and options."""

    def __init__(self) -> None:
        self.checksum = 0

    def require_same(self, *values: object) -> None:
        """Add the `repr` of values to the checksum that `fail_together` compares among the ranks on exit."""
        self.checksum = zlib.crc32(repr(values).encode(), self.checksum)

    def share(self, batches: Iterable[AnyBatch]) -> Iterator[AnyBatch]:
        """Yield the batches of this rank: every `world_size`-th, beginning with the one at index `rank`."""
        ranks, this_rank = world_size(), rank()
        for index, batch in enumerate(batches):
            if ranks > 1:
                self.checksum = zlib.crc32(batch.inputs.cpu().numpy().tobytes(), self.checksum)
            if index % ranks == this_rank:
                yield batch


@contextmanager
def fail_together(difference: str = _DIFFERENT_CALLS) -> Iterator[Ranks]:
    """Context manager that raises an error on every rank if one rank fails, so that no rank waits for a failed one.

    The code inside must not communicate. On exit, all ranks exchange their errors and checksums.

    Args:
        difference: Error message if the ranks differ in what they passed to `Ranks.require_same` or `Ranks.share`.

    Raises:
        SpLensError: If another rank failed, with its number and its error, or if the ranks differ.
    """
    ranks = Ranks()
    try:
        yield ranks
    except Exception as error:
        kind = "" if isinstance(error, SpLensError) else f"{type(error).__name__}: "
        gathered((f"{kind}{error}", ranks.checksum))
        raise
    errors, checksums = zip(*gathered(("", ranks.checksum)), strict=True)
    for number, error in enumerate(errors):
        if error:
            raise SpLensError(f"rank {number} failed: {error}")
    if len(set(checksums)) > 1:
        raise SpLensError(difference)


def gathered(value: Value) -> list[Value]:
    """Return the values of all ranks in rank order; the same on every rank.

    The values are pickled by `torch.distributed.all_gather_object`, which executes code of the sender. They are only
    exchanged between the ranks of one job: error messages, checksums, and partial sums and statistics.

    Args:
        value: The value of this rank. Tensors must be on the CPU.
    """
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    with _on_own_device():
        torch.distributed.all_gather_object(values, value)
    return values


def _on_own_device() -> AbstractContextManager[Any]:
    """Make the GPU of this rank the current one if objects travel through it: with NCCL, but not with gloo."""
    if "cpu:" in torch.distributed.get_backend_config():
        return nullcontext()
    device = torch.device(_device())
    return torch.get_device_module(device).device(device)


def _device() -> str:
    from accelerate import PartialState

    return str(PartialState().device)


def _is_initialized() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
