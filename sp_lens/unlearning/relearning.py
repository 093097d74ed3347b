"""How soon what was forgotten comes back: the measure of whether it was forgotten or only hidden."""

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
from sp_lens.unlearning.training import train
from sp_lens.unlearning.weights import lent, weights_of


@dataclass(frozen=True)
class Relearning:
    """The accuracy on what was forgotten, update after update of learning it again.

    Attributes:
        records: one mapping for each evaluation, the first (update 0) of the model as it came.
        settings: model, corpora, learning rate, ...: what makes this curve this curve.
    """

    records: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not self.records:
            raise SpLensError("there are no records: expected one of update 0 at least.")

    @property
    def history(self) -> pd.DataFrame:
        """One row an evaluation: update, forget_top1, and retain_top1 where a retain corpus was given."""
        return pd.DataFrame(list(self.records))

    def updates_to(self, target_top1: float) -> int | None:
        """After how many updates the forget accuracy was first found at `target_top1` or above; None if never.

        Example:
            >>> curve = Relearning([{"update": 0, "forget_top1": 0.1}, {"update": 5, "forget_top1": 0.4}], {})
            >>> curve.updates_to(0.3), curve.updates_to(0.5)
            (5, None)
        """
        return next((record["update"] for record in self.records if record["forget_top1"] >= target_top1), None)

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        write_json(path, {"kind": "Relearning", **asdict(self)})

    @classmethod
    def load(cls, path: str | Path) -> "Relearning":
        """Read what `save` wrote.

        Raises:
            SpLensError: when the file is missing or is no relearning.
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
    """Fine-tune on the forget corpus, and see how soon its accuracy is back; the model is then as it came, bit by bit.

    What was pruned stays so within `with ablate(model, mask):`, and the other neurons learn; what another method left
    is tried within `with run.applied(model):`. It says little alone: hold one method's curve against another's, or
    against that of as many neurons pruned at random.

    Args:
        model: a bridge or a `HookedTransformer`.
        forget: corpus to learn again, as `load_corpus` or `load_images` returns it.
        eval_forget: held-out text of it.
        eval_retain: held-out text of what was kept, to see what relearning does to that; None leaves it out.
        updates: how many updates of AdamW (without weight decay), one a batch.
        every: evaluate after so many; after the last one in any case.
        learning_rate: of AdamW.
        seed: of the order of the batches, and of the tokens that a masked language model is asked for.
        batch_tokens: tokens in a batch, padding included: what one update sees.
        progress: show a bar.

    Raises:
        SpLensError: before any long work, for a model without a head or with weights that can't be changed, bad
            settings, and held-out text that is not; later for weights that became NaN.
    """
    require_task(model)
    weights_of(model)  # refused before the corpora are read
    check_positive(updates=updates, every=every, learning_rate=learning_rate, batch_tokens=batch_tokens)
    given = {"forget": forget, "eval_forget": eval_forget, "eval_retain": eval_retain}
    corpora = {name: reusable(corpus) for name, corpus in given.items() if corpus is not None}
    content = {name: content_of(model, corpus) for name, corpus in corpora.items()}
    for name in corpora:
        if name != "forget":
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
        sides = {name.removeprefix("eval_"): corpora[name] for name in corpora if name != "forget"}
        options: dict[str, Any] = {"seed": seed, "batch_tokens": batch_tokens, "progress": False}
        return {"update": update} | {f"{side}_top1": evaluate(model, of, **options).top1 for side, of in sides.items()}

    with lent(model) as (weights, _), tqdm(total=updates, desc="relearn", unit=" updates", disable=not progress) as bar:
        records = [record(0)]
        training = train(
            model,
            weights,
            corpora["forget"],
            optimizer="adamw",
            learning_rate=learning_rate,
            updates=1,
            seed=seed,
            batch_tokens=batch_tokens,
        )
        for update in range(1, updates + 1):
            next(training)
            if update % every == 0 or update == updates:
                records.append(record(update))
                bar.set_postfix(forget=f"{records[-1]['forget_top1']:.3f}")
            bar.update()
    return Relearning(records, settings)
