"""The faults: each is injected many times, and afterwards the same call must give the result of an undisturbed run."""

import logging
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import sp_lens as sp
from faults.run_under_test import (
    EXPECTED_ERROR,
    STEPS,
    RunUnderTest,
    finished_steps,
    fork,
    message_file,
    message_of,
    signal_after,
    stop_after,
    wait,
    watch_files,
)
from sp_lens.data import batching
from sp_lens.models.loading import weights_fingerprint
from sp_lens.pruning import checkpoint
from sp_lens.pruning.checkpoint import step_file


@dataclass
class Outcome:
    """Result of injecting one fault.

    Attributes:
        fault: Description of the fault.
        tries: Number of times that it was injected.
        successes: Number of tries after which the same call ended with the mask and history of an undisturbed run.
        lost_steps: Number of checkpoints that were complete before the same call and different or missing after it.
        message: The last error message or warning that the user saw.
        failures: Description of each try that failed.
    """

    fault: str
    tries: int = 0
    successes: int = 0
    lost_steps: int = 0
    message: str = ""
    failures: list[str] = field(default_factory=list)

    def add(self, success: bool, *, lost_steps: int = 0, message: str = "", description: str) -> None:
        """Count one try."""
        self.tries += 1
        self.successes += success
        self.lost_steps += lost_steps
        self.message = message or self.message
        if not success or lost_steps:
            self.failures.append(f"{description}; {lost_steps} steps lost")


def killed_at_random(run: RunUnderTest, generator: random.Random, tries: int) -> Outcome:
    """Send SIGKILL at a random time."""
    outcome = Outcome("killed (SIGKILL) at a random time")
    for number in range(tries):
        out = run.folder / f"killed-{number}"
        seconds = generator.uniform(0, run.seconds)
        signal_after(run.start(out), seconds)
        _resume(run, out, outcome, f"killed after {seconds:.3f} s")
    return outcome


def killed_while_writing(run: RunUnderTest, generator: random.Random, tries: int) -> Outcome:
    """Send SIGKILL right before the run opens, renames, makes or removes a file: before each operation or a sample."""
    outcome = Outcome("killed (SIGKILL) between two file operations")
    operations = _count_file_operations(run)
    for number in sorted(generator.sample(range(1, operations + 1), min(tries, operations))):
        out = run.folder / f"writing-{number}"
        wait(run.start(out, lambda n=number, out=out: watch_files(out, _at(n, _kill_this_process))))
        _resume(run, out, outcome, f"killed before file operation {number} of {operations}")
    return outcome


def disk_full(run: RunUnderTest, generator: random.Random, tries: int) -> Outcome:
    """Let the operating system refuse to write from a random file operation on."""
    outcome = Outcome("disk full from a random file operation on")
    operations = _count_file_operations(run)
    for number in range(tries):
        out = run.folder / f"full-{number}"
        first = generator.randint(1, operations - 1)
        code = wait(run.start(out, lambda n=first, out=out: watch_files(out, _at(n, _forbid_writing))))
        message = message_of(out)
        description = f"disk full from file operation {first} on: exit code {code}, {message}"
        _resume(run, out, outcome, description, expected=code == EXPECTED_ERROR, message=message)
    return outcome


def checkpoint_truncated(run: RunUnderTest, generator: random.Random, tries: int) -> Outcome:
    """Truncate the last checkpoint to a random length."""
    return _damaged(
        run, generator, tries, "last checkpoint truncated", lambda data: data[: generator.randrange(len(data))]
    )


def checkpoint_bit_flipped(run: RunUnderTest, generator: random.Random, tries: int) -> Outcome:
    """Flip a random bit of the last checkpoint."""

    def flip(data: bytes) -> bytes:
        index = generator.randrange(len(data))
        return data[:index] + bytes([data[index] ^ 1 << generator.randrange(8)]) + data[index + 1 :]

    return _damaged(run, generator, tries, "a bit of the last checkpoint flipped", flip)


def _damaged(
    run: RunUnderTest, generator: random.Random, tries: int, fault: str, damage: Callable[[bytes], bytes]
) -> Outcome:
    """Damage the last of a random number of checkpoints. The step before it must be used, with a warning."""
    outcome = Outcome(fault)
    for number in range(tries):
        out = run.copy_reference(f"damaged-{number}")
        last = generator.randint(0, STEPS)
        for step in range(last + 1, STEPS + 1):
            step_file(out, step).unlink()
        file = step_file(out, last)
        file.write_bytes(damage(file.read_bytes()))
        with warnings_of(checkpoint.logger) as warnings:
            loaded = sp.PruneRun.load(out).steps if last else 0
        expected = loaded == max(last - 1, 0) and (f"step {last} is damaged" in " ".join(warnings) or not last)
        outcome.add(
            run.resumes_to_reference(out) and expected,
            message=" ".join(warnings),
            description=f"step {last} damaged: step {loaded} loaded, {warnings}",
        )
        shutil.rmtree(out)
    return outcome


def two_processes(run: RunUnderTest, generator: random.Random, tries: int) -> Outcome:
    """Make the same call in a second process while the first is running. It must raise, and the first must succeed."""
    outcome = Outcome("two processes in one folder")
    number = 0
    while outcome.tries < tries:
        number += 1
        out = run.folder / f"two-{number}"
        first = run.start(out)
        while not (out / ".lock").exists():
            time.sleep(0.01)
        if not stop_after(first, generator.uniform(0, 0.5) * run.seconds):
            continue  # on a slow machine the first process may end before the second starts
        second_code = wait(run.start(out))
        message = message_of(out)
        os.kill(first, signal.SIGCONT)
        first_code = wait(first)
        expected = second_code == EXPECTED_ERROR and "another run is writing" in message and first_code == 0
        outcome.add(
            run.resumes_to_reference(out) and expected,
            message=message,
            description=f"second process: exit code {second_code}, {message}; first process: exit code {first_code}",
        )
    return outcome


