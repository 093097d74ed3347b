"""Where single neurons are strongest: model + corpus -> the top contexts of each, in one streaming pass."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from sp_lens.data.batching import text_batches
from sp_lens.data.text import describe
from sp_lens.data.tokenization import tokenizer_of
from sp_lens.errors import SpLensError, check_at_least
from sp_lens.models.forward import inference
from sp_lens.models.hooks import check_mask, model_name
from sp_lens.neurons.layout import Layout, NeuronGroup
from sp_lens.neurons.mapping import ABOUT
from sp_lens.neurons.mask import NeuronMask
from sp_lens.statistics.contexts import OUTSIDE, Contexts, contexts_of_batch, token_text
from sp_lens.storage.schema import Int64
from sp_lens.storage.serialization import opened, save_tensors, versions
from sp_lens.typing import BATCH_TOKENS


@dataclass(frozen=True)
class Example:
    """One context in which a neuron is strong.

    Attributes:
        tokens: the text around the peak, token by token, as `token_text` writes them.
        activations: the neuron's z at each of them; NaN at tokens that don't count (BOS and other special
            tokens, and the first token of the row).
        peak: index into `tokens` of the strongest.
        row: which row of the corpus this is, from 0.
        position: where in the row the peak is, from 0.
        document: the name of the row's document, None where the corpus does not say.
    """

    tokens: tuple[str, ...]
    activations: tuple[float, ...]
    peak: int
    row: int
    position: int
    document: str | None

    def __post_init__(self) -> None:
        if not 0 <= self.peak < len(self.tokens) == len(self.activations):
            raise SpLensError(
                f"the peak is token {self.peak} of {len(self.tokens)}, with {len(self.activations)} activations: "
                "expected one of the tokens, and an activation for each."
            )
        check_at_least(0, row=self.row, position=self.position)

    @property
    def value(self) -> float:
        """The activation at the peak, with its sign."""
        return self.activations[self.peak]


@dataclass(frozen=True, eq=False)
class TopExamples(Mapping[str, Mapping[int, tuple[Example, ...]]]):
    """The strongest contexts of some neurons: `examples[hook name][neuron]`, best first.

    Attributes:
        layout: the neuron groups that the chosen neurons are of.
        contexts: {hook name: {neuron: examples}}, of the chosen neurons.
        about: model, corpora, k, context, versions; saved with the numbers.
    """

    layout: Layout
    contexts: Mapping[str, Mapping[int, tuple[Example, ...]]]
    about: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Mapping[int, tuple[Example, ...]]:
        return self.contexts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.contexts)

    def __len__(self) -> int:
        return len(self.contexts)

    def frame(self) -> pd.DataFrame:
        """One row a token of a context: site, layer, head, neuron, rank (from 1), document, row, position, token,
        activation, and peak, True at the strongest token: `frame[frame["peak"]]` has one row a context."""
        records = []
        for name, neuron, rank, example in self._each():
            group = self.layout.group(name)
            head = neuron // group.d_head if group.heads else pd.NA
            start = example.position - example.peak
            for place, (token, z) in enumerate(zip(example.tokens, example.activations, strict=True)):
                source = (example.document, example.row, start + place)
                records.append((group.site, group.layer, head, neuron, rank, *source, token, z, place == example.peak))
        of_context = ["site", "layer", "head", "neuron", "rank", "document", "row"]
        frame = pd.DataFrame(records, columns=[*of_context, "position", "token", "activation", "peak"])
        return frame.astype({"head": "Int64"})

    def _each(self) -> Iterator[tuple[str, int, int, Example]]:
        for name, by_neuron in self.contexts.items():
            for neuron, examples in by_neuron.items():
                for rank, example in enumerate(examples, start=1):
                    yield name, neuron, rank, example

    def save(self, path: str | Path) -> None:
        """Write to a safetensors file, whole or not at all."""
        activations = [z for _, _, _, example in self._each() for z in example.activations]
        plain = {
            name: {
                neuron: [[e.tokens, e.peak, e.row, e.position, e.document] for e in found]
                for neuron, found in by.items()
            }
            for name, by in self.contexts.items()
        }
        header = {"layout": self.layout.to_json(), "about": self.about, "contexts": plain}
        save_tensors(path, "TopExamples", {"activations": torch.tensor(activations, dtype=torch.float32)}, header)

    @classmethod
    def load(cls, path: str | Path) -> "TopExamples":
        """Read what `save` wrote.

        Raises:
            SpLensError: when the file is missing, cut short, foreign, or holds something else.
        """
        one = tuple[tuple[str, ...], Int64, Int64, Int64, str | None]
        wanted = {"layout": Any, "about": ABOUT, "contexts": Mapping[str, Mapping[str, Sequence[one]]]}
        with opened(path, "TopExamples", wanted) as (tensors, header):
            layout, found = Layout.from_json(header["layout"]), header["contexts"]
            size = sum(len(tokens) for by in found.values() for kept in by.values() for tokens, *_ in kept)
            if tensors["activations"].shape != (size,):
                raise SpLensError(f"it has {size} tokens and {tuple(tensors['activations'].shape)} activations.")
            activations = iter(tensors["activations"].tolist())
            contexts = {
                name: {
                    _index(neuron, layout.group(name)): tuple(
                        Example(tokens, tuple(islice(activations, len(tokens))), *rest) for tokens, *rest in kept
                    )
                    for neuron, kept in by.items()
                }
                for name, by in found.items()
            }
            return cls(layout, contexts, header["about"])

    def __repr__(self) -> str:
        neurons = sum(len(by_neuron) for by_neuron in self.contexts.values())
        return f"TopExamples({sum(1 for _ in self._each())} contexts of {neurons} neurons: {self.layout})"


def _index(neuron: str, group: NeuronGroup) -> int:
    """The index of a neuron, which JSON has as text."""
    if not (neuron.isascii() and neuron.isdecimal() and len(neuron) < 20 and int(neuron) < group.width):
        raise SpLensError(f"{group.name} has no neuron {neuron!r:.40}: it has {group.width}.")
    return int(neuron)


def top_examples(
    model: Any,
    corpus: Any,
    neurons: NeuronMask,
    *,
    k: int = 10,
    context: int = 15,
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = True,
) -> TopExamples:
    """The `k` contexts of a corpus in which each chosen neuron is strongest, in one streaming pass.

    Strongest is the largest |z|, at either site. Pre-out neurons and those of gated MLPs work with either
    sign, and so do the importances "abs", "rms" and "std", which these contexts explain; of a ReLU neuron
    it is the largest z. The sign is kept.

    A row gives a neuron one context at most, around the first of its strongest tokens; of rows that are
    equally strong the earlier ones come first. Only tokens that `collect` counts can be the peak. Memory
    grows with neurons * k * context, not with the corpus. Ablations in force (`with ablate(...)`) are seen.

    Args:
        model: a `TransformerBridge` or a `HookedTransformer`, with a tokenizer.
        corpus: what `load_corpus` returns, a list of strings, or an iterable of batches.
        neurons: which, of either site.
        k: how many contexts; a corpus of fewer rows gives fewer.
        context: how many tokens are kept on either side of the peak; fewer at the ends of a row.
        batch_tokens: tokens in a batch, padding included.
        progress: show a bar.

    Raises:
        SpLensError: for a mask of another model or of no neuron, k below 1, a corpus that can't be read, and
            an activation that is NaN or infinite.

    Example:
        >>> import sp_lens as sp
        >>> model = sp.load_model("demo")
        >>> mask = sp.NeuronMask.from_neurons(sp.layout_of(model), {"blocks.1.mlp.hook_post": [7]})
        >>> examples = sp.top_examples(model, ["def f(x):", "of the"], mask, progress=False)
        >>> [example.tokens for example in examples["blocks.1.mlp.hook_post"][7]]
        [('</s>', 'def', ' f', '(', 'x', '):'), ('</s>', 'of', ' the')]
    """
    check_mask(model, neurons)
    for name, number, least in (("k", k, 1), ("context", context, 0)):
        if number < least:
            raise SpLensError(f"{name}={number}: expected {least} or more.")
    chosen = {g: neurons[g.name].nonzero().squeeze(1) for g in neurons.layout if neurons[g.name].any()}
    if not chosen:
        raise SpLensError(
            "the mask marks no neuron: say whose contexts you want, neurons=scores.top(0.01, site='mlp')."
        )
    tokenizer = tokenizer_of(model)
    best: dict[str, Contexts] = {}
    documents: dict[int, str | None] = {}
    with inference(model), tqdm(desc="examples", unit=" tokens", disable=not progress) as bar:
        for number, batch in enumerate(text_batches(model, corpus, batch_tokens=batch_tokens)):
            if not batch.in_context.any():
                continue  # special tokens only: nothing in it counts
            for name, found in contexts_of_batch(model, batch, number, chosen, k=k, context=context).items():
                best[name] = best[name].merge(found, k) if name in best else found
            documents |= {row.number: row.document for row in batch.rows}
            kept = {row for found in best.values() for row in found.row.unique().tolist()}
            documents = {row: documents[row] for row in kept}
            bar.update(int(batch.in_context.sum()))
    if not best:
        raise SpLensError("no token of the corpus counts: none is real text with real text before it.")
    texts = {
        token: token_text(tokenizer, token)
        for token in {token for found in best.values() for token in found.tokens.unique().tolist()} - {OUTSIDE}
    }
    contexts = {
        group.name: {
            neuron: tuple(_examples(best[group.name], place, texts, documents))
            for place, neuron in enumerate(indices.tolist())
        }
        for group, indices in chosen.items()
    }
    about = {"model": model_name(model), "corpora": [describe(corpus)], "k": k, "context": context}
    return TopExamples(neurons.layout, contexts, {**about, "versions": versions()})


def _examples(
    found: Contexts, place: int, texts: Mapping[int, str], documents: Mapping[int, str | None]
) -> Iterator[Example]:
    """The contexts of one of the chosen neurons."""
    middle = found.tokens.shape[2] // 2
    for rank in range(found.strength.shape[1]):
        if found.strength[place, rank] < 0:
            continue
        inside = found.tokens[place, rank] != OUTSIDE
        row = int(found.row[place, rank])
        yield Example(
            tokens=tuple(texts[token] for token in found.tokens[place, rank][inside].tolist()),
            activations=tuple(found.z[place, rank][inside].tolist()),
            peak=int(inside[:middle].sum()),
            row=row,
            position=int(found.position[place, rank]),
            document=documents[row],
        )
