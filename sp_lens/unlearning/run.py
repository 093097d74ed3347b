"""What a baseline did: its history, and the weights that it ended with."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sp_lens.errors import SpLensError
from sp_lens.models.hooks import model_name
from sp_lens.models.loading import weights_fingerprint
from sp_lens.pruning.run import RECORDS, SETTINGS, Run, check_run
from sp_lens.storage.schema import mapping_with
from sp_lens.storage.serialization import opened, save_tensors
from sp_lens.unlearning.weights import lent, write


@dataclass(frozen=True, eq=False)
class UnlearningRun(Run):
    """What a method other than pruning did, step by step; `.history` and figures as those of a `PruneRun`.

    Only the weights after the last step are kept. A step does not depend on how many follow: the same call
    with `steps=run.best_step` ends with those of the best one.

    Attributes:
        weights: `{name of the parameter: tensor}`: those that the method changed, after its last step.
        records: one mapping a step, the first (step 0) of the model as it came; `share` is 0, nothing is pruned.
        settings: model, corpora, method and its options: what makes this run this run.
    """

    weights: Mapping[str, torch.Tensor]
    records: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any]

    @contextmanager
    def applied(self, model: Any) -> Iterator[Any]:
        """The model with the weights after the last step, for the length of a `with`; then as it was.

        Raises:
            SpLensError: for any model but the one that the run began from, and for weights that it does not have.
        """
        if (there := weights_fingerprint(model)) != self.settings["weights"]:
            raise SpLensError(
                f"these weights are of {self.settings['model']!r} with the fingerprint {self.settings['weights']}, and "
                f"{model_name(model)!r} with {there} came: load the model that the run began from, unchanged."
            )
        with lent(model) as (weights, before):
            if unfit := [n for n, one in self.weights.items() if n not in before or before[n].shape != one.shape]:
                raise SpLensError(f"the model has no weight {unfit[0]!r} of {tuple(self.weights[unfit[0]].shape)}.")
            write(weights, self.weights)
            yield model

    def save(self, path: str | Path) -> None:
        """Write to a safetensors file, whole or not at all."""
        header = {"records": list(self.records), "settings": dict(self.settings)}
        save_tensors(path, "UnlearningRun", self.weights, header)

    @classmethod
    def load(cls, path: str | Path) -> "UnlearningRun":
        """Read what `save` wrote.

        Raises:
            SpLensError: when the file is missing, cut short, foreign, or holds something else.
        """
        settings = mapping_with(**{**SETTINGS, "model": str, "weights": str, "method": str})
        with opened(path, "UnlearningRun", {"records": RECORDS, "settings": settings}) as (tensors, header):
            run = cls(tensors, header["records"], header["settings"])
            check_run(run)
        return run

    def __repr__(self) -> str:
        return f"UnlearningRun({self.settings['method']}, {self.steps} steps, selectivity {self.selectivity:.3f})"
