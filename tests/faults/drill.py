"""Every fault, tried many times: after it the same call is made again, and has to end as if nothing had happened."""

import itertools
import logging
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import sp_lens as sp
from faults.scene import (
    REFUSED,
    STEPS,
    Scene,
    finished_steps,
    forked,
    halted,
    kill_after,
    said,
    said_file,
    wait,
    watch_files,
)
from sp_lens.models.loading import weights_fingerprint
from sp_lens.pruning.run import step_file


@dataclass
class Outcome:
    """What came of a fault.

    Attributes:
        fault: what was done to the run.
        tried: how often.
        survived: how often the same call ended with the mask and history of an undisturbed run.
        lost: steps that were finished and on disk, and were so no more.
        told: what the user was told, the last of what was said.
        wrong: what went wrong, each in words.
    """

    fault: str
    tried: int = 0
    survived: int = 0
    lost: int = 0
    told: str = ""
    wrong: list[str] | None = None

    def add(self, survived: bool, *, lost: int = 0, told: str = "", wrong: str = "") -> None:
        """Count one try."""
        self.tried += 1
        self.survived += survived
        self.lost += lost
        self.told = told or self.told
        if not survived or lost:
            self.wrong = [*(self.wrong or []), wrong or f"try {self.tried} ended otherwise, {lost} steps lost"]


def killed_at_random(scene: Scene, dice: random.Random, tries: int) -> Outcome:
    """SIGKILL at any moment of the run."""
    outcome = Outcome("killed (SIGKILL) at a random moment")
    for number in range(tries):
        out = scene.folder / f"killed-{number}"
        seconds = dice.uniform(0, scene.seconds)
        kill_after(scene.started(out), seconds)
        _go_on(scene, out, outcome, f"killed after {seconds:.3f} s")
    return outcome


def killed_while_writing(scene: Scene, dice: random.Random, tries: int) -> Outcome:
    """SIGKILL right before the run opens, renames, makes or removes a file: at all of these moments or some."""
    outcome = Outcome("killed (SIGKILL) between two operations on files")
    events = _file_events(scene)
    for number in sorted(dice.sample(range(1, events + 1), min(tries, events))):
        out = scene.folder / f"writing-{number}"
        wait(scene.started(out, lambda n=number, out=out: watch_files(out, _at(n, _die))))
        _go_on(scene, out, outcome, f"killed before the operation {number} of {events}")
    return outcome


def disk_full(scene: Scene, dice: random.Random, tries: int) -> Outcome:
    """No byte can be written from some moment on; the system itself refuses."""
    outcome = Outcome("no room on the disk, from a random operation on")
    events = _file_events(scene)
    for number in range(tries):
        out = scene.folder / f"full-{number}"
        first = dice.randint(1, events - 1)
        code = wait(scene.started(out, lambda n=first, out=out: watch_files(out, _at(n, _no_room))))
        told = said(out)
        wrong = f"no room from operation {first} on: ended with {code}, {told}"
        _go_on(scene, out, outcome, wrong, right=code == REFUSED, told=told)
    return outcome


def checkpoint_cut(scene: Scene, dice: random.Random, tries: int) -> Outcome:
    """The last checkpoint is cut short at any length."""
    return _damaged(scene, dice, tries, "the last checkpoint cut short", lambda data: data[: dice.randrange(len(data))])


def checkpoint_flipped(scene: Scene, dice: random.Random, tries: int) -> Outcome:
    """A bit of the last checkpoint is flipped, anywhere."""

    def flip(data: bytes) -> bytes:
        place = dice.randrange(len(data))
        return data[:place] + bytes([data[place] ^ 1 << dice.randrange(8)]) + data[place + 1 :]

    return _damaged(scene, dice, tries, "a bit of the last checkpoint flipped", flip)


def _damaged(scene: Scene, dice: random.Random, tries: int, fault: str, damage: Callable[[bytes], bytes]) -> Outcome:
    """The last of the checkpoints that were made, damaged: the step before is used, and the user is told."""
    outcome = Outcome(fault)
    for number in range(tries):
        out = scene.copy(f"{damage.__name__.strip('<>')}-{number}")
        last = dice.randint(0, STEPS)
        for step in range(last + 1, STEPS + 1):
            step_file(out, step).unlink()
        file = step_file(out, last)
        file.write_bytes(damage(file.read_bytes()))
        with warnings_of("sp_lens.runs") as told:
            found = sp.PruneRun.load(out).steps if last else 0
        right = found == max(last - 1, 0) and (f"step {last} is damaged" in " ".join(told) or not last)
        survived = scene.gone_on(out)
        outcome.add(survived and right, told=" ".join(told), wrong=f"step {last} damaged: {found} found, {told}")
        shutil.rmtree(out)
    return outcome


def two_at_once(scene: Scene, dice: random.Random, tries: int) -> Outcome:
    """A second process makes the same call while the first is at work: it refuses, and the first ends well."""
    outcome = Outcome("two processes on one folder")
    for number in itertools.count():
        if outcome.tried == tries:
            break
        out = scene.folder / f"two-{number}"
        first = scene.started(out)
        while not (out / ".lock").exists():
            time.sleep(0.01)
        if not halted(first, dice.uniform(0, 0.5) * scene.seconds):
            continue  # it had ended: where the machine is slow, a second comes too late
        code = wait(scene.started(out))
        told = said(out)
        os.kill(first, signal.SIGCONT)
        ended = wait(first)
        right = code == REFUSED and "at work" in told and ended == 0
        outcome.add(scene.gone_on(out) and right, told=told, wrong=f"second {code} ({told}), first {ended}")
    return outcome


