"""Model + corpus -> next-token accuracy, loss, perplexity."""

import math
from collections import Counter
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from tqdm.auto import tqdm

from sp_lens.batches import Batch, batches
from sp_lens.collect import BATCH_TOKENS
from sp_lens.errors import SpLensError
from sp_lens.models import forward, inference, require_causal
from sp_lens.rows import rows
from sp_lens.storage import read_json, write_json

TOP_K = 10
SKIPPED_TOKENS = 50


@dataclass(frozen=True)
class Evaluation:
    """How well a causal model predicts the counted tokens of a corpus.

    Attributes:
        top1: share of tokens that were the most likely prediction.
        top10: share that were among the ten most likely.
        top1_skip50: top1 over the tokens that are not among the 50 most common ones of this corpus, so
            that indentation and commas don't carry it; NaN where there are no others.
        loss: mean cross-entropy, nats per token.
        perplexity: exp(loss).
        tokens: how many predictions were judged.
    """

    top1: float
    top10: float
    top1_skip50: float
    loss: float
    perplexity: float
    tokens: int

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        write_json(path, {"kind": "Evaluation", **asdict(self)})

    @classmethod
    def load(cls, path: str | Path) -> "Evaluation":
        """Read what `save` wrote.

        Raises:
            SpLensError: when the file is missing or is no evaluation.
        """
        values = read_json(path)
        if not isinstance(values, dict) or values.pop("kind", None) != "Evaluation":
            raise SpLensError(f"{path} is not an Evaluation that sp_lens saved.")
        if set(values) != {field.name for field in fields(cls)}:
            raise SpLensError(f"{path} is not an Evaluation that sp_lens saved.")
        return cls(**values)


def evaluate(model: Any, corpus: Any, *, batch_tokens: int = BATCH_TOKENS, progress: bool = True) -> Evaluation:
    """Next-token accuracy and loss of a causal model, ablations in force included.

    A token counts when it is real text (no padding, no special token) with a token before it. Sums of
    nats and of hits are divided once, at the end.

    Args:
        model: a bridge or a `HookedTransformer`.
        corpus: what `load_corpus` returns, a list of strings, or an iterable of batches; read twice.
        batch_tokens: tokens in a batch, padding included.
        progress: show a bar.

    Raises:
        SpLensError: for a model that is not causal, a corpus that can't be read or has nothing to predict,
            and for logits that are NaN.
    """
    require_causal(model)
    corpus = reusable(corpus)
    common = _common_tokens(model, corpus)
    tally = _Tally()
    with inference(model), tqdm(desc="evaluate", unit=" tokens", disable=not progress) as bar:
        for batch in batches(model, corpus, batch_tokens=batch_tokens):
            before = tally.tokens
            tally.add(*predictions(forward(model, batch), batch), common)
            bar.update(tally.tokens - before)
    return tally.result()


def reusable(corpus: Any) -> Any:
    """The corpus, or a list of it where it could be gone through only once."""
    return list(corpus) if hasattr(corpus, "__next__") else corpus


def predictions(
    logits: Float[torch.Tensor, "row pos d_vocab"], batch: Batch
) -> tuple[Float[torch.Tensor, "token d_vocab"], Int[torch.Tensor, " token"]]:
    """The float32 logits before each counted token that has one before it, and those tokens."""
    target = batch.counted[:, 1:].to(logits.device)
    return logits[:, :-1][target].float(), batch.tokens[:, 1:].to(logits.device)[target]


def losses(
    logits: Float[torch.Tensor, "token d_vocab"], targets: Int[torch.Tensor, " token"]
) -> Float[torch.Tensor, " token"]:
    """Cross-entropy in nats of each prediction.

    Raises:
        SpLensError: when a logit is NaN.
    """
    nats = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    if nats.isnan().any():
        raise SpLensError("the model's logits are NaN: load it in float32 or bfloat16, or find the broken weight.")
    return nats


@dataclass
class _Tally:
    tokens: int = 0
    nats: float = 0.0
    top1: int = 0
    top_k: int = 0
    uncommon: int = 0
    uncommon_top1: int = 0

    def add(
        self,
        logits: Float[torch.Tensor, "token d_vocab"],
        targets: Int[torch.Tensor, " token"],
        common: Int[torch.Tensor, " common"],
    ) -> None:
        ranks = _ranks(logits, targets)
        uncommon = ~torch.isin(targets, common.to(targets.device))
        self.tokens += len(targets)
        self.nats += float(losses(logits, targets).double().sum())
        self.top1 += int((ranks == 0).sum())
        self.top_k += int((ranks < TOP_K).sum())
        self.uncommon += int(uncommon.sum())
        self.uncommon_top1 += int((uncommon & (ranks == 0)).sum())

    def result(self) -> Evaluation:
        if not self.tokens:
            raise SpLensError("nothing to predict: no row of the corpus has a counted token with another before it.")
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
    ids = torch.arange(logits.shape[1], device=logits.device)
    ahead = (logits > own) | ((logits == own) & (ids < targets[:, None]))
    return ahead.sum(dim=1)


def _common_tokens(model: Any, corpus: Any) -> Int[torch.Tensor, " common"]:
    counts: Counter[int] = Counter()
    for row in rows(model, corpus):
        counts.update(row.tokens[row.counted].tolist())
    ranked = sorted(counts, key=lambda token: (-counts[token], token))
    return torch.tensor(ranked[:SKIPPED_TOKENS], dtype=torch.long)
