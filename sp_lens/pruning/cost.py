"""What a run will take, said before it starts: passes over its corpora, time, memory."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from tqdm.auto import tqdm

from sp_lens.data.batching import items
from sp_lens.data.tokenization import Row
from sp_lens.errors import SpLensError, check_choice
from sp_lens.evaluation.evaluate import evaluate
from sp_lens.models.fused_attention import fused_attention
from sp_lens.models.hooks import layout_of
from sp_lens.models.task import patches_of, reads_images, require_task
from sp_lens.statistics.collect import collect
from sp_lens.statistics.moments import Moments
from sp_lens.typing import BATCH_TOKENS, SCORE_METRICS, SITES, ScoreMetric

# Of each corpus, what the speed is measured on.
TRIAL_TOKENS = 512
# What an allocator takes, for each byte that is in use: up to so much on a CPU, of small models.
HELD = 1.7


@dataclass(frozen=True)
class CostEstimate:
    """What a run will take.

    Attributes:
        passes: how many, each of a whole corpus through the model.
        corpora: how many there are.
        tokens: that go through the model in all passes together, special ones included; of images, positions.
        seconds: about how long, by the speed of a short trial.
        model_bytes: weights and buffers, wherever they are.
        other_bytes: at most about so many beside them, for the largest batch and the statistics.

    Example:
        >>> CostEstimate(26, 4, tokens=104_000, seconds=170, model_bytes=540_000_000, other_bytes=1_200_000_000)
        26 passes over 4 corpora, 104,000 tokens in all; about 3 min; 540MB for the model and 1.20GB beside it
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
            f"{read}, {self.tokens:,} tokens in all; about {duration(self.seconds)}; "
            f"{model} for the model and {other} beside it"
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
    """What `prune` will take with these arguments, or `collect` with one corpus alone.

    The corpora are read once, and about 500 tokens of each go through the model, twice: by `collect` or `evaluate`,
    whichever will read it. What `out` holds already, and steps that a stopping rule will save, are not known here.

    Memory is weighed by the shapes of the model and of the largest batch: the logits of `evaluate`, or one block's
    activations, attention pattern (where it is made: see `fused_attention`) and float32 copies, whichever is more, with
    room for what an allocator wastes. It comes out at 1.4 to 1.8 times the measured peak on a CPU for SmolLM2-135M, and
    up to 3.7 times for the bundled models.

    Args:
        model: a bridge or a `HookedTransformer`.
        forget: corpus to collect from; not an iterator, of which nothing would be left for the run.
        retain: the second one, and with it both held-out ones.
        eval_forget: held-out data of the forget corpus.
        eval_retain: held-out data of the retain corpus.
        metric: as of `prune`; "random" collects nothing.
        steps: as of `prune`.
        recollect: as of `prune`.
        batch_tokens: as of both.

    Raises:
        SpLensError: for two or three corpora, for one that can't be read, or only once, for a model without a head and
            for bad settings.

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
            f"no {' and no '.join(sorted(missing))}: prune reads four corpora, sp.estimate_cost(model, **corpora) with "
            "those of load_corpora, and collect one, sp.estimate_cost(model, corpus)."
        )
    require_task(model)
    check_choice("metric", metric, SCORE_METRICS)
    if steps < 1:
        raise SpLensError(f"steps={steps}: expected at least one.")
    return estimate_passes(
        model, corpora, passes_of(steps, metric=metric, recollect=recollect), batch_tokens=batch_tokens
    )


def passes_of(steps: int, *, metric: ScoreMetric = "abs", recollect: bool = True) -> Counter[str]:
    """How often `prune` reads each of its corpora.

    Example:
        >>> passes_of(8, recollect=False)
        Counter({'eval_forget': 9, 'eval_retain': 9, 'forget': 1, 'retain': 1})
    """
    collected = 0 if metric == "random" else steps if recollect else 1
    return Counter(forget=collected, retain=collected, eval_forget=steps + 1, eval_retain=steps + 1)


def estimate_passes(
    model: Any, corpora: Mapping[str, Any], passes: Counter[str], *, batch_tokens: int = BATCH_TOKENS
) -> CostEstimate:
    """What so many passes over each corpus take: by `evaluate` where its name begins with eval_, else by `collect`."""
    readings = {name: _read(model, name, corpus) for name, corpus in corpora.items() if passes[name]}
    collected = [name for name in readings if not name.startswith("eval_")]
    evaluated = [name for name in readings if name.startswith("eval_")]
    seconds = 0.0
    for run, names in ((collect, collected), (evaluate, evaluated)):
        if names:
            per_token = _seconds_per_token(run, model, [readings[name] for name in names], batch_tokens)
            seconds += sum(
                passes[name] * (readings[name].tokens * per_token + readings[name].seconds) for name in names
            )
    batch = max(
        _batch_bytes(model, one.longest, min(max(batch_tokens, one.longest), one.rows * one.longest), name in evaluated)
        for name, one in readings.items()
    )
    return CostEstimate(
        passes=sum(passes[name] for name in readings),
        corpora=len(readings),
        tokens=sum(passes[name] * reading.tokens for name, reading in readings.items()),
        seconds=seconds,
        model_bytes=sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())),
        other_bytes=round(HELD * batch) + _statistics_bytes(model, len(collected)),
    )


class _Reading(NamedTuple):
    """What one reading of a corpus tells: its size, how long reading takes, and the items that the trial is made on."""

    rows: int
    tokens: int
    longest: int
    seconds: float
    trial: list[Any]
    trial_tokens: int


def _read(model: Any, name: str, corpus: Any) -> _Reading:
    if isinstance(corpus, Iterator):
        raise SpLensError(f"corpus {name!r} can be read once only, and the run is still to read it: make it a list.")
    per_image = sum(patches_of(model)) if reads_images(model) else 0
    some = corpus
    if per_image and hasattr(corpus, "select"):  # pixels take time to make, and every image has as many patches
        some = corpus.select(range(min(len(corpus), -(-TRIAL_TOKENS // per_image))))
    rows = tokens = longest = trial_tokens = 0
    trial: list[Any] = []
    started = time.perf_counter()
    for item in items(model, some):
        length = len(item.tokens) if isinstance(item, Row) else per_image
        if trial_tokens < TRIAL_TOKENS:
            trial.append(item.tokens if isinstance(item, Row) else {"pixel_values": item.pixels, "labels": item.label})
            trial_tokens += length
        rows, tokens, longest = rows + 1, tokens + length, max(longest, length)
    seconds = time.perf_counter() - started
    times = 1 if some is corpus else len(corpus) / len(some)
    return _Reading(round(rows * times), round(tokens * times), longest, seconds * times, trial, trial_tokens)


def _seconds_per_token(run: Callable[..., Any], model: Any, readings: Sequence[_Reading], batch_tokens: int) -> float:
    trial = [item for reading in readings for item in reading.trial]
    run(model, trial, batch_tokens=batch_tokens, progress=False)  # the first is slower
    started = time.perf_counter()
    run(model, trial, batch_tokens=batch_tokens, progress=False)
    return (time.perf_counter() - started) / sum(reading.trial_tokens for reading in readings)


def _batch_bytes(model: Any, longest: int, positions: int, evaluated: bool) -> int:
    """What is in use at most while a batch of so many positions, in rows of up to `longest`, is in the model."""
    layout = layout_of(model)
    size = max(4, next(model.parameters()).element_size())  # reduced in float32
    widest = sum(max((group.width for group in layout if group.site == site), default=0) for site in SITES)
    with fused_attention(model) as fused:
        squares = 1 if fused else max(group.heads for group in layout)
    # One block: its neurons before and after the activation function, gated or not, and what the hooks make of them;
    # queries against keys, before and after the mask and the softmax, or the mask alone.
    block = positions * (8 * widest + 4 * squares * longest) * size
    if not evaluated or reads_images(model):
        return block
    # The logits of all rows; and of one row in float32, which of them are ahead of the right one, and the integers that
    # torch adds these up as.
    own = next(model.parameters()).element_size()
    return max(block, model.cfg.d_vocab * (positions * own + longest * (4 + 1 + 8)))


def _statistics_bytes(model: Any, corpora: int) -> int:
    """Of each corpus, of a batch, and of what is merged of them."""
    of_a_neuron = sum(tensor.nbytes for tensor in Moments.from_activations(torch.zeros(1, 1)).tensors().values())
    return (corpora + 2) * of_a_neuron * layout_of(model).neurons


def duration(seconds: float) -> str:
    """In words.

    Example:
        >>> duration(42), duration(600), duration(9000)
        ('42 s', '10 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _counted(number: int, one: str, more: str) -> str:
    return f"{number:,} {one if number == 1 else more}"
