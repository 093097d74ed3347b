"""What collecting costs, against the forward pass that it is made of."""

from typing import Any

import sp_lens as sp
from benchmarks.peer import peer_ratio
from benchmarks.subjects import Subject
from benchmarks.timing import Row, Target, medians
from sp_lens.typing import SITES


def passes(subject: Subject, *, repeats: int, gpu: bool = False) -> list[Row]:
    """Tokens per second as ratios: above 1 is faster than what it is held against."""
    options = {"batch_tokens": subject.batch_tokens, "progress": False}
    first = sp.collect(subject.model, subject.batches[:1], **options)
    edges: Any = {site: first.edges(site) for site in SITES}
    seconds = medians(
        {
            "with head": subject.with_head,
            "without head": subject.without_head,
            "with hooks": subject.with_hooks,
            "by cache": subject.by_cache,
            "collect": lambda: sp.collect(subject.model, subject.batches, **options),
            "histograms": lambda: sp.collect(subject.model, subject.batches, edges=edges, **options),
        },
        repeats=repeats,
    )
    with_head, without_head = seconds["with head"], seconds["without head"]
    said = ", ".join(f"{name} {subject.tokens / each:,.0f}" for name, each in seconds.items())
    return [
        Row(subject.name, "collect, both sites, all metrics", "tokens/s of the bare forward with LM head",
            with_head / seconds["collect"], Target("at least", 0.95 if gpu else 1.0), f"tokens/s: {said}"),
        Row(subject.name, "collect, both sites, all metrics", "seconds of the bare forward without it",
            seconds["collect"] / without_head, None if gpu else Target("at most", 1.08)),
        Row(subject.name, "collect, both sites, all metrics", "seconds of the same pass, hooks that do nothing",
            seconds["collect"] / seconds["with hooks"]),
        Row(subject.name, "collect with histograms of all neurons", "tokens/s of the bare forward with LM head",
            with_head / seconds["histograms"], None if gpu else Target("at least", 0.8)),
        Row(subject.name, "collect, both sites, all metrics", "tokens/s of `run_with_cache` and four reductions",
            seconds["by cache"] / seconds["collect"]),
    ]  # fmt: skip


def against_peer(subject: Subject, ratio: float, *, python: str) -> list[Row]:
    """The authors' library, by the bare forward pass in its own process as ours is by that in this one."""
    row_tokens = subject.batches[0].shape[1]
    texts = subject.model.tokenizer.batch_decode([row for batch in subject.batches for row in batch])
    theirs = peer_ratio(python, subject.folder, texts, row_tokens=row_tokens)
    note = f"taker 1.2.3 collects at {theirs:.2f} of the bare forward with LM head, one document at a time"
    against = "tokens/s of the authors' `taker`"
    return [Row(subject.name, "collect, both sites, all metrics", against, ratio / theirs, Target("at least", 3), note)]
