"""Memory of the process: batches that do not fit, and memory that tensors have freed."""

import ctypes
import functools
import logging
import math
import os
import platform
from collections.abc import Callable, Iterator
from typing import TypeVar

from accelerate.utils import memory

from sp_lens.errors import SpLensError

logger = logging.getLogger(__name__)

Done = TypeVar("Done")


class Halving:
    """Work on batches that goes on with smaller ones from the first that runs out of memory.

    Attributes:
        most: tokens, padding included, that are worked on at once.
    """

    def __init__(self) -> None:
        self.most = math.inf

    def parts(self, work: Callable[[slice], Done], rows: int, positions: int) -> Iterator[Done]:
        """What `work` makes of a batch, given all its rows at once, or of its parts, in their order.

        Args:
            work: must leave nothing behind where it fails, as it is called again for a part of the rows.
            rows: Number of rows of the batch.
            positions: Number of positions of each row, padding included.

        Raises:
            SpLensError: when memory does not hold a single row.
        """
        return self._halved(work, slice(0, rows), positions)

    def _halved(self, work: Callable[[slice], Done], rows: slice, positions: int) -> Iterator[Done]:
        count = rows.stop - rows.start
        if count == 1 or count * positions <= self.most:
            try:
                done = work(rows)
            except RuntimeError as error:
                if not memory.should_reduce_batch_size(error):
                    raise
                words = str(error).split("\n")[0]
                if count == 1:
                    raise SpLensError(
                        f"memory does not hold a row of {positions} tokens ({words}): make shorter rows, "
                        "load_corpus(..., row_tokens=...), load the model in bfloat16, or over several devices."
                    ) from error
            else:
                yield done
                return
            # Outside of `except`: until there, the error keeps the tensors of the pass that failed.
            memory.clear_device_cache(garbage_collection=True)
            self.most = count * positions // 2
            logger.warning("out of memory with %d tokens at once, going on with half (%s)", count * positions, words)
        middle = rows.start + count // 2
        for half in (slice(rows.start, middle), slice(middle, rows.stop)):
            yield from self._halved(work, half, positions)


# Parameters of `mallopt`, from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_MAX_KEPT_BYTES = 2**30


@functools.cache
def keep_freed_memory() -> None:
    """Let this process keep up to 1 GiB of freed CPU memory and reuse it for the next tensors (Linux only).

    By default glibc returns large blocks to the operating system at once, and the activations of the next layer have to
    be mapped again, page by page. That takes a quarter of the time of a forward pass of SmolLM2 with hooks on a CPU.

    This changes the policy of the whole process until it ends. The library therefore never calls it, but the command
    line does. Call it once, before the first forward pass. It has no effect if environment variables of malloc
    (`MALLOC_*`, or `GLIBC_TUNABLES` with malloc settings) are set, and on systems without glibc.

    Example:
        >>> from sp_lens.models.memory import keep_freed_memory
        >>> keep_freed_memory()
    """
    configured = any(name.startswith("MALLOC_") for name in os.environ)
    if configured or "malloc" in os.environ.get("GLIBC_TUNABLES", "") or platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    if not (mallopt(_MMAP_THRESHOLD, _MAX_KEPT_BYTES) and mallopt(_TRIM_THRESHOLD, _MAX_KEPT_BYTES)):
        logger.debug("this version of glibc cannot be told to keep freed memory")