def interrupted(run: RunUnderTest, generator: random.Random, tries: int) -> Outcome:
    """Press Ctrl-C at a random time. No hook may be left, the weights must be unchanged, and finished steps kept."""
    outcome = Outcome("Ctrl-C at a random time")
    hooks, weights = _count_hooks(run), weights_fingerprint(run.model)
    tokens = torch.arange(5, 25)[None]
    logits = run.model(tokens)
    for number in range(tries):
        out = run.folder / f"interrupted-{number}"

        def prune_and_check(out: Path = out) -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            try:
                run.prune(out)
            except KeyboardInterrupt:
                remaining = _count_hooks(run) - hooks
                same = weights_fingerprint(run.model) == weights and torch.equal(run.model(tokens), logits)
                assert not remaining, f"{remaining} hooks are left"
                assert same, "the model has changed"
                raise

        child = fork(prune_and_check, message_file=message_file(out))
        seconds = generator.uniform(0, run.seconds)
        code = signal_after(child, seconds, signal.SIGINT)
        message = message_of(out)
        # Before the first evaluation there is no run yet, so a plain KeyboardInterrupt is raised.
        expected = code in (0, EXPECTED_ERROR) or message.startswith("KeyboardInterrupt")
        description = f"interrupted after {seconds:.3f} s: exit code {code}, {message}"
        shown = message if code == EXPECTED_ERROR else ""
        _resume(run, out, outcome, description, expected=expected, message=shown)
    return outcome


def out_of_memory(run: RunUnderTest, generator: random.Random, tries: int) -> Outcome:
    """Limit the memory below that of a batch. The batch must be read in halves, with the same results."""
    outcome = Outcome("a batch too large for the memory")
    rows = [torch.randint(2, 500, (1, 256), generator=torch.Generator().manual_seed(0)).repeat(96, 1)]
    reference = _results(run, rows, batch_tokens=8 * 256)
    for _ in range(tries):
        out = run.folder / f"memory-{outcome.tries}"
        megabytes = generator.randint(60, 150)

        def compute_with_little_memory(megabytes: int = megabytes) -> None:
            with warnings_of(batching.logger) as warnings:
                used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * 2**20, resource.RLIM_INFINITY))
                results = _results(run, rows, batch_tokens=96 * 256)
                resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            assert warnings, "no batch was read in halves"
            torch.testing.assert_close(results, reference, rtol=1e-5, atol=1e-6)
            raise sp.SpLensError(warnings[0])  # passes the warning to the parent process

        code = wait(fork(compute_with_little_memory, message_file=message_file(out)))
        message = message_of(out)
        description = f"with {megabytes} MB: exit code {code}, {message}"
        outcome.add(code == EXPECTED_ERROR, message=message, description=description)
    return outcome


def _results(run: RunUnderTest, corpus: Any, **options: Any) -> dict[str, torch.Tensor]:
    """Return the statistics and the evaluation of a corpus as tensors."""
    stats = sp.collect(run.model, corpus, progress=False, **options)
    evaluation = sp.evaluate(run.model, corpus, progress=False, **options)
    moments = {f"{name} {key}": tensor for name in stats for key, tensor in stats[name].tensors().items()}
    return {**moments, "evaluation": torch.tensor([evaluation.top1, evaluation.top10, evaluation.loss])}


def _resume(
    run: RunUnderTest, out: Path, outcome: Outcome, description: str, *, expected: bool = True, message: str = ""
) -> None:
    """Make the same call again. Its result must equal the reference, and finished checkpoints must be unchanged."""
    before = finished_steps(out)
    success = run.resumes_to_reference(out)
    after = finished_steps(out)
    lost_steps = sum(after.get(step) != state for step, state in before.items())
    outcome.add(success and expected, lost_steps=lost_steps, message=message, description=description)
    shutil.rmtree(out)


def _count_hooks(run: RunUnderTest) -> int:
    """Return the number of hooks on the model. A bridge has some itself."""
    return sum(len(point.fwd_hooks) for point in run.model.hook_dict.values())


def _count_file_operations(run: RunUnderTest) -> int:
    """Return the number of file operations of an undisturbed run in its folder."""
    out, count = run.folder / "counted", run.folder / "count"

    def counted() -> None:
        operations: list[int] = []
        watch_files(out, operations.append)
        run.prune(out)
        count.write_text(str(len(operations)))

    wait(fork(counted, message_file=message_file(out)))
    return int(count.read_text())


def _at(number: int, action: Callable[[], None]) -> Callable[[int], None]:
    return lambda current: action() if current == number else None


def _kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _forbid_writing() -> None:
    """Limit the size of files to one byte."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))


@contextmanager
def warnings_of(logger: logging.Logger) -> Iterator[list[str]]:
    """Context manager that yields a list to which the warnings of a logger are added."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)


# The faults and the number of tries of each in `make test-faults`.
FAULTS: dict[str, tuple[Callable[[RunUnderTest, random.Random, int], Outcome], int]] = {
    "killed": (killed_at_random, 100),
    "killed-while-writing": (killed_while_writing, 100),
    "disk-full": (disk_full, 50),
    "truncated": (checkpoint_truncated, 50),
    "bit-flipped": (checkpoint_bit_flipped, 50),
    "two-processes": (two_processes, 20),
    "interrupted": (interrupted, 50),
    "out-of-memory": (out_of_memory, 20),
}
