"""Model + corpus -> accuracy, loss, perplexity: of the next token, of masked tokens, or of the classes of images."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from tqdm.auto import tqdm

from sp_lens import distributed
from sp_lens.data.batching import Batch, ImageBatch, batches, reusable
from sp_lens.data.tokenization import rows
from sp_lens.errors import check_at_least, check_shares
from sp_lens.evaluation.predictions import losses, nothing_to_predict, predictions_by_row
from sp_lens.models.forward import inference
from sp_lens.models.memory import Halving
from sp_lens.models.task import reads_images, require_task
from sp_lens.storage.schema import Int64
from sp_lens.storage.serialization import load_values, write_json
from sp_lens.typing import BATCH_TOKENS

TOP_K = 10
SKIPPED_TOKENS = 50


@dataclass(frozen=True)
class Evaluation:
    """How well a model predicts the counted tokens of a corpus, or the classes of images.

    Attributes:
        top1: share of tokens (images) whose own id (class) was the most likely prediction.
        top10: share that were among the ten most likely.
        top1_skip50: top1 over the tokens that are not among the 50 most common ones of this corpus, so
            that indentation and commas don't carry it; NaN where there are no others, and for images.
        loss: mean cross-entropy, nats per prediction.
        perplexity: exp(loss).
        tokens: how many predictions were judged.
    """

    top1: float
    top10: float
    top1_skip50: float
    loss: float
    perplexity: float
    tokens: Int64

    def __post_init__(self) -> None:
        check_shares(top1=self.top1, top10=self.top10)
        check_at_least(1, tokens=self.tokens)

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        write_json(path, {"kind": "Evaluation", **asdict(self)})

    @classmethod
    def load(cls, path: str | Path) -> "Evaluation":
        """Read what `save` wrote.

        Raises:
            SpLensError: when the file is missing or is no evaluation.
        """
        return load_values(path, cls)


def evaluate(
    model: Any, corpus: Any, *, seed: int = 0, batch_tokens: int = BATCH_TOKENS, progress: bool = True
) -> Evaluation:
    """Accuracy and loss of a model on a corpus, ablations in force included.

    A causal language model is asked for each token that is real text (no padding, no special token) with a
    token before it; a masked one for 15 % of the real tokens, of which 80 % are masked, 10 % are random ones and
    10 % stand as they are; a classifier of images for the class of each. Sums of nats and of hits are divided once,
    at the end.

    In several processes (`torch.distributed`) every one makes the same call, reads its share of the batches, and
    returns the evaluation of all.

    Args:
        model: a bridge or a `HookedTransformer`.
        corpus: what `load_corpus` or `load_images` returns, a list of strings, or an iterable of batches; read twice.
        seed: of the choice of the tokens that a masked language model is asked for; the same seed asks for the same.
        batch_tokens: tokens in a batch, padding included; a batch that memory does not hold is read in halves.
        progress: show a bar.

    Raises:
        SpLensError: for a model without a head, a corpus that can't be read or has nothing to predict,
            and for logits that are NaN.
    """
    require_task(model)
    corpus = reusable(corpus)
    tally, halving = Tally(), Halving()
    silent = not (progress and distributed.is_main())
    with (
        distributed.together() as work,
        inference(model),
        tqdm(desc="evaluate", unit=" predictions", disable=silent) as bar,
    ):
        common = _common_tokens(model, corpus)
        work.same(seed)
        for _, batch in work.dealt(batches(model, corpus, batch_tokens=batch_tokens)):
            judged = partial(_judged, model, batch, seed=seed, common=common)
            for part in halving.parts(judged, *batch.in_context.shape):
                tally += part
                bar.update(part.tokens)
    return tally.of_all_ranks().result()


def _judged(
    model: Any, batch: Batch | ImageBatch, rows: slice, *, seed: int, common: Int[torch.Tensor, " common"]
) -> "Tally":
    """What the model predicts in some rows of a batch, row by row: the logits of all are large, and copied slowly."""
    by_row = predictions_by_row(model, batch.part(rows), seed)
    return sum((Tally.from_logits(logits, targets, common) for logits, targets in by_row), Tally())


def evaluate_sides(model: Any, corpora: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """Both held-out corpora evaluated, as a run records a step: forget_top1, ..., retain_tokens."""
    sides = {side: evaluate(model, corpora[f"eval_{side}"], **options) for side in ("forget", "retain")}
    return {f"{side}_{key}": value for side, result in sides.items() for key, value in asdict(result).items()}


@dataclass(frozen=True)
class Tally:
    """The running sums that an `Evaluation` is divided out of."""

    tokens: int = 0
    nats: float = 0.0
    top1: int = 0
    top_k: int = 0
    uncommon: int = 0
    uncommon_top1: int = 0

    @classmethod
    def from_logits(
        cls,
        logits: Float[torch.Tensor, "token d_vocab"],
        targets: Int[torch.Tensor, " token"],
        common: Int[torch.Tensor, " common"],
    ) -> "Tally":
        """The predictions of a batch, judged; `common` are the tokens that skip-50 leaves out."""
        ranks = _ranks(logits, targets)
        uncommon = ~torch.isin(targets, common.to(targets.device))
        return cls(
            tokens=len(targets),
            nats=float(losses(logits, targets).double().sum()),
            top1=int((ranks == 0).sum()),
            top_k=int((ranks < TOP_K).sum()),
            uncommon=int(uncommon.sum()),
            uncommon_top1=int((uncommon & (ranks == 0)).sum()),
        )

    def __add__(self, other: "Tally") -> "Tally":
        """Of both batches."""
        return Tally(*(one + another for one, another in zip(astuple(self), astuple(other), strict=True)))

    def of_all_ranks(self) -> "Tally":
        """The sums over the batches of all ranks, added in the order of the ranks."""
        own = asdict(self)
        parts = distributed.gathered({name: torch.tensor(value, dtype=torch.float64) for name, value in own.items()})
        return Tally(**{name: type(value)(sum(part[name].item() for part in parts)) for name, value in own.items()})

    def result(self) -> Evaluation:
        """What all batches together came to."""
        if not self.tokens:
            raise nothing_to_predict()
        loss = self.nats / self.tokens
        return Evaluation(
            top1=self.top1 / self.tokens,
            top10=self.top_k / self.tokens,
            top1_skip50=self.uncommon_top1 / self.uncommon if self.uncommon else math.nan,
            loss=loss,
            perplexity=math.exp(loss) if loss < 700 else math.inf,
            tokens=self.tokens,
        )


def _ranks(
    logits: Float[torch.Tensor, "token d_vocab"], targets: Int[torch.Tensor, " token"]
) -> Int[torch.Tensor, " token"]:
    """How many tokens are likelier than the target; equal logits rank by token id, as argmax has it."""
    own = logits.gather(1, targets[:, None])
    ahead, equal = _count(torch.gt, logits, own), _count(torch.eq, logits, own)
    tied = equal > 1
    if tied.any():
        ids = torch.arange(logits.shape[1], device=logits.device)
        ahead[tied] += ((logits[tied] == own[tied]) & (ids < targets[tied][:, None])).sum(dim=1)
    return ahead


def _count(
    compare: Callable[..., torch.Tensor],
    logits: Float[torch.Tensor, "token d_vocab"],
    own: Float[torch.Tensor, "token 1"],
) -> Int[torch.Tensor, " token"]:
    """In each row, how many logits compare so with the row's own; on a CPU as many rows at a time as fit its cache."""
    at_once = 16 if logits.device.type == "cpu" else max(1, len(logits))
    # As floats, which count exactly to 2^24: to compare and to add up takes six times as long with booleans.
    rows = zip(logits.split(at_once), own.split(at_once), strict=True)
    return torch.cat([compare(some, of, out=torch.empty_like(some)).sum(dim=1) for some, of in rows]).long()


def _common_tokens(model: Any, corpus: Any) -> Int[torch.Tensor, " common"]:
    counts: Counter[int] = Counter()
    if reads_images(model):  # every class is one of the most common
        return torch.arange(model.original_model.config.num_labels)
    for row in rows(model, corpus):
        counts.update(row.tokens[row.counted].tolist())
    return most_common(counts)


def most_common(counts: Mapping[int, int]) -> Int[torch.Tensor, " common"]:
    """The 50 most common tokens; equal counts rank by token id."""
    ranked = sorted(counts, key=lambda token: (-counts[token], token))
    return torch.tensor(ranked[:SKIPPED_TOKENS], dtype=torch.long)
