"""Estimate what a run costs before it starts: passes over the corpora, time and memory."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from tqdm.auto import tqdm

from sp_lens.data.batching import items
from sp_lens.data.rows import Row
from sp_lens.errors import SpLensError
from sp_lens.evaluation.evaluate import evaluate
from sp_lens.models.fused_attention import fused_attention
from sp_lens.models.hooks import layout_of
from sp_lens.models.task import patches_of, reads_images, require_task
from sp_lens.pruning.config import PruneConfig
from sp_lens.statistics.collect import collect
from sp_lens.statistics.moments import Moments
from sp_lens.typing import BATCH_TOKENS, SITES, ScoreMetric

# Number of tokens of each corpus on which the speed is measured.
TRIAL_TOKENS = 512
# Bytes that the allocator reserves per byte in use: the largest ratio measured with small models on a CPU.
ALLOCATOR_OVERHEAD = 1.7


@dataclass(frozen=True)
class CostEstimate:
    """Estimated cost of a run.

    Attributes:
        passes: Number of passes of a whole corpus through the model.
        corpora: Number of corpora.
        tokens: Number of tokens that go through the model in all passes, including special tokens. For images, number
            of positions.
        seconds: Approximate duration, from the speed of a short trial.
        model_bytes: Size of the weights and buffers on all devices.
        other_bytes: Approximate upper limit of the additional memory, for the largest batch and the statistics.

    Example:
        >>> CostEstimate(26, 4, tokens=104_000, seconds=170, model_bytes=540_000_000, other_bytes=1_200_000_000)
        26 passes over 4 corpora, 104,000 tokens in total; about 3 min; 540MB for the model and 1.20GB more
    """

    passes: int
    corpora: int
    tokens: int
    seconds: float
    model_bytes: int
    other_bytes: int

    def __repr__(self) -> str:
        read = f"{_counted(self.passes, 'pass', 'passes')} over {_counted(self.corpora, 'corpus', 'corpora')}"
        model, other = (tqdm.format_sizeof(number, "B") for number in (self.model_bytes, self.other_bytes))
        return (
            f"{read}, {self.tokens:,} tokens in total; about {duration(self.seconds)}; "
            f"{model} for the model and {other} more"
        )


def estimate_cost(
    model: Any,
    forget: Any,
    retain: Any = None,
    *,
    eval_forget: Any = None,
    eval_retain: Any = None,
    metric: ScoreMetric = "abs",
    steps: int = 50,
    recollect: bool = True,
    batch_tokens: int = BATCH_TOKENS,
) -> CostEstimate:
    """Estimate the cost of `prune` with these arguments, or of `collect` on one corpus.

    The corpora are read once, and about 500 tokens of each go through the model twice, by `collect` or `evaluate`,
    whichever the run uses for that corpus. Steps that are already saved in the folder `out`, and steps that a stopping
    rule may skip, are not taken into account.

    Memory is computed from the shapes of the model and of the largest batch: the larger of the logits of `evaluate` and
    one block's activations, attention pattern (if it is materialised, see `fused_attention`) and float32 copies,
    multiplied by the overhead of the allocator. The result is 1.4 to 1.8 times the measured peak on a CPU for
    SmolLM2-135M, and up to 3.7 times for the bundled models.

    Args:
        model: A `TransformerBridge` or a `HookedTransformer`.
        forget: Corpus to collect statistics on. It must not be an iterator, which could not be read again by the run.
        retain: Second corpus to collect statistics on. It requires both held-out corpora.
        eval_forget: Held-out data of the forget corpus.
        eval_retain: Held-out data of the retain corpus.
        metric: Importance metric, see `prune`. For "random" nothing is collected.
        steps: Number of steps, see `prune`.
        recollect: Whether statistics are collected in every step, see `prune`.
        batch_tokens: Number of tokens per batch, including padding.

    Raises:
        SpLensError: If two or three corpora are given, a corpus cannot be read or only once, the model has no head,
            or an option is invalid.

    Example:
        >>> import sp_lens as sp
        >>> model = sp.load_model("demo")
        >>> corpora = sp.load_corpora("code", "prose", model, tokens=1_000, offline=True)
        >>> sp.estimate_cost(model, **corpora, steps=8).passes
        34
    """
    corpora = {"forget": forget, "retain": retain, "eval_forget": eval_forget, "eval_retain": eval_retain}
    given = {name: corpus for name, corpus in corpora.items() if corpus is not None}
    if given.keys() == {"forget"}:
        return estimate_passes(model, given, Counter(forget=1), batch_tokens=batch_tokens)
    if missing := corpora.keys() - given.keys():
        raise SpLensError(
            f"missing {' and '.join(sorted(missing))}: pass the four corpora of prune, as in "
            "sp.estimate_cost(model, **load_corpora(...)), or one corpus for collect, as in "
            "sp.estimate_cost(model, corpus)."
        )
    require_task(model)
    config = PruneConfig(metric=metric, steps=steps, recollect=recollect, batch_tokens=batch_tokens)
    passes = passes_of(config.steps, metric=config.metric, recollect=config.recollect)
    return estimate_passes(model, corpora, passes, batch_tokens=config.batch_tokens)


def passes_of(steps: int, *, metric: ScoreMetric = "abs", recollect: bool = True) -> Counter[str]:
    """Return how many times `prune` reads each corpus.

    Example:
        >>> passes_of(8, recollect=False)
        Counter({'eval_forget': 9, 'eval_retain': 9, 'forget': 1, 'retain': 1})
    """
    collected = 0 if metric == "random" else steps if recollect else 1
    return Counter(forget=collected, retain=collected, eval_forget=steps + 1, eval_retain=steps + 1)


def estimate_passes(
    model: Any, corpora: Mapping[str, Any], passes: Counter[str], *, batch_tokens: int = BATCH_TOKENS
) -> CostEstimate:
    """Estimate the cost of a number of passes over each corpus.

    Args:
        model: A `TransformerBridge` or a `HookedTransformer`.
        corpora: Corpora by name. Those with a name that begins with "eval_" are read by `evaluate`, the others by
            `collect`.
        passes: Number of passes over each corpus, by its name. A corpus without passes is not read.
        batch_tokens: Number of tokens per batch, including padding.
    """
    readings = {name: _read(model, name, corpus) for name, corpus in corpora.items() if passes[name]}
    collected = [name for name in readings if not name.startswith("eval_")]
    evaluated = [name for name in readings if name.startswith("eval_")]
    seconds = 0.0
    for function, names in ((collect, collected), (evaluate, evaluated)):
        if names:
            per_token = _seconds_per_token(function, model, [readings[name] for name in names], batch_tokens)
            seconds += sum(
                passes[name] * (readings[name].tokens * per_token + readings[name].seconds) for name in names
            )
    batch_bytes = max(
        _batch_bytes(
            model,
            longest=reading.longest,
            positions=min(max(batch_tokens, reading.longest), reading.rows * reading.longest),
            evaluated=name in evaluated,
        )
        for name, reading in readings.items()
    )
    return CostEstimate(
        passes=sum(passes[name] for name in readings),
        corpora=len(readings),
        tokens=sum(passes[name] * reading.tokens for name, reading in readings.items()),
        seconds=seconds,
        model_bytes=sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())),
        other_bytes=round(ALLOCATOR_OVERHEAD * batch_bytes) + _statistics_bytes(model, len(collected)),
    )


class _Reading(NamedTuple):
    """Size of a corpus, the time to read it without the model, and the first items, on which the speed is measured."""

    rows: int
    tokens: int
    longest: int
    seconds: float
    trial: list[Any]
    trial_tokens: int


def _read(model: Any, name: str, corpus: Any) -> _Reading:
    if isinstance(corpus, Iterator):
        raise SpLensError(f"the corpus {name!r} is an iterator, which the run could not read again: make it a list.")
    per_image = sum(patches_of(model)) if reads_images(model) else 0
    sample = corpus
    # Decoding images is slow, and each image has the same number of patches, so a few of them are enough.
    if per_image and hasattr(corpus, "select"):
        sample = corpus.select(range(min(len(corpus), -(-TRIAL_TOKENS // per_image))))
    rows = tokens = longest = trial_tokens = 0
    trial: list[Any] = []
    started = time.perf_counter()
    for item in items(model, sample):
        length = len(item.tokens) if isinstance(item, Row) else per_image
        if trial_tokens < TRIAL_TOKENS:
            trial.append(item.tokens if isinstance(item, Row) else {"pixel_values": item.pixels, "labels": item.label})
            trial_tokens += length
        rows, tokens, longest = rows + 1, tokens + length, max(longest, length)
    seconds = time.perf_counter() - started
    scale = 1 if sample is corpus else len(corpus) / len(sample)
    return _Reading(round(rows * scale), round(tokens * scale), longest, seconds * scale, trial, trial_tokens)


def _seconds_per_token(
    function: Callable[..., Any], model: Any, readings: Sequence[_Reading], batch_tokens: int
) -> float:
    trial = [item for reading in readings for item in reading.trial]
    function(model, trial, batch_tokens=batch_tokens, progress=False)  # a warm-up, which is slower
    started = time.perf_counter()
    function(model, trial, batch_tokens=batch_tokens, progress=False)
    return (time.perf_counter() - started) / sum(reading.trial_tokens for reading in readings)


def _batch_bytes(model: Any, *, longest: int, positions: int, evaluated: bool) -> int:
    """Return the bytes in use, at most, while a batch is in the model.

    Args:
        model: A `TransformerBridge` or a `HookedTransformer`.
        longest: Number of tokens in the longest row.
        positions: Number of positions in the batch, including padding.
        evaluated: Whether the model computes logits.
    """
    layout = layout_of(model)
    stored = next(model.parameters()).element_size()
    reduced = max(4, stored)  # statistics are reduced in float32 or better
    widest = sum(max((group.width for group in layout if group.site == site), default=0) for site in SITES)
    with fused_attention(model) as fused:
        patterns = 1 if fused else max(group.heads for group in layout)
    # One block: its neurons before and after the activation function, gated or not, and the copies that the hooks make;
    # and the attention scores before and after the mask and the softmax, or, with fused attention, the mask alone.
    block = positions * (8 * widest + 4 * patterns * longest) * reduced
    if not evaluated or reads_images(model):
        return block
    # The logits of all rows; and for one row, float32 logits (4), whether each is above the target's logit (1), and the
    # integers in which torch sums these (8).
    return max(block, model.cfg.d_vocab * (positions * stored + longest * (4 + 1 + 8)))


def _statistics_bytes(model: Any, corpora: int) -> int:
    """Return the size of the statistics of each corpus, of one batch, and of the merged statistics."""
    per_neuron = sum(tensor.nbytes for tensor in Moments.from_activations(torch.zeros(1, 1)).tensors().values())
    return (corpora + 2) * per_neuron * layout_of(model).neurons


def duration(seconds: float) -> str:
    """Format a duration for people.

    Example:
        >>> duration(42), duration(600), duration(9000)
        ('42 s', '10 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _counted(number: int, singular: str, plural: str) -> str:
    return f"{number:,} {singular if number == 1 else plural}"
