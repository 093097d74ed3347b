"""Result of an unlearning method: its history, and the weights after the last step."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sp_lens.errors import SpLensError
from sp_lens.evaluation.document_hits import StepDocuments
from sp_lens.models.hooks import model_name
from sp_lens.models.loading import weights_fingerprint
from sp_lens.pruning.run import RECORDS, SETTINGS, Run, check_run, pop_documents, stacked_documents
from sp_lens.storage.schema import mapping_with
from sp_lens.storage.serialization import opened, save_tensors
from sp_lens.unlearning.weights import editable, write


@dataclass(frozen=True, eq=False)
class UnlearningRun(Run):
    """Result of an unlearning method that changes weights, with the `.history` and figures of a `PruneRun`.

    Only the weights after the last step are stored. A step does not depend on the number of steps after it, so the same
    call with `steps=run.best_step` ends with the weights of the best step.

    Attributes:
        weights: `{parameter name: tensor}`, the values after the last step of all weights that the method changed.
        records: One mapping per step. The first one (step 0) is the unchanged model. `share` is 0: nothing is pruned.
        settings: Model, corpora, method and all its options.
        documents: Predictions, hits and losses on each held-out document, one item per step.
    """

    weights: Mapping[str, torch.Tensor]
    records: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any]
    documents: Sequence[StepDocuments] = ()

    @contextmanager
    def applied(self, model: Any) -> Iterator[Any]:
        """Context manager that gives the model the weights after the last step, and restores its own weights on exit.

        Raises:
            SpLensError: If this is not the model with which the run started, or it does not have one of the weights.
        """
        if (fingerprint := weights_fingerprint(model)) != self.settings["weights"]:
            raise SpLensError(
                f"the run started from {self.settings['model']!r} with the weights {self.settings['weights']}. This "
                f"model is {model_name(model)!r} with the weights {fingerprint}. Load the original model, unchanged."
            )
        with editable(model) as (weights, original):
            for name, weight in self.weights.items():
                if name not in original or original[name].shape != weight.shape:
                    raise SpLensError(f"the model has no weight {name!r} of shape {tuple(weight.shape)}.")
            write(weights, self.weights)
            yield model

    def save(self, path: str | Path) -> None:
        """Write the run to a safetensors file, atomically."""
        header = {"records": list(self.records), "settings": dict(self.settings)}
        save_tensors(path, "UnlearningRun", {**self.weights, **stacked_documents(self.documents)}, header)

    @classmethod
    def load(cls, path: str | Path) -> "UnlearningRun":
        """Read a saved run.

        Raises:
            SpLensError: If the file is missing or truncated, was not written by `save`, or contains another result.
        """
        settings = mapping_with(**{**SETTINGS, "model": str, "weights": str, "method": str})
        with opened(path, "UnlearningRun", {"records": RECORDS, "settings": settings}) as (tensors, header):
            documents = pop_documents(tensors)
            run = cls(tensors, header["records"], header["settings"], documents)
            check_run(run)
        return run

    def __repr__(self) -> str:
        return f"UnlearningRun({self.settings['method']}, {self.steps} steps, selectivity {self.selectivity:.3f})"
