"""Use a model from one thread at a time: hooks and changed weights of one call would change the results of another."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sp_lens.errors import SpLensError

# An entry of the model's attributes, with the thread that uses the model. It is there only while the model is in use.
_USE = "_sp_lens_use"
_LOCK = threading.Lock()


class _Use:
    """The thread that uses a model, and how many contexts it has entered."""

    def __init__(self) -> None:
        self.thread = threading.current_thread()
        self.depth = 0

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return _Use, ()  # a copy of the model is not in use by the thread that uses the original


@contextmanager
def exclusive(model: Any) -> Iterator[None]:
    """Context manager that reserves a model for the current thread, which may enter it again.

    Raises:
        SpLensError: If another thread uses the model.
    """
    with _LOCK:
        use = vars(model).setdefault(_USE, _Use())
        if not use.depth:
            use.thread = threading.current_thread()
        if use.thread is not threading.current_thread():
            raise SpLensError(
                f"the model is in use by the thread {use.thread.name!r}: hooks of one call would change the results of "
                "the other. Use a model from one thread at a time, or load it once for each thread."
            )
        use.depth += 1
    try:
        yield
    finally:
        with _LOCK:
            use.depth -= 1
            if not use.depth:
                vars(model).pop(_USE, None)
