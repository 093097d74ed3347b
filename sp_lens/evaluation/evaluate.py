"""Evaluate a model on a corpus: accuracy, loss and perplexity on next tokens, masked tokens or image classes."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from tqdm.auto import tqdm

from sp_lens import distributed
from sp_lens.data.batch import AnyBatch
from sp_lens.data.batching import BatchStream, reusable
from sp_lens.data.rows import rows
from sp_lens.errors import check_at_least, check_shares
from sp_lens.evaluation.predictions import losses, nothing_to_predict, predictions_by_row
from sp_lens.models.forward import inference
from sp_lens.models.task import reads_images, require_task
from sp_lens.storage.schema import Int64
from sp_lens.storage.serialization import load_values, write_json
from sp_lens.typing import BATCH_TOKENS, SIDES, Side

TOP_K = 10
SKIPPED_TOKENS = 50


@dataclass(frozen=True)
class Evaluation:
    """Accuracy and loss of a model on the counted tokens of a corpus, or on the classes of images.

    Attributes:
        top1: Share of tokens (images) whose own id (class) is the most likely prediction.
        top10: Share of tokens (images) whose own id (class) is among the ten most likely predictions.
        top1_skip50: `top1` over the tokens that are not among the 50 most common ones of this corpus, so that
            indentation and commas do not dominate it. NaN if there are no other tokens, and for images.
        loss: Mean cross-entropy in nats per prediction.
        perplexity: exp(loss).
        tokens: Number of predictions.
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
        """Write to a JSON file."""
        write_json(path, {"kind": "Evaluation", **asdict(self)})

    @classmethod
    def load(cls, path: str | Path) -> "Evaluation":
        """Read a file that `save` wrote.

        Raises:
            SpLensError: If the file is missing or is not an evaluation.
        """
        return load_values(path, cls)


def evaluate(
    model: Any, corpus: Any, *, seed: int = 0, batch_tokens: int = BATCH_TOKENS, progress: bool = True
) -> Evaluation:
    """Measure accuracy and loss of a model on a corpus, with active ablations applied.

    A causal language model predicts each token that is text (no padding, no special token) and has a token before it.
    A masked language model predicts 15 % of the text tokens: 80 % of these are masked, 10 % replaced by a random token,
    and 10 % kept. An image classifier predicts the class of each image. Losses and hits are summed over the corpus and
    divided once, at the end.

    With several processes (`torch.distributed`), every process makes the same call, reads its share of the batches, and
    returns the evaluation of the whole corpus.

    Args:
        model: A `TransformerBridge` or a `HookedTransformer`.
        corpus: The result of `load_corpus` or `load_images`, a list of strings, or an iterable of batches. It is read
            twice; an iterator is turned into a list.
        seed: Seed of the random choice of tokens that a masked language model predicts.
        batch_tokens: Number of tokens per batch, including padding. A batch that does not fit into memory is split.
        progress: Whether to show a progress bar.

    Raises:
        SpLensError: If the model has no trained head, the corpus cannot be read or has nothing to predict, or logits
            are NaN.
    """
    return evaluate_documents(model, corpus, seed=seed, batch_tokens=batch_tokens, progress=progress)[0]


