"""What pruning and the effects of ablation cost, in forward passes."""

from typing import Any

import sp_lens as sp
from benchmarks.subjects import Subject
from benchmarks.timing import Row, Target, medians


def steps(subject: Subject, *, repeats: int) -> list[Row]:
    """One step of `prune`, and a pruned model, by the bare forward passes over the same rows."""
    corpora = ("forget", "retain", "eval_forget", "eval_retain")
    options: dict[str, Any] = {"batch_tokens": subject.batch_tokens, "progress": False}
    shares = {name: subject.batches[place::4] for place, name in enumerate(corpora)}
    # A step collects on two quarters of the batches and evaluates on the others, as is done before the first.
    evaluated = [*shares["eval_forget"], *shares["eval_retain"]]
    asked = Subject(subject.name, subject.model, subject.plain, [*evaluated, *evaluated])
    collected = Subject(subject.name, subject.model, subject.plain, [*shares["forget"], *shares["retain"]])
    seconds = medians(
        {
            "passes": lambda: (asked.with_head(), collected.without_head()),
            "hooked passes": lambda: (asked.hooked_with_head(), collected.with_hooks()),
            "step": lambda: sp.prune(subject.model, **shares, fraction=0.02, steps=1, **options),
        },
        repeats=repeats,
    )
    return [
        Row(subject.name, "`prune`, one step and the evaluation before it", "seconds of the bare passes it asks for",
            seconds["step"] / seconds["passes"], Target("at most", 1.1),
            f"{seconds['step']:.2f} s for two corpora collected and two evaluated twice"),
        Row(subject.name, "`prune`, one step and the evaluation before it", "seconds of TransformerLens' own passes",
            seconds["step"] / seconds["hooked passes"]),
    ]  # fmt: skip


def effects(subject: Subject, *, repeats: int) -> list[Row]:
    """Definition 3 by ablation, of every head, by the forward passes that one head at a time would take."""
    few = Subject(subject.name, subject.model, subject.plain, [subject.batches[0][:1]])
    heads = sum(group.heads for group in sp.layout_of(subject.model).select("attn"))
    seconds = medians(
        {
            "forward": few.with_head,
            "hooked": few.hooked_with_head,
            "effects": lambda: sp.ablation_effect(
                few.model, few.batches, batch_tokens=few.batch_tokens, progress=False
            ),
        },
        repeats=repeats,
    )
    return [
        Row(subject.name, "`ablation_effect` of every head", f"seconds of {heads} bare forward passes over a row",
            seconds["effects"] / (heads * seconds["forward"]), Target("at most", 0.6)),
        Row(subject.name, "`ablation_effect` of every head", f"seconds of {heads} of TransformerLens' own passes",
            seconds["effects"] / (heads * seconds["hooked"])),
    ]  # fmt: skip