def interrupted(scene: Scene, dice: random.Random, tries: int) -> Outcome:
    """Ctrl-C at any moment: no hook is left on the model, its weights are as they were, the steps done are kept."""
    outcome = Outcome("Ctrl-C at a random moment")
    hooks, weights = _hooks(scene), weights_fingerprint(scene.model)
    tokens = torch.arange(5, 25)[None]
    logits = scene.model(tokens)
    for number in range(tries):
        out = scene.folder / f"interrupted-{number}"

        def watched(out: Path = out) -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            try:
                scene.prune(out)
            except KeyboardInterrupt:
                left = _hooks(scene) - hooks
                same = weights_fingerprint(scene.model) == weights and torch.equal(scene.model(tokens), logits)
                assert not left, f"{left} hooks are left"
                assert same, "the model is another one"
                raise

        child = forked(watched, words=said_file(out))
        seconds = dice.uniform(0, scene.seconds)
        code = kill_after(child, seconds, signal.SIGINT)
        told = said(out)
        # Before the first evaluation there is no run yet, and a KeyboardInterrupt is all that there is to be raised.
        right = code in (0, REFUSED) or told.startswith("KeyboardInterrupt")
        wrong = f"after {seconds:.3f} s: {code}, {told}"
        _go_on(scene, out, outcome, wrong, right=right, told=told if code == REFUSED else "")
    return outcome


def out_of_memory(scene: Scene, dice: random.Random, tries: int) -> Outcome:
    """The process may have less memory than a batch needs: it is read in halves, and comes to the same numbers."""
    outcome = Outcome("a batch that memory does not hold")
    rows = [torch.randint(2, 500, (1, 256), generator=torch.Generator().manual_seed(0)).repeat(256, 1)]
    usual = _numbers(scene, rows, batch_tokens=8 * 256)
    for _ in range(tries):
        out = scene.folder / f"memory-{outcome.tried}"
        megabytes = dice.randint(150, 400)

        def little(megabytes: int = megabytes) -> None:
            with warnings_of("sp_lens.halving") as told:
                used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * 2**20, resource.RLIM_INFINITY))
                found = _numbers(scene, rows, batch_tokens=256 * 256)
                resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            assert told, "no batch was halved"
            torch.testing.assert_close(found, usual, rtol=1e-5, atol=1e-6)
            raise sp.SpLensError(told[0])  # the words, for the table

        code = wait(forked(little, words=said_file(out)))
        told = said(out)
        outcome.add(code == REFUSED, told=told, wrong=f"with {megabytes} MB more: {code}, {told}")
    return outcome


def _numbers(scene: Scene, corpus: Any, **options: Any) -> dict[str, torch.Tensor]:
    """What is collected and evaluated."""
    stats = sp.collect(scene.model, corpus, progress=False, **options)
    evaluation = sp.evaluate(scene.model, corpus, progress=False, **options)
    moments = {f"{name} {key}": t for name in stats for key, t in stats[name].tensors().items()}
    return {**moments, "evaluation": torch.tensor([evaluation.top1, evaluation.top10, evaluation.loss])}


def _go_on(scene: Scene, out: Path, outcome: Outcome, wrong: str, *, right: bool = True, told: str = "") -> None:
    """The same call again; what had been finished has to be there, unchanged."""
    before = finished_steps(out)
    survived = scene.gone_on(out)
    after = finished_steps(out)
    lost = sum(after.get(step) != what for step, what in before.items())
    outcome.add(survived and right, lost=lost, told=told, wrong=wrong)
    shutil.rmtree(out)


def _hooks(scene: Scene) -> int:
    """How many hooks are on the model; a bridge has some of its own."""
    return sum(len(point.fwd_hooks) for point in scene.model.hook_dict.values())


def _file_events(scene: Scene) -> int:
    """How many operations on files in its folder an undisturbed run makes."""
    out, count = scene.folder / "counted", scene.folder / "count"

    def counted() -> None:
        events = []
        watch_files(out, events.append)
        scene.prune(out)
        count.write_text(str(len(events)))

    wait(forked(counted, words=said_file(out)))
    return int(count.read_text())


def _at(number: int, act: Callable[[], None]) -> Callable[[int], None]:
    return lambda seen: act() if seen == number else None


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _no_room() -> None:
    """No file can have more than a byte from here on."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))


@contextmanager
def warnings_of(name: str) -> Iterator[list[str]]:
    """What a logger warns of in the meantime."""
    told: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: told.append(record.getMessage())
    logging.getLogger(name).addHandler(handler)
    try:
        yield told
    finally:
        logging.getLogger(name).removeHandler(handler)


# What can befall a run, and how often it is tried in the long form.
FAULTS: dict[str, tuple[Callable[[Scene, random.Random, int], Outcome], int]] = {
    "killed": (killed_at_random, 100),
    "killed-while-writing": (killed_while_writing, 100),
    "disk-full": (disk_full, 50),
    "cut": (checkpoint_cut, 50),
    "flipped": (checkpoint_flipped, 50),
    "two-at-once": (two_at_once, 20),
    "interrupted": (interrupted, 50),
    "out-of-memory": (out_of_memory, 20),
}
