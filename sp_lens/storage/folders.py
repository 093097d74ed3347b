"""Create a folder that is complete as soon as it appears under its name, and leave nothing behind after a failure."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sp_lens.errors import SpLensError


@contextmanager
def new_folder(folder: str | Path, *, overwrite: bool) -> Iterator[Path]:
    """Context manager that yields an empty folder next to `folder`, and renames it to `folder` on exit.

    After an exception, including Ctrl-C, the files that were written are removed, and an existing folder is unchanged.

    Args:
        folder: Folder to create. It may exist if it is empty. Missing parents are created.
        overwrite: Whether to replace an existing folder that is not empty.

    Raises:
        SpLensError: On entry, if there is a file, a folder that is not empty and not to be replaced, or the current
            folder or one that contains it; or if the folder cannot be created.
    """
    target = Path(folder).resolve()
    if Path.cwd().is_relative_to(target):
        raise SpLensError(
            f"{str(folder)!r} is the current folder or contains it, and cannot be replaced: pass the path of a new "
            "folder, such as 'pruned-model'."
        )
    if target.exists() and not target.is_dir():
        raise SpLensError(f"{folder} is a file: pass the path of a new folder.")
    if target.exists() and any(target.iterdir()) and not overwrite:
        raise SpLensError(
            f"{folder} already exists and is not empty: choose another folder, or set overwrite=True to replace it."
        )
    unfinished = target.with_name(f".{target.name}.unfinished")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)  # of a killed process
        unfinished.mkdir(parents=True)
    except OSError as error:
        raise SpLensError(f"cannot create the folder {folder} ({error}): pass a path where it can be.") from error
    try:
        yield unfinished
        if target.exists():
            shutil.rmtree(target)
        unfinished.rename(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
