"""What the C library does with the memory that tensors give back."""

import ctypes
import functools
import logging
import os
import platform

logger = logging.getLogger(__name__)

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT = 2**30  # bytes


@functools.cache
def keep_freed_memory() -> None:
    """Let the process keep up to 1 GiB that tensors gave back, for the next ones, on a CPU under Linux.

    glibc gives what is large back to the system at once, and the next layer's activations are brought in page by page:
    a quarter of the time of a forward pass of SmolLM2 with hooks. Whoever has set malloc's variables is left alone.
    """
    said = any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if said or platform.libc_ver()[0] != "glibc":
        return
    malloc_option = ctypes.CDLL(None).mallopt
    if not (malloc_option(_MMAP_THRESHOLD, _KEPT) and malloc_option(_TRIM_THRESHOLD, _KEPT)):
        logger.debug("this glibc does not keep freed memory")
