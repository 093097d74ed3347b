"""Measure the time of `collect` relative to the forward pass that it consists of."""

from typing import Any

import sp_lens as sp
from benchmarks.peer import peer_ratio
from benchmarks.subjects import Subject
from benchmarks.timing import Row, Target, medians
from sp_lens.typing import SITES


def passes(subject: Subject, *, repeats: int, gpu: bool = False) -> list[Row]:
    """Compare `collect` with forward passes of transformers and TransformerLens."""
    options = {"batch_tokens": subject.batch_tokens, "progress": False}
    first = sp.collect(subject.model, subject.batches[:1], **options)
    edges: Any = {site: first.edges(site) for site in SITES}
    seconds = medians(
        {
            "with LM head": subject.with_head,
            "without LM head": subject.without_head,
            "with empty hooks": subject.with_hooks,
            "run_with_cache": subject.by_cache,
            "collect": lambda: sp.collect(subject.model, subject.batches, **options),
            "with histograms": lambda: sp.collect(subject.model, subject.batches, edges=edges, **options),
        },
        repeats=repeats,
    )
    with_head, without_head = seconds["with LM head"], seconds["without LM head"]
    speeds = ", ".join(f"{name} {subject.tokens / median:,.0f}" for name, median in seconds.items())
    return [
        Row(subject.name, "`collect`, both sites, all metrics",
            "tokens/s relative to the bare forward pass with LM head",
            with_head / seconds["collect"], Target("at least", 0.95 if gpu else 1.0), f"tokens/s: {speeds}"),
        Row(subject.name, "`collect`, both sites, all metrics",
            "seconds relative to the bare forward pass without LM head",
            seconds["collect"] / without_head, None if gpu else Target("at most", 1.08)),
        Row(subject.name, "`collect`, both sites, all metrics",
            "seconds relative to the same pass with hooks that do nothing",
            seconds["collect"] / seconds["with empty hooks"]),
        Row(subject.name, "`collect` with histograms of all neurons",
            "tokens/s relative to the bare forward pass with LM head",
            with_head / seconds["with histograms"], None if gpu else Target("at least", 0.8)),
        Row(subject.name, "`collect`, both sites, all metrics",
            "tokens/s relative to `run_with_cache` and four reductions",
            seconds["run_with_cache"] / seconds["collect"]),
    ]  # fmt: skip


def against_peer(subject: Subject, ratio: float, *, python: str) -> list[Row]:
    """Compare `collect` with the authors' library, each relative to the bare forward pass in its own process.

    Args:
        subject: The model and batches.
        ratio: Tokens/s of `collect` relative to the bare forward pass with LM head.
        python: The interpreter of the environment in which taker is installed.
    """
    row_tokens = subject.batches[0].shape[1]
    texts = subject.model.tokenizer.batch_decode([row for batch in subject.batches for row in batch])
    peer = peer_ratio(python, subject.folder, texts, row_tokens=row_tokens)
    pass_with_head = "the bare forward pass with LM head"
    note = f"taker 1.2.3 runs at {peer:.2f} times the tokens/s of {pass_with_head}, one document at a time"
    unit = "tokens/s relative to the authors' `taker`"
    return [Row(subject.name, "`collect`, both sites, all metrics", unit, ratio / peer, Target("at least", 3), note)]
