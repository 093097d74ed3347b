"""Membership inference: whether the model can still be seen to have been trained on the forgotten items."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from tqdm.auto import tqdm

from sp_lens.data.batch import AnyBatch
from sp_lens.data.batching import BatchStream, reusable
from sp_lens.data.leakage import check_disjoint, content_of
from sp_lens.errors import SpLensError, check_at_least, check_shares
from sp_lens.evaluation.predictions import losses, nothing_to_predict, predictions_by_row
from sp_lens.models.forward import inference
from sp_lens.models.task import require_task
from sp_lens.storage.schema import Int64
from sp_lens.storage.serialization import load_values, write_json
from sp_lens.typing import BATCH_TOKENS

# Number of folds of the cross-validation that estimates the accuracy of the attack.
FOLDS = 5


@dataclass(frozen=True)
class MembershipInference:
    """Share of the forgotten items that an attack classifies as training data, and the accuracy of the attack.

    Attributes:
        share: Share of the forget items that the attack classifies as members of the training data.
        low: Lower end of the 95 % confidence interval of `share` (Wilson's), for these items and this attack.
        high: Upper end of the confidence interval.
        accuracy: Balanced accuracy of the attack on members and non-members, cross-validated. At 0.5 the attack cannot
            distinguish them, and `share` is meaningless.
        forget_items: Number of images or documents of the forget corpus.
        members: Number of items of the retain corpus to which the attack was fitted.
        non_members: Number of held-out items to which the attack was fitted.
    """

    share: float
    low: float
    high: float
    accuracy: float
    forget_items: Int64
    members: Int64
    non_members: Int64

    def __post_init__(self) -> None:
        check_shares(share=self.share, low=self.low, high=self.high, accuracy=self.accuracy)
        check_at_least(1, forget_items=self.forget_items, members=self.members, non_members=self.non_members)

    def save(self, path: str | Path) -> None:
        """Write the result to a JSON file."""
        write_json(path, {"kind": "MembershipInference", **asdict(self)})

    @classmethod
    def load(cls, path: str | Path) -> "MembershipInference":
        """Read a file that `save` wrote.

        Raises:
            SpLensError: If the file is missing or contains something else.
        """
        return load_values(path, cls)


def membership_inference(
    model: Any,
    forget: Any,
    retain: Any,
    held_out: Any,
    *,
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = True,
) -> MembershipInference:
    """Measure how many of the forget items a membership inference attack classifies as training data.

    The attack of Foster et al. 2023 (arXiv 2308.07707), from the code of Chundawat et al. 2023 (arXiv 2205.08096). A
    model is more certain about its training data, so a logistic regression with balanced classes is fitted to the
    entropy of its output to distinguish the retain corpus from held-out data, and then classifies the forget corpus.
    The authors use images; the entropy of a document is the mean over its predictions here. The model is measured with
    the ablations and changed weights that are active.

    All of `forget` and `retain` must be data that the model was trained on (for the bundled models, `split="train"`).
    `held_out` must not, and should otherwise be like `retain`: if it has a class that `retain` does not have, the
    attack learns to distinguish classes.

    Args:
        model: A `TransformerBridge` or a `HookedTransformer`.
        forget: Training data that was to be forgotten.
        retain: Training data that was kept.
        held_out: Data that the model was not trained on.
        seed: Seed of the cross-validation folds, and of the choice of tokens that a masked language model predicts.
        batch_tokens: Number of tokens per batch, including padding.
        progress: Whether to show a progress bar.

    Raises:
        SpLensError: If scikit-learn is missing, the model has no head, held-out data is also in another corpus, retain
            or held_out has fewer than 5 items, or logits are NaN.
    """
    try:
        import scipy.stats
        import sklearn.linear_model
        import sklearn.model_selection
    except ImportError as error:
        raise SpLensError(
            f"membership inference needs scikit-learn. Install it with pip install 'sp_lens[vision]' ({error})."
        ) from error
    require_task(model)
    corpora = {"forget": reusable(forget), "retain": reusable(retain), "held_out": reusable(held_out)}
    content = {name: content_of(model, corpus) for name, corpus in corpora.items()}
    for name in ("forget", "retain"):
        check_disjoint(content[name], content["held_out"], (name, "held_out"))
    entropies = _entropies(model, corpora, seed, batch_tokens, progress)
    members, non_members = len(entropies["retain"]), len(entropies["held_out"])
    if min(members, non_members) < FOLDS:
        raise SpLensError(
            f"retain has {members} and held_out {non_members} images or documents. The attack needs at least {FOLDS} "
            "of each, and hundreds for a meaningful result."
        )

    attack = sklearn.linear_model.LogisticRegression(class_weight="balanced")
    features = torch.cat([entropies["retain"], entropies["held_out"]])[:, None].numpy()
    is_member = [True] * members + [False] * non_members
    folds = sklearn.model_selection.StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    accuracies = sklearn.model_selection.cross_val_score(
        attack, features, is_member, cv=folds, scoring="balanced_accuracy"
    )
    predicted = attack.fit(features, is_member).predict(entropies["forget"][:, None].numpy())
    called_members, forget_items = int(predicted.sum()), len(predicted)
    interval = scipy.stats.binomtest(called_members, forget_items).proportion_ci(0.95, method="wilson")
    return MembershipInference(
        share=called_members / forget_items,
        low=float(interval.low),
        high=float(interval.high),
        accuracy=float(accuracies.mean()),
        forget_items=forget_items,
        members=members,
        non_members=non_members,
    )


def _entropies(
    model: Any, corpora: Mapping[str, Any], seed: int, batch_tokens: int, progress: bool
) -> dict[str, Float[torch.Tensor, " item"]]:
    """Return the mean entropy of the output for each item of each corpus.

    An item is an image, a document, or a row without a document.
    """

    entropies = {}
    with tqdm(desc="membership", unit=" predictions", disable=not progress) as bar, inference(model):
        for name, corpus in corpora.items():
            sums: dict[Any, torch.Tensor] = {}
            counts: Counter[Any] = Counter()
            stream = BatchStream(model, corpus, batch_tokens=batch_tokens)
            for batch, by_row in stream.map(lambda batch: _entropies_by_row(model, batch, seed)):
                for item, of_row in zip(batch.items, by_row, strict=True):
                    sums[item] = sums.get(item, 0) + of_row.sum()
                    counts[item] += len(of_row)
                    bar.update(len(of_row))
            means = [total / counts[item] for item, total in sums.items() if counts[item]]
            if not means:
                raise nothing_to_predict()
            entropies[name] = torch.stack(means)
    return entropies


def _entropies_by_row(model: Any, batch: AnyBatch, seed: int) -> list[Float[torch.Tensor, " prediction"]]:
    """Return the entropy of the output at each prediction, by row."""
    entropies = []
    for logits, targets in predictions_by_row(model, batch, seed):
        losses(logits, targets)  # raises an error if logits are NaN
        entropies.append(torch.special.entr(logits.softmax(dim=-1)).sum(dim=-1).double().cpu())
    return entropies
