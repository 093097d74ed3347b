"""Checkpoints of a pruning run: the run is saved after every step, and the same call resumes it from the last one.

The folder of a run, the argument `out` of `prune`, contains

- `step-0000.safetensors`, `step-0001.safetensors`, ...: the `PruneRun` as it was after each step;
- `history.csv` and `mask.safetensors`: the history and the mask after the last step, derived from its checkpoint;
- `.lock`: held while a process writes to the folder.

`prune` calls `locked` to become the only writer, `resume` to read the last checkpoint, and `save_step` after each step.
"""

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sp_lens.errors import DamagedFile, SpLensError
from sp_lens.pruning.run import PruneRun
from sp_lens.storage.serialization import remove_leftovers, write_bytes

logger = logging.getLogger(__name__)


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Context manager that makes this the only process that writes to the folder.

    The operating system releases the lock when the process ends, however it ends. Temporary files of a killed process
    are removed.

    Raises:
        SpLensError: If another process, or another call in this process, is writing to the folder, or if the folder
            is not writable.
    """
    folder = Path(folder)
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise SpLensError(
            f"another run is writing to the folder {folder}. Wait until it has ended, or pass another folder as out=..."
        ) from error
    except OSError as error:
        raise SpLensError(f"cannot write to the folder {folder} ({error}). Pass another folder as out=...") from error
    try:
        remove_leftovers(folder)
        yield
    finally:
        lock.release()


def save_step(run: PruneRun, folder: str | Path) -> None:
    """Write the checkpoint of the last step of a run, then its history as CSV and its mask.

    Raises:
        SpLensError: If the files cannot be written. The checkpoints of earlier steps are not affected.
    """
    try:
        run.save(step_file(folder, run.steps))
        write_bytes(Path(folder) / "history.csv", run.history.to_csv(index=False).encode())
        run.mask.save(Path(folder) / "mask.safetensors")
    except OSError as error:
        raise SpLensError(
            f"cannot write step {run.steps} to {folder} ({error}). The steps before it are saved: free some space, and "
            "the same call resumes after them."
        ) from error


def resume(
    folder: str | Path, settings: Mapping[str, Any], is_last: Callable[[Mapping[str, Any]], bool]
) -> PruneRun | None:
    """Read the run in a folder, up to the step at which the current call ends. Return None if there is no run.

    Args:
        folder: Folder of the run.
        settings: Settings of the current call.
        is_last: Whether a run ends with the step of this record.

    Raises:
        SpLensError: If the run in the folder has other settings.
    """
    run = last_readable_step(folder)
    if run is None:
        return None
    saved, current = identity(run.settings), identity(settings)
    if different := [key for key in current if saved.get(key) != current[key]]:
        key = different[0]
        raise SpLensError(
            f"{folder} contains a run with other settings: {key} is {saved.get(key)!r} there and {current[key]!r} in "
            f"this call (all that differ: {', '.join(different)}). Pass another folder, or repeat the original call."
        )
    run = run.until(next((step for step, record in enumerate(run.records) if is_last(record)), run.steps))
    logger.info("resuming after step %d in %s", run.steps, folder)
    return run


def identity(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that must be equal to resume a run.

    Of the corpora this is the fingerprint of their content only, not the versions of the libraries that read them.
    """
    corpora = settings.get("corpora") or {}
    return {**settings, "corpora": {name: about.get("fingerprint") for name, about in corpora.items()}}


def step_file(folder: str | Path, step: int) -> Path:
    """Return the path of the checkpoint after `step` steps."""
    return Path(folder) / f"step-{step:04d}.safetensors"


def step_files(folder: str | Path) -> dict[int, Path]:
    """Return the checkpoints in the folder of a run, by step."""
    matches = ((re.fullmatch(r"step-(\d+)\.safetensors", file.name), file) for file in Path(folder).glob("step-*"))
    return {int(match[1]): file for match, file in matches if match}


def last_readable_step(folder: str | Path) -> PruneRun | None:
    """Read the last undamaged checkpoint in the folder of a run, with a warning for each damaged one after it."""
    for step, file in sorted(step_files(folder).items(), reverse=True):
        try:
            return PruneRun.load(file)
        except DamagedFile as error:
            logger.warning("step %d is damaged and is not used: %s", step, error)
    return None
