"""Runs as data: the history that any has, and of a pruning run the step at which each neuron went. No model in here."""

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Int

from sp_lens.errors import DamagedFile, SpLensError, check_shares
from sp_lens.neurons.layout import Layout
from sp_lens.neurons.mask import NeuronMask
from sp_lens.storage.schema import Int64, mapping_with, validate
from sp_lens.storage.serialization import opened, save_tensors

# What is read anywhere of a run's settings, of a corpus among them, and of its records.
_CORPUS = mapping_with(
    source=str | None, origin=str | None, split=str | None, fingerprint=str | None,
    tokens=Int64 | None, documents=Int64 | None, images=Int64 | None, versions=Mapping[str, str] | None,
)  # fmt: skip
SETTINGS = {
    "model": str | None, "weights": str | None, "method": str | None, "metric": str | None, "site": str | None,
    "fraction": float | None, "protected": Mapping[str, Any] | None, "corpora": Mapping[str, Any] | None,
}  # fmt: skip
RECORDS = Sequence[Mapping[str, Int64 | float]]
_RECORD = mapping_with(step=Int64, share=float, forget_top1=float, retain_top1=float)

logger = logging.getLogger(__name__)


class Run:
    """A model evaluated on held-out forget and retain text, step after step: what the figures of runs draw.

    `PruneRun` and `baselines.UnlearningRun` are runs.

    Attributes:
        records: one mapping a step, the first (step 0) of the model as it came.
        settings: model, corpora, method or metric, ...: what makes this run this run.
    """

    records: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any]

    @property
    def steps(self) -> int:
        """How many steps were done."""
        return len(self.records) - 1

    @property
    def history(self) -> pd.DataFrame:
        """One row a step: share pruned; top1, top10, top1_skip50, loss and perplexity on both corpora.

        `forget_drop` and `retain_drop` are how far top1 has fallen since step 0, as a share (0.1 is ten
        points).
        """
        frame = pd.DataFrame(list(self.records))
        for side in ("forget", "retain"):
            frame[f"{side}_drop"] = frame[f"{side}_top1"].iloc[0] - frame[f"{side}_top1"]
        return frame

    @property
    def best_step(self) -> int:
        """The step at which forget accuracy drop minus retain accuracy drop is largest; the first of equals."""
        history = self.history
        return int((history["forget_drop"] - history["retain_drop"]).idxmax())

    @property
    def selectivity(self) -> float:
        """Forget accuracy drop minus retain accuracy drop at the best step (Figure 4's number)."""
        best = self.history.iloc[self.best_step]
        return float(best["forget_drop"] - best["retain_drop"])


@dataclass(frozen=True, eq=False)
class PruneRun(Run):
    """What Algorithm 1 did, step by step.

    Attributes:
        layout: the neuron groups that could be pruned.
        pruned_at: `{hook name: Int[" neuron"]}`: the step at which each neuron was pruned, 0 for never.
        records: one mapping a step, the first (step 0) before any pruning.
        settings: model, corpora, site, metric, fraction, ...: what makes this run this run.
    """

    layout: Layout
    pruned_at: Mapping[str, Int[torch.Tensor, " neuron"]]
    records: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any]

    @property
    def mask(self) -> NeuronMask:
        """The neurons pruned in all steps."""
        return self.mask_at(self.steps)

    def mask_at(self, step: int) -> NeuronMask:
        """The neurons that were pruned after `step` steps.

        Raises:
            SpLensError: for a step that was not done.
        """
        if not 0 <= step <= self.steps:
            raise SpLensError(f"step {step} was not done: this run has the steps 0 to {self.steps}.")
        tensors = {name: (at > 0) & (at <= step) for name, at in self.pruned_at.items()}
        about = {key: self.settings[key] for key in ("model", "metric", "site") if key in self.settings}
        return NeuronMask(self.layout, tensors, {**about, "step": step})

    def until(self, step: int) -> "PruneRun":
        """The run as it was after `step` steps."""
        pruned_at = {name: torch.where(at <= step, at, 0) for name, at in self.pruned_at.items()}
        return PruneRun(self.layout, pruned_at, self.records[: step + 1], self.settings)

    def save(self, path: str | Path) -> None:
        """Write to a safetensors file, whole or not at all."""
        header = {"layout": self.layout.to_json(), "records": list(self.records), "settings": dict(self.settings)}
        save_tensors(path, "PruneRun", self.pruned_at, header)

    @classmethod
    def load(cls, path: str | Path) -> "PruneRun":
        """Read a saved run, or the last finished step in the folder of a run, damaged ones left out with a warning.

        Raises:
            SpLensError: when there is none, or the file is cut short or foreign.
        """
        if Path(path).is_dir():
            run = last_whole_step(path)
            if run is None:
                raise SpLensError(f"there is no finished step in {path}: expected the `out` folder of prune().")
            return run
        types = {"layout": Any, "records": RECORDS, "settings": mapping_with(**SETTINGS)}
        with opened(path, "PruneRun", types) as (tensors, header):
            run = cls(Layout.from_json(header["layout"]), tensors, header["records"], header["settings"])
            check_run(run)
            _check_steps(run)
        return run

    def __repr__(self) -> str:
        return f"PruneRun({self.steps} steps, selectivity {self.selectivity:.3f}, {self.mask})"