class DocumentSums(NamedTuple):
    """Sums over the predictions of each document (or image) that has any, in the order of the corpus.

    Attributes:
        counts: Number of predictions.
        hits: Number of predictions whose target is the most likely one.
        nats: Sum of the cross-entropies.
    """

    counts: Float[torch.Tensor, " document"]
    hits: Float[torch.Tensor, " document"]
    nats: Float[torch.Tensor, " document"]

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy over all predictions."""
        return float(self.hits.sum() / self.counts.sum())

    def part(self, documents: slice) -> "DocumentSums":
        """Return the sums of some of the documents."""
        return DocumentSums(*(values[documents] for values in self))


def evaluate_documents(
    model: Any, corpus: Any, *, seed: int = 0, batch_tokens: int = BATCH_TOKENS, progress: bool = True
) -> tuple[Evaluation, DocumentSums]:
    """Return the result of `evaluate` and the sums over each document, from the same forward passes."""
    require_task(model)
    corpus = reusable(corpus)
    by_document: dict[Any, Tally] = {}
    silent = not (progress and distributed.is_main())
    with (
        distributed.fail_together() as ranks,
        inference(model),
        tqdm(desc="evaluate", unit=" predictions", disable=silent) as bar,
    ):
        common, positions = _contents(model, corpus)
        ranks.require_same(seed)
        stream = BatchStream(model, corpus, batch_tokens=batch_tokens, ranks=ranks)
        for batch, tallies in stream.map(lambda batch: _tallies(model, batch, seed, common)):
            for document, tally in zip(batch.items, tallies, strict=True):
                by_document[document] = by_document.get(document, Tally()) + tally
                bar.update(tally.tokens)
    of_ranks = distributed.gathered(by_document)
    documents = sorted({name for of_rank in of_ranks for name in of_rank}, key=lambda name: positions.get(name, name))
    tallies = [sum((of_rank.get(name, Tally()) for of_rank in of_ranks), Tally()) for name in documents]
    sums = [(tally.tokens, tally.top1, tally.nats) for tally in tallies if tally.tokens]
    return sum(tallies, Tally()).result(), DocumentSums(*torch.tensor(sums, dtype=torch.float64).unbind(dim=1))


def _tallies(model: Any, batch: AnyBatch, seed: int, common: Int[torch.Tensor, " common"]) -> "list[Tally]":
    """Score the predictions in a batch, row by row, because the logits of all rows are large and slow to copy."""
    return [Tally.from_logits(logits, targets, common) for logits, targets in predictions_by_row(model, batch, seed)]


def evaluate_sides(
    model: Any, corpora: Mapping[str, Any], **options: Any
) -> tuple[dict[str, Any], dict[Side, DocumentSums]]:
    """Evaluate both held-out corpora.

    Returns:
        The fields of the evaluations with the keys forget_top1, ..., retain_tokens, and the sums over documents.
    """
    record: dict[str, Any] = {}
    documents: dict[Side, DocumentSums] = {}
    for side in SIDES:
        result, documents[side] = evaluate_documents(model, corpora[f"eval_{side}"], **options)
        record |= {f"{side}_{key}": value for key, value in asdict(result).items()}
    return record, documents


@dataclass(frozen=True)
class Tally:
    """Sums over predictions from which an `Evaluation` is computed.

    Attributes:
        tokens: Number of predictions.
        nats: Sum of the cross-entropies.
        top1: Number of predictions whose target is the most likely one.
        top_k: Number of predictions whose target is among the ten most likely ones.
        uncommon: Number of predictions whose target is not among the 50 most common tokens.
        uncommon_top1: Number of the predictions in `uncommon` whose target is the most likely one.
    """

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
        """Score predictions.

        Args:
            logits: Float32 logits of each prediction.
            targets: Correct token of each prediction.
            common: Tokens that are left out of `uncommon`.
        """
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
        """Return the sums over the predictions of both."""
        return Tally(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def result(self) -> Evaluation:
        """Divide the sums by the number of predictions.

        Raises:
            SpLensError: If there are no predictions.
        """
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
    """Return how many tokens rank before each target; equal logits rank by token id, as with argmax."""
    target_logits = logits.gather(1, targets[:, None])
    larger = _count(torch.gt, logits, target_logits)
    tied = _count(torch.eq, logits, target_logits) > 1
    if tied.any():
        ids = torch.arange(logits.shape[1], device=logits.device)
        tied_before = (logits[tied] == target_logits[tied]) & (ids < targets[tied][:, None])
        larger[tied] += tied_before.sum(dim=1)
    return larger


def _count(
    compare: Callable[..., torch.Tensor],
    logits: Float[torch.Tensor, "token d_vocab"],
    target_logits: Float[torch.Tensor, "token 1"],
) -> Int[torch.Tensor, " token"]:
    """Count in each row the logits for which the comparison with the target's logit is true."""
    chunk_rows = 16 if logits.device.type == "cpu" else max(1, len(logits))  # 16 rows fit into the cache of a CPU
    # The comparison writes floats, which count exactly up to 2^24. Booleans take six times as long to write and to sum.
    chunks = zip(logits.split(chunk_rows), target_logits.split(chunk_rows), strict=True)
    return torch.cat([compare(rows, target, out=torch.empty_like(rows)).sum(dim=1) for rows, target in chunks]).long()


def _contents(model: Any, corpus: Any) -> tuple[Int[torch.Tensor, " common"], Mapping[Any, int]]:
    """Return the 50 most common counted tokens of a corpus, and the position of each document in the corpus.

    For an image classifier, these are all classes, and no positions: images have their positions as names.
    """
    if reads_images(model):
        return torch.arange(model.original_model.config.num_labels), {}
    counts: Counter[int] = Counter()
    positions: dict[Any, int] = {}
    for row in rows(model, corpus):
        counts.update(row.tokens[row.counted].tolist())
        positions.setdefault(row.item, len(positions))
    return most_common(counts), positions


def most_common(counts: Mapping[int, int]) -> Int[torch.Tensor, " common"]:
    """Return the 50 most common tokens, given the count of each token; equal counts rank by token id."""
    ranked = sorted(counts, key=lambda token: (-counts[token], token))
    return torch.tensor(ranked[:SKIPPED_TOKENS], dtype=torch.long)
