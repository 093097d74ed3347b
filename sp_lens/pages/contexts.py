"""The contexts in which a neuron is most active, as parts of a page."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from sp_lens.pages.page import Context, ContextList, Details, Paragraph, Part, Section, Token

if TYPE_CHECKING:
    from sp_lens.statistics.top_examples import Example

CONTEXTS_SHOWN = 5  # per corpus; the reader opens the others


def context_parts(examples: "Mapping[str, Sequence[Example]]", anchor: str) -> list[Part]:
    """Return the contexts of one neuron, a section per corpus.

    Args:
        examples: Mapping from corpus labels to the examples of the neuron, strongest first. The colours of all corpora
            share one scale, which ends at the largest absolute activation.
        anchor: Prefix of the anchors of the sections.
    """
    largest = max((abs(example.value) for listed in examples.values() for example in listed), default=0.0)
    explanation = (
        "Tokens are orange where z is above 0 and blue where z is below 0. The colour is strongest at |z| = "
        f"{largest:.3g}. The token with the largest |z| has a frame. BOS and the first token of a row are not counted. "
        "↵ stands for a line break and ⇥ for a tab."
    )
    if any("" in example.texts for listed in examples.values() for example in listed):
        explanation += (
            " A character that is split among tokens has a stripe for each of them, from left to right, and shows "
            "their bytes when the pointer is over it."
        )
    sections = [
        Section(label, f"{anchor}-{index}", _context_lists(listed, largest))
        for index, (label, listed) in enumerate(examples.items())
    ]
    return [Paragraph(explanation, is_note=True), *sections]


def _context_lists(examples: "Sequence[Example]", largest: float) -> list[Part]:
    if not examples:
        return [Paragraph("This corpus has no token that is counted.")]
    contexts = [_context(example, largest) for example in examples]
    parts: list[Part] = [ContextList(contexts[:CONTEXTS_SHOWN])]
    if more := contexts[CONTEXTS_SHOWN:]:
        parts.append(Details(f"{len(more)} more", [ContextList(more, start=CONTEXTS_SHOWN + 1)]))
    return parts


def _context(example: "Example", largest: float) -> Context:
    document = example.document or f"row {example.row}"
    source = f"z = {example.value:.3g} · {document}, token {example.position}"
    return Context(source, list(_tokens(example, largest)))


def _tokens(example: "Example", largest: float) -> Iterable[Token]:
    """Yield the tokens of a context; those that share a character are one item."""
    group: list[int] = []
    for index, text in enumerate(example.texts):
        group.append(index)
        if text or index == len(example.texts) - 1:
            yield _token(example, text, group, largest)
            group = []


def _token(example: "Example", text: str, group: Sequence[int], largest: float) -> Token:
    activations = [example.activations[index] for index in group]
    if all(map(math.isnan, activations)):  # the positions are not counted
        return Token(text, example.peak in group, shades=(), label="")
    shares = [min(1.0, abs(z) / largest) if largest and not math.isnan(z) else 0.0 for z in activations]
    shades = [
        ("positive" if z > 0 else "negative", f"{share:.2f}") for z, share in zip(activations, shares, strict=True)
    ]
    labels = ["not counted" if math.isnan(z) else f"z = {z:.3g}" for z in activations]
    if len(group) > 1:
        labels = [f"{example.tokens[index]}: {label}" for index, label in zip(group, labels, strict=True)]
    return Token(text, example.peak in group, shades, "; ".join(labels))
