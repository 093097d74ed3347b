"""Several processes with a copy of the model each, which read a corpus in shares and come to one result.

Every process (rank) makes the same calls with the same corpora. Each forms the batches that one process would form, so
that each batch comes out the same, and runs the model on its share of them. What came of the shares is then brought to
every rank and put together in the order of the ranks: all of them hold the same bits. Without
`torch.distributed`, or with one process, nothing here does anything.
"""

import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol, TypeVar, runtime_checkable

import torch

from sp_lens.errors import SpLensError


@runtime_checkable
class _HasInputs(Protocol):
    """What is dealt to the ranks: a batch of rows or of images."""

    @property
    def inputs(self) -> torch.Tensor: ...


AnyBatch = TypeVar("AnyBatch", bound=_HasInputs)

# How long a rank waits for the slowest: torch's ten minutes are little at the end of hours of collecting.
_PATIENCE = timedelta(hours=2)
_WORDS = 1000  # bytes of an error that the other ranks are told
_OTHERWISE = (
    "the ranks read different corpora, or were called with different options: give every rank the same whole corpus "
    "and the same options, and sp_lens deals out the batches."
)


@contextmanager
def joined() -> Iterator[None]:
    """Join the processes that `accelerate launch` or torchrun started; where it started one, do nothing.

    Raises:
        SpLensError: when the environment says that there are several, and they can't be joined.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes == 1 or _initialised():
        yield
        return
    from accelerate import PartialState

    gpu = torch.accelerator.is_available() and not torch.backends.mps.is_available()
    if PartialState(cpu=not gpu, timeout=_PATIENCE).num_processes != processes:
        raise SpLensError(
            f"WORLD_SIZE={processes} says that there are as many processes, and no launcher started them: run "
            "accelerate launch -m sp_lens.cli ..., or unset WORLD_SIZE."
        )
    yield
    torch.distributed.destroy_process_group()  # not after an error, when it might wait for the others


def world_size() -> int:
    """How many processes there are; 1 where none were joined."""
    return torch.distributed.get_world_size() if _initialised() else 1


def rank() -> int:
    """Which of them this is, from 0 on."""
    return torch.distributed.get_rank() if _initialised() else 0


def is_main() -> bool:
    """Whether this is the one that writes, prints and shows bars."""
    return rank() == 0


def own_device() -> str | None:
    """The device of this rank; None for one process, which is free to choose."""
    return None if world_size() == 1 else _device()


def require_one(what: str) -> None:
    """Refuse to do with several processes what writes or trains as one."""
    if (processes := world_size()) > 1:
        raise SpLensError(
            f"{what} runs in one process, and this is one of {processes}: of the commands, collect, evaluate and prune "
            "run in several."
        )


class Together:
    """A stretch of work that all ranks do, each on its share, and what has to be the same on all of them."""

    def __init__(self) -> None:
        self.digest = 0

    def same(self, *values: object) -> None:
        """Have these values, by what they look like, held against those of the other ranks at the end."""
        self.digest = zlib.crc32(repr(values).encode(), self.digest)

    def dealt(self, batches: Iterable[AnyBatch]) -> Iterator[tuple[int, AnyBatch]]:
        """The batches of this rank, dealt out as cards are, each with its number in the corpus."""
        ranks, own = world_size(), rank()
        for number, batch in enumerate(batches):
            if ranks > 1:
                self.digest = zlib.crc32(batch.inputs.cpu().numpy().tobytes(), self.digest)
            if number % ranks == own:
                yield number, batch


@contextmanager
def together(otherwise: str = _OTHERWISE) -> Iterator[Together]:
    """Work without communication that ends well on every rank or on none, so that none waits for one that failed.

    Args:
        otherwise: what to say where the ranks did not have the `same`.

    Raises:
        SpLensError: where another rank failed, with its number and its error; where the ranks differ.
    """
    work = Together()
    try:
        yield work
    except Exception as error:
        _meet(work.digest, error)
        raise
    met = _meet(work.digest, None)
    for number, (words, _) in enumerate(met):
        if words:
            raise SpLensError(f"rank {number} failed: {words}")
    if len({digest for _, digest in met}) > 1:
        raise SpLensError(otherwise)


def _meet(digest: int, error: Exception | None) -> list[tuple[str, int]]:
    """Wait for all ranks: the error of each, empty where there was none, and its digest."""
    kind = "" if error is None or isinstance(error, SpLensError) else f"{type(error).__name__}: "
    words = "" if error is None else f"{kind}{error}"
    sent = bytearray(words.encode()[:_WORDS].ljust(_WORDS, b"\0"))
    parts = gathered({"words": torch.frombuffer(sent, dtype=torch.uint8), "digest": torch.tensor(digest)})
    return [
        (part["words"].numpy().tobytes().rstrip(b"\0").decode(errors="ignore"), int(part["digest"])) for part in parts
    ]


def gathered(tensors: Mapping[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """The tensors of every rank, by name, in the order of the ranks: on the CPU, where all compute alike.

    Args:
        tensors: of the same names, shapes and dtypes on all ranks.
    """
    own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    if world_size() == 1:
        return [own]
    sent = torch.cat([tensor.reshape(-1).view(torch.uint8) for tensor in own.values()]).to(_wire())
    received = [torch.empty_like(sent) for _ in range(world_size())]
    torch.distributed.all_gather(received, sent)
    return [_unpacked(part.cpu(), own) for part in received]


def _unpacked(packed: torch.Tensor, like: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    pieces = packed.split([tensor.nbytes for tensor in like.values()])
    # Cloned, as a view in another dtype has to begin at a multiple of its size.
    return {
        name: piece.clone().view(tensor.dtype).view(tensor.shape)
        for (name, tensor), piece in zip(like.items(), pieces, strict=True)
    }


def _wire() -> str:
    """Where tensors have to be to travel: gloo sends from memory, NCCL from the GPU."""
    return "cpu" if "cpu:" in torch.distributed.get_backend_config() else _device()


def _device() -> str:
    from accelerate import PartialState

    return str(PartialState().device)


def _initialised() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
