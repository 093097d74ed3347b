"""Relearning: how many updates restore a forgotten capability, which shows if it was only hidden."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from sp_lens.data.batching import reusable
from sp_lens.data.leakage import check_disjoint, content_of
from sp_lens.data.text import describe
from sp_lens.errors import SpLensError, check_positive
from sp_lens.evaluation.evaluate import evaluate
from sp_lens.models.hooks import model_name
from sp_lens.models.task import require_task
from sp_lens.storage.schema import Int64, mapping_with
from sp_lens.storage.serialization import load_values, write_json
from sp_lens.typing import BATCH_TOKENS
from sp_lens.unlearning.training import TrainingOptions, train
from sp_lens.unlearning.weights import editable, weights_of


@dataclass(frozen=True)
class Relearning:
    """Accuracy on the forgotten capability while the model is fine-tuned on it again.

    Attributes:
        records: One mapping per evaluation. The first one (update 0) is the model before the fine-tuning.
        settings: Model, corpora, learning rate and all other settings that determine the result.
    """

    records: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not self.records:
            raise SpLensError("there are no records: expected at least the record of update 0.")

    @property
    def history(self) -> pd.DataFrame:
        """Table with one row per evaluation: update, forget_top1, and retain_top1 if a retain corpus was given."""
        return pd.DataFrame(list(self.records))

    def updates_to(self, target_top1: float) -> int | None:
        """Return the first evaluated update with a forget accuracy of at least `target_top1`, or None.

        Example:
            >>> curve = Relearning([{"update": 0, "forget_top1": 0.1}, {"update": 5, "forget_top1": 0.4}], {})
            >>> curve.updates_to(0.3), curve.updates_to(0.5)
            (5, None)
        """
        return next((record["update"] for record in self.records if record["forget_top1"] >= target_top1), None)

    def save(self, path: str | Path) -> None:
        """Write the result to a JSON file."""
        write_json(path, {"kind": "Relearning", **asdict(self)})

    @classmethod
    def load(cls, path: str | Path) -> "Relearning":
        """Read a file that `save` wrote.

        Raises:
            SpLensError: If the file is missing or contains something else.
        """
        return load_values(path, cls, records=Sequence[mapping_with(update=Int64, forget_top1=float)])

    def __repr__(self) -> str:
        first, last = self.records[0], self.records[-1]
        return f"Relearning({last['update']} updates, top1 {first['forget_top1']:.3f} -> {last['forget_top1']:.3f})"


def relearning(
    model: Any,
    forget: Any,
    *,
    eval_forget: Any,
    eval_retain: Any = None,
    updates: int = 50,
    every: int = 5,
    learning_rate: float = 1e-4,
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = True,
) -> Relearning:
    """Fine-tune on the forget corpus, and measure how fast its accuracy returns. The weights are restored afterwards.

    Within `with ablate(model, mask):` the pruned neurons stay pruned and the others learn; within
    `with run.applied(model):` the result of another method is measured. One curve alone says little: compare it with
    that of another method, or with that of the same number of randomly pruned neurons.

    Args:
        model: A `TransformerBridge` or a `HookedTransformer`.
        forget: Corpus to learn again, as `load_corpus` or `load_images` returns it.
        eval_forget: Held-out data of the forget corpus.
        eval_retain: Held-out data of the retain corpus, to measure the effect of relearning on it. None omits it.
        updates: Number of updates of AdamW (without weight decay), one per batch.
        every: Number of updates between two evaluations. The model is always evaluated after the last update.
        learning_rate: Learning rate of AdamW.
        seed: Seed of the order of the batches, and of the choice of tokens that a masked language model predicts.
        batch_tokens: Number of tokens per batch, including padding. One update reads one batch.
        progress: Whether to show a progress bar.

    Raises:
        SpLensError: Before any long computation, if the model has no head, its weights cannot be changed, an option is
            invalid, or evaluation data is not held out. Later, if the weights become NaN.
    """
    check_positive(updates=updates, every=every)
    training = TrainingOptions(learning_rate=learning_rate, updates=1, seed=seed, batch_tokens=batch_tokens)
    require_task(model)
    weights_of(model)  # raises for weights that cannot be changed, before the corpora are read
    given = {"forget": forget, "eval_forget": eval_forget, "eval_retain": eval_retain}
    corpora = {name: reusable(corpus) for name, corpus in given.items() if corpus is not None}
    content = {name: content_of(model, corpus) for name, corpus in corpora.items()}
    held_out = [name for name in corpora if name != "forget"]
    for name in held_out:
        check_disjoint(content["forget"], content[name], ("forget", name))
    settings = {
        "model": model_name(model),
        "updates": updates,
        "every": every,
        "learning_rate": learning_rate,
        "seed": seed,
        "batch_tokens": batch_tokens,
        "corpora": {
            name: describe(corpus) | {"fingerprint": content[name].fingerprint} for name, corpus in corpora.items()
        },
    }

    def record(update: int) -> dict[str, Any]:
        result: dict[str, Any] = {"update": update}
        for name in held_out:
            evaluation = evaluate(model, corpora[name], seed=seed, batch_tokens=batch_tokens, progress=False)
            result[f"{name.removeprefix('eval_')}_top1"] = evaluation.top1
        return result

    bar = tqdm(total=updates, desc="relearn", unit=" updates", disable=not progress)
    with editable(model) as (weights, _), bar:
        records = [record(0)]
        steps = train(model, weights, corpora["forget"], training)
        for update in range(1, updates + 1):
            next(steps)
            if update % every == 0 or update == updates:
                records.append(record(update))
                bar.set_postfix(forget=f"{records[-1]['forget_top1']:.3f}")
            bar.update()
    return Relearning(records, settings)
