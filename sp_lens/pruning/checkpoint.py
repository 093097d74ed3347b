"""The folder of a run: a file a step, which one process at a time writes and the same call goes on from."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sp_lens.errors import SpLensError
from sp_lens.pruning.run import PruneRun, last_whole_step, step_file
from sp_lens.storage.serialization import remove_leftovers, write_bytes

logger = logging.getLogger(__name__)


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Be the only process that works in the folder, for the length of a `with`; it ends with the process at the latest.

    What a killed process had only half written is removed.

    Raises:
        SpLensError: when another process, or another call of this one, is at work there, and when the folder can't be
            written to.
    """
    folder = Path(folder)
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise SpLensError(
            f"another run is at work in the folder {folder}: wait until it has ended, or name another folder, out=..."
        ) from error
    except OSError as error:
        raise SpLensError(f"cannot write to the folder {folder} ({error}): name another, out=...") from error
    try:
        remove_leftovers(folder)
        yield
    finally:
        lock.release()


def keep(run: PruneRun, folder: str | Path) -> None:
    """Put a finished step on disk: the run so far, then what is made of it, its history as CSV and its mask.

    Raises:
        SpLensError: when there is no room for it; the steps before are on disk.
    """
    try:
        run.save(step_file(folder, run.steps))
        write_bytes(Path(folder) / "history.csv", run.history.to_csv(index=False).encode())
        run.mask.save(Path(folder) / "mask.safetensors")
    except OSError as error:
        raise SpLensError(
            f"step {run.steps} can't be written to {folder} ({error}). The steps before it are there: make room, and "
            "the same call goes on after them."
        ) from error


def resumed(
    folder: str | Path, settings: Mapping[str, Any], is_last: Callable[[Mapping[str, Any]], bool]
) -> PruneRun | None:
    """What the run in the folder has done, up to the first step that is the last one asked for; None where it is new.

    Raises:
        SpLensError: when it is a run with other settings.
    """
    run = last_whole_step(folder)
    if run is None:
        return None
    there, asked = identity(run.settings), identity(settings)
    if different := [key for key in asked if there.get(key) != asked[key]]:
        key = different[0]
        raise SpLensError(
            f"{folder} holds a run of another configuration: its {key} is {there.get(key)!r}, and {asked[key]!r} was "
            f"asked for (what differs: {', '.join(different)}). Name another folder, or repeat the call that made it."
        )
    run = run.until(next((step for step, record in enumerate(run.records) if is_last(record)), run.steps))
    logger.info("going on after step %d in %s", run.steps, folder)
    return run


def identity(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, of the corpora only what was in them: not with which versions it was read."""
    corpora = settings.get("corpora") or {}
    return {**settings, "corpora": {name: about.get("fingerprint") for name, about in corpora.items()}}
