"""Measure the time of a pruning step and of ablation effects relative to forward passes."""

from dataclasses import replace
from typing import Any

import sp_lens as sp
from benchmarks.subjects import Subject
from benchmarks.timing import Row, Target, medians


def steps(subject: Subject, *, repeats: int) -> list[Row]:
    """Measure one step of `prune` relative to the forward passes over the same rows that it needs."""
    corpora = ("forget", "retain", "eval_forget", "eval_retain")
    options: dict[str, Any] = {"batch_tokens": subject.batch_tokens, "progress": False}
    quarters = {name: subject.batches[index::4] for index, name in enumerate(corpora)}
    # A step collects on two quarters of the batches and evaluates on the others. They are also evaluated before it.
    evaluated = [*quarters["eval_forget"], *quarters["eval_retain"]]
    evaluation = replace(subject, batches=[*evaluated, *evaluated])
    collection = replace(subject, batches=[*quarters["forget"], *quarters["retain"]])
    seconds = medians(
        {
            "passes": lambda: (evaluation.with_head(), collection.without_head()),
            "hooked passes": lambda: (evaluation.hooked_with_head(), collection.with_hooks()),
            "step": lambda: sp.prune(subject.model, **quarters, fraction=0.02, steps=1, **options),
        },
        repeats=repeats,
    )
    return [
        Row(subject.name, "`prune`, one step and the evaluation before it",
            "seconds relative to the bare forward passes that it needs",
            seconds["step"] / seconds["passes"], Target("at most", 1.1),
            f"{seconds['step']:.2f} s to collect on two corpora and to evaluate on two corpora twice"),
        Row(subject.name, "`prune`, one step and the evaluation before it",
            "seconds relative to the same passes in TransformerLens",
            seconds["step"] / seconds["hooked passes"]),
    ]  # fmt: skip


def effects(subject: Subject, *, repeats: int) -> list[Row]:
    """Measure `ablation_effect` of every head relative to one forward pass per head."""
    one_row = replace(subject, batches=[subject.batches[0][:1]])
    heads = sum(group.heads for group in sp.layout_of(subject.model).select("attn"))
    seconds = medians(
        {
            "forward": one_row.with_head,
            "hooked": one_row.hooked_with_head,
            "effects": lambda: sp.ablation_effect(
                one_row.model, one_row.batches, batch_tokens=one_row.batch_tokens, progress=False
            ),
        },
        repeats=repeats,
    )
    return [
        Row(subject.name, "`ablation_effect` of every head",
            f"seconds relative to {heads} bare forward passes over one row",
            seconds["effects"] / (heads * seconds["forward"]), Target("at most", 0.6)),
        Row(subject.name, "`ablation_effect` of every head",
            f"seconds relative to {heads} forward passes in TransformerLens over one row",
            seconds["effects"] / (heads * seconds["hooked"])),
    ]  # fmt: skip