class PruneInterrupted(KeyboardInterrupt):
    """Ctrl-C, or the stop button of a notebook, while a run was pruning: the model is as it was, and `run` is kept.

    Attributes:
        run: the steps that were done. In a notebook, `sys.last_value.run`.
    """

    def __init__(self, run: PruneRun, folder: str | Path | None) -> None:
        kept = "`sys.last_value.run` has them" if folder is None else f"{folder} has them, and the same call goes on"
        super().__init__(f"{run.steps} steps were done: {kept}")
        self.run = run


def check_run(run: Run) -> None:
    """Refuse a run whose records are not its steps, or whose settings are of no corpora.

    Raises:
        SpLensError: naming the part.
    """
    validate(list(run.records), Sequence[_RECORD], "records")
    if [record["step"] for record in run.records] != list(range(len(run.records))) or not run.records:
        raise SpLensError(f"it has records of {len(run.records)} steps, which are not 0, 1, 2, ... in turn.")
    for record in run.records:
        check_shares(**{name: record[name] for name in ("share", "forget_top1", "retain_top1")})
    for name, about in (run.settings.get("corpora") or {}).items():
        validate(about, _CORPUS, f"the corpus {name!r}")


def _check_steps(run: PruneRun) -> None:
    """Refuse neurons that are none of the layout's, or were pruned at a step that was not done."""
    if set(run.pruned_at) != set(run.layout.names):
        raise SpLensError(f"it says of {sorted(run.pruned_at)[:5]} when neurons were pruned: expected its layout's.")
    for group in run.layout:
        at = run.pruned_at[group.name]
        if at.dtype not in (torch.int32, torch.int64) or tuple(at.shape) != (group.width,):
            raise SpLensError(f"{group.name} has steps {at.dtype} {tuple(at.shape)}: expected {group.width} integers.")
        if not 0 <= int(at.min()) <= int(at.max()) <= run.steps:
            raise SpLensError(f"{group.name} has steps {int(at.min())} to {int(at.max())}, and {run.steps} were done.")


def step_file(folder: str | Path, step: int) -> Path:
    """Where the run in `folder` keeps its state after `step` steps."""
    return Path(folder) / f"step-{step:04d}.safetensors"


def step_files(folder: str | Path) -> dict[int, Path]:
    """The finished steps in the folder of a run, by number."""
    named = ((re.fullmatch(r"step-(\d+)\.safetensors", file.name), file) for file in Path(folder).glob("step-*"))
    return {int(match[1]): file for match, file in named if match}


def last_whole_step(folder: str | Path) -> PruneRun | None:
    """The last finished step in the folder of a run that can be read, with a warning of those that can't."""
    for step, file in sorted(step_files(folder).items(), reverse=True):
        try:
            return PruneRun.load(file)
        except DamagedFile as error:
            logger.warning("step %d is damaged, and the one before it is used: %s", step, error)
    return None


def stopped(record: Mapping[str, Any], min_retain_top1: float | None, max_forget_top1: float | None) -> bool:
    """Whether a stopping rule is met: retain accuracy below its floor, or forget accuracy at its target."""
    floor = -math.inf if min_retain_top1 is None else min_retain_top1
    target = -math.inf if max_forget_top1 is None else max_forget_top1
    return record["retain_top1"] < floor or record["forget_top1"] <= target
