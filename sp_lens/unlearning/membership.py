"""Does the model still tell what it was trained on from what it was not? The measure of forgetting single items."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from tqdm.auto import tqdm

from sp_lens.data.batching import reusable
from sp_lens.data.leakage import check_disjoint, content_of
from sp_lens.errors import SpLensError, check_at_least, check_shares
from sp_lens.evaluation.bootstrap import sums_by_item
from sp_lens.models.task import require_task
from sp_lens.storage.schema import Int64
from sp_lens.storage.serialization import load_values, write_json
from sp_lens.typing import BATCH_TOKENS

# Parts into which members and non-members are split to find how often the attack is right.
FOLDS = 5


@dataclass(frozen=True)
class MembershipInference:
    """How many of the forgotten items an attacker takes for training data, and how good the attacker is.

    Attributes:
        share: of the forget items, those that the attack calls members of the training data.
        low: end of the 95 % confidence interval of `share` (Wilson's), for these items and this attack.
        high: its other end.
        accuracy: of the attack on members and non-members that it was not fitted to: the mean of the share of either
            that it calls right, cross-validated. At 0.5 it can't tell them apart, and `share` says nothing.
        forget_items: how many images or documents `share` is of.
        members: how many items of the retain corpus the attack learned from.
        non_members: how many held-out items.
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
        """Write as JSON."""
        write_json(path, {"kind": "MembershipInference", **asdict(self)})

    @classmethod
    def load(cls, path: str | Path) -> "MembershipInference":
        """Read what `save` wrote.

        Raises:
            SpLensError: when the file is missing or is no membership inference.
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
    """How many of the forget items an attack calls training data, ablations and changed weights in force included.

    The attack of Foster et al. 2023 (arXiv 2308.07707), from the code of Chundawat et al. 2023 (arXiv 2205.08096). A
    model is surer of what it was trained on, so a logistic regression learns from the entropy of its output to tell the
    retain corpus from held-out data, both weighing alike, and then judges the forget corpus. They have images; the
    entropy of a document is here the mean over its predictions.

    All of forget and retain must be data that the model was trained on (of the bundled ones `split="train"`), and
    held_out must not, and be like retain in all else: where it has a class that retain has not, the attack learns
    to tell classes.

    Args:
        model: a bridge or a `HookedTransformer`.
        forget: training data that was to be forgotten.
        retain: training data that was kept.
        held_out: data that the model was not trained on.
        seed: of the split for the accuracy, and of the tokens that a masked language model is asked for.
        batch_tokens: tokens in a batch, padding included.
        progress: show a bar.

    Raises:
        SpLensError: without scikit-learn; for a model without a head, held-out data that is in the others, fewer than
            5 items in retain or in held_out, and logits that are NaN.
    """
    try:
        import scipy.stats
        import sklearn.linear_model
        import sklearn.model_selection
    except ImportError as error:
        raise SpLensError(f"the attack needs scikit-learn: pip install 'sp-lens[vision]' ({error}).") from error
    require_task(model)
    corpora = {"forget": reusable(forget), "retain": reusable(retain), "held_out": reusable(held_out)}
    content = {name: content_of(model, corpus) for name, corpus in corpora.items()}
    for name in ("forget", "retain"):
        check_disjoint(content[name], content["held_out"], (name, "held_out"))
    found = _entropies(model, corpora, seed, batch_tokens, progress)
    members, non_members = len(found["retain"]), len(found["held_out"])
    if min(members, non_members) < FOLDS:
        raise SpLensError(
            f"retain has {members} and held_out {non_members} images or documents: the attack learns from at least "
            f"{FOLDS} of each, and from hundreds before it says anything."
        )

    attack = sklearn.linear_model.LogisticRegression(class_weight="balanced")
    entropies = torch.cat([found["retain"], found["held_out"]])[:, None].numpy()
    is_member = [True] * members + [False] * non_members
    folds = sklearn.model_selection.StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    right = sklearn.model_selection.cross_val_score(attack, entropies, is_member, cv=folds, scoring="balanced_accuracy")
    called = int(attack.fit(entropies, is_member).predict(found["forget"][:, None].numpy()).sum())
    items = len(found["forget"])
    interval = scipy.stats.binomtest(called, items).proportion_ci(0.95, method="wilson")
    return MembershipInference(
        share=called / items,
        low=float(interval.low),
        high=float(interval.high),
        accuracy=float(right.mean()),
        forget_items=items,
        members=members,
        non_members=non_members,
    )


def _entropies(
    model: Any, corpora: Mapping[str, Any], seed: int, batch_tokens: int, progress: bool
) -> dict[str, Float[torch.Tensor, " item"]]:
    """By corpus, the mean entropy of the output for each item: an image, a document, or a row that is of none."""

    def entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.special.entr(logits.softmax(dim=-1)).sum(dim=-1)

    found = {}
    with tqdm(desc="membership", unit=" predictions", disable=not progress) as bar:
        for name, corpus in corpora.items():
            nats = sums_by_item(model, corpus, entropy, seed=seed, batch_tokens=batch_tokens, bar=bar)
            found[name] = nats.sums / nats.counts
    return found
