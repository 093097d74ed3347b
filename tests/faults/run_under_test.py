"""The run into which faults are injected: four steps on the bundled model, in a forked child process."""

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
from sp_lens.data.corpora import Corpora
from sp_lens.pruning.checkpoint import step_files

STEPS = 4
# Exit code of a child that ended with an SpLensError or PruneInterrupted. Its message is in a file next to the run.
EXPECTED_ERROR = 3


@dataclass(frozen=True, eq=False)
class RunUnderTest:
    """A model, its corpora, and a folder for the runs.

    Attributes:
        folder: Folder that contains the folders of the runs.
        model: The bundled model.
        corpora: The four corpora of `prune`.
    """

    folder: Path
    model: Any
    corpora: Corpora

    @classmethod
    def create(cls, folder: Path) -> "RunUnderTest":
        """Load the model and the corpora. Torch uses one thread, because a forked process has no others."""
        torch.set_num_threads(1)
        model = sp.load_model("demo")
        return cls(folder, model, sp.load_corpora("code", "prose", model, tokens=400, offline=True))

    def prune(self, out: Path) -> sp.PruneRun:
        """Start or resume the run in a folder."""
        return sp.prune(self.model, **self.corpora, steps=STEPS, progress=False, out=out)

    @cached_property
    def reference(self) -> sp.PruneRun:
        """The result of an undisturbed run, in the folder "reference"."""
        return self.prune(self.folder / "reference")

    @cached_property
    def seconds(self) -> float:
        """Duration of an undisturbed run."""
        started = time.monotonic()
        wait(self.start(self.folder / "timed"))
        return time.monotonic() - started

    def start(self, out: Path, before: Callable[[], None] = lambda: None) -> int:
        """Start the run in a child process, which calls `before` first, and return the id of the process."""

        def work() -> None:
            before()
            self.prune(out)

        return fork(work, message_file=message_file(out))

    def resumes_to_reference(self, out: Path) -> bool:
        """Make the same call again. Return whether its result is the reference, bit for bit, in memory and on disk."""
        self.prune(out)
        run, reference = sp.PruneRun.load(out), self.reference
        mask = sp.NeuronMask.load(out / "mask.safetensors")
        same_history = (out / "history.csv").read_bytes() == (self.folder / "reference" / "history.csv").read_bytes()
        temporary = [file for file in out.iterdir() if file.suffix == ".tmp"]
        same_run = run.mask == reference.mask == mask and run.records == reference.records
        return same_run and same_history and not temporary

    def copy_reference(self, name: str) -> Path:
        """Copy the folder of the undisturbed run."""
        _ = self.reference
        shutil.copytree(self.folder / "reference", self.folder / name)
        return self.folder / name


def fork(work: Callable[[], None], *, message_file: Path) -> int:
    """Call `work` in a child process, which writes the message of any error to a file, and return its id."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # until the child can handle it
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
        expected = isinstance(error, sp.SpLensError | sp.PruneInterrupted)
        code = EXPECTED_ERROR if expected else 1
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        message_file.write_text(str(error) if expected else f"{type(error).__name__}: {error}")
    finally:
        os._exit(code)  # skips pytest's report and other exit handlers of the parent process
    raise AssertionError


def wait(child: int) -> int:
    """Return the exit code of a child process, or minus the number of the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def signal_after(child: int, seconds: float, number: signal.Signals = signal.SIGKILL) -> int:
    """Send a signal to a child process after some time, and wait for its end."""
    time.sleep(seconds)
    os.kill(child, number)
    return wait(child)


def stop_after(child: int, seconds: float) -> bool:
    """Stop a child process after some time until it receives SIGCONT. Return whether it was still running."""
    time.sleep(seconds)
    os.kill(child, signal.SIGSTOP)
    return os.waitpid(child, os.WNOHANG) == (0, 0)


def message_file(out: Path) -> Path:
    """Return the file with the error message of the child process that ran in `out`."""
    return out.with_name(f"{out.name}.message")


def message_of(out: Path) -> str:
    """Return the error message of the child process that ran in `out`, empty if it succeeded."""
    return message_file(out).read_text() if message_file(out).exists() else ""


def finished_steps(out: Path) -> dict[int, Any]:
    """Return the records and the mask of each checkpoint in a folder, by step."""
    runs = {step: sp.PruneRun.load(file) for step, file in step_files(out).items()}
    return {step: (run.records, run.mask.fingerprint()) for step, run in runs.items()}


def watch_files(folder: Path, on_operation: Callable[[int], None]) -> None:
    """Call `on_operation` with a running number before each file in a folder is opened, renamed, made or removed."""
    numbers = itertools.count(1)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("open", "os.rename", "os.remove", "os.mkdir") and str(arguments[0]).startswith(str(folder)):
            on_operation(next(numbers))

    sys.addaudithook(hook)
