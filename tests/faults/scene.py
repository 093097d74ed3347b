"""The run that everything befalls: four steps on the bundled model, in a child that is a fork of this process."""

import itertools
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

import sp_lens as sp
from sp_lens.pruning.run import step_files

STEPS = 4
# How a child says that it ended in an error of ours, which is written to a file beside the folder of the run.
REFUSED = 3


@dataclass(frozen=True, eq=False)
class Scene:
    """A model, its corpora, and a folder for runs.

    Attributes:
        folder: where runs are put.
        model: the bundled one.
        corpora: the four that `prune` takes.
    """

    folder: Path
    model: Any
    corpora: Any

    @classmethod
    def made(cls, folder: Path) -> "Scene":
        """On one thread, as a fork has no others."""
        torch.set_num_threads(1)
        model = sp.load_model("demo")
        return cls(folder, model, sp.load_corpora("code", "prose", model, tokens=1000, offline=True))

    def prune(self, out: Path, **options: Any) -> sp.PruneRun:
        """The run."""
        return sp.prune(self.model, **self.corpora, steps=STEPS, progress=False, out=out, **options)

    @cached_property
    def undisturbed(self) -> sp.PruneRun:
        """What came of it where nothing happened."""
        return self.prune(self.folder / "undisturbed")

    @cached_property
    def seconds(self) -> float:
        """How long it takes."""
        started = time.monotonic()
        wait(self.started(self.folder / "timed"))
        return time.monotonic() - started

    def started(self, out: Path, before: Callable[[], None] = lambda: None, **options: Any) -> int:
        """The run in a child, whose number is returned; `before` is called in the child first."""

        def run() -> None:
            before()
            self.prune(out, **options)

        return forked(run, words=said_file(out))

    def gone_on(self, out: Path) -> bool:
        """Make the call again; whether it ended as if nothing had happened: in memory and on disk, to the last bit."""
        self.prune(out)
        found, whole = sp.PruneRun.load(out), self.undisturbed
        mask = sp.NeuronMask.load(out / "mask.safetensors")
        history = (out / "history.csv").read_bytes() == (self.folder / "undisturbed" / "history.csv").read_bytes()
        left = [file for file in out.iterdir() if file.suffix == ".tmp"]
        return found.mask == whole.mask == mask and found.records == whole.records and history and not left

    def copy(self, name: str) -> Path:
        """The undisturbed run, its folder copied."""
        _ = self.undisturbed
        shutil.copytree(self.folder / "undisturbed", self.folder / name)
        return self.folder / name


def forked(work: Callable[[], None], *, words: Path) -> int:
    """Do something in a child; the words of an error of ours, and what went wrong otherwise, go to a file."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # until the child is ready for one
    child = os.fork()
    if child:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        return child
    code = 1
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        work()
        code = 0
    except BaseException as error:
        ours = isinstance(error, sp.SpLensError | sp.PruneInterrupted)
        code = REFUSED if ours else 1
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        words.write_text(str(error) if ours else f"{type(error).__name__}: {error}")
    finally:
        os._exit(code)  # nothing of the parent's is to be done again: pytest's report, exit handlers
    raise AssertionError


def wait(child: int) -> int:
    """The exit code of a child; of one that was killed, the signal below 0."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_after(child: int, seconds: float, what: signal.Signals = signal.SIGKILL) -> int:
    """Send a signal to a child after a while, and wait for its end."""
    time.sleep(seconds)
    os.kill(child, what)
    return wait(child)


def halted(child: int, seconds: float) -> bool:
    """Stop a child after a while, until it is told to go on; whether it was still at work."""
    time.sleep(seconds)
    os.kill(child, signal.SIGSTOP)
    return os.waitpid(child, os.WNOHANG) == (0, 0)


def said_file(out: Path) -> Path:
    """Where the child that runs in `out` says what went wrong."""
    return out.with_name(f"{out.name}.said")


def said(out: Path) -> str:
    """What the child in `out` said; nothing where it ended well."""
    return said_file(out).read_text() if said_file(out).exists() else ""


def finished_steps(out: Path) -> dict[int, Any]:
    """What is on disk of each step that was finished: its records, and the mask."""
    runs = {step: sp.PruneRun.load(file) for step, file in step_files(out).items()}
    return {step: (run.records, run.mask.fingerprint()) for step, run in runs.items()}


def watch_files(folder: Path, seen: Callable[[int], None]) -> None:
    """Be told, with its number, of each file that this process is about to open, rename, make or remove in a folder."""
    numbers = itertools.count(1)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("open", "os.rename", "os.remove", "os.mkdir") and str(arguments[0]).startswith(str(folder)):
            seen(next(numbers))

    sys.addaudithook(hook)
