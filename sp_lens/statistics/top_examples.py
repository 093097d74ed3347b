"""Find the contexts of a corpus in which single neurons are most active, in one streaming pass."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from sp_lens.data.batching import BatchStream, no_counted_token
from sp_lens.data.text import describe
from sp_lens.data.tokenization import tokenizer_of
from sp_lens.errors import SpLensError, check_at_least
from sp_lens.models.forward import inference
from sp_lens.models.hooks import check_mask, model_name
from sp_lens.neurons.layout import Layout, NeuronGroup
from sp_lens.neurons.mapping import ABOUT
from sp_lens.neurons.mask import NeuronMask
from sp_lens.statistics.contexts import OUTSIDE, Contexts, decode_jointly, strongest_contexts, token_text
from sp_lens.storage.schema import Int64
from sp_lens.storage.serialization import opened, save_tensors, versions
from sp_lens.typing import BATCH_TOKENS


@dataclass(frozen=True)
class Example:
    """One context in which a neuron is strongly active.

    Attributes:
        tokens: Text around the peak, one string per token, as returned by `token_text`.
        activations: Activation z of the neuron at each token; NaN at tokens that do not count (BOS and other special
            tokens, and the first token of the row).
        peak: Index into `tokens` of the strongest activation.
        row: Number of the row in the corpus, from 0.
        position: Token position of the peak in its row, from 0.
        document: Name of the row's document; None if the corpus has no document names.
        texts: Text around the peak, one string per token, decoded jointly. A character that is split among tokens is
            in the string of the last of them, and the strings of the others are empty. By default, `tokens`.
    """

    tokens: tuple[str, ...]
    activations: tuple[float, ...]
    peak: int
    row: int
    position: int
    document: str | None
    texts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.texts:
            object.__setattr__(self, "texts", self.tokens)  # the class is frozen
        if len(self.texts) != len(self.tokens):
            raise SpLensError(
                f"there are {len(self.texts)} texts and {len(self.tokens)} tokens: expected one per token."
            )
        if not 0 <= self.peak < len(self.tokens) == len(self.activations):
            raise SpLensError(
                f"the peak is token {self.peak} of {len(self.tokens)}, with {len(self.activations)} activations: "
                "expected the index of a token, and one activation per token."
            )
        check_at_least(0, row=self.row, position=self.position)

    @property
    def value(self) -> float:
        """The activation at the peak, with its sign."""
        return self.activations[self.peak]


@dataclass(frozen=True, eq=False)
class TopExamples(Mapping[str, Mapping[int, tuple[Example, ...]]]):
    """The contexts in which some neurons are most active: `examples[hook name][neuron]`, strongest first.

    Attributes:
        layout: Neuron groups of the chosen neurons.
        contexts: Examples by hook name and index of the neuron.
        about: Model, corpora, k, context and versions, saved with the examples.
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
        """Return a DataFrame with one row per token of each context.

        The columns are site, layer, head, neuron, rank (from 1), document, row, position, token, text, activation and
        peak. `token` is the token alone, and `text` its part of the jointly decoded text, as in `Example.texts`.
        `peak` is True at the strongest token, so `frame[frame["peak"]]` has one row per context.
        """
        records = []
        for name, neuron, rank, example in self._all_examples():
            group = self.layout.group(name)
            head = neuron // group.d_head if group.heads else pd.NA
            start = example.position - example.peak
            columns = zip(example.tokens, example.texts, example.activations, strict=True)
            for index, (token, text, z) in enumerate(columns):
                source = (example.document, example.row, start + index)
                records.append(
                    (group.site, group.layer, head, neuron, rank, *source, token, text, z, index == example.peak)
                )
        of_context = ["site", "layer", "head", "neuron", "rank", "document", "row"]
        frame = pd.DataFrame(records, columns=[*of_context, "position", "token", "text", "activation", "peak"])
        return frame.astype({"head": "Int64"})

    def _all_examples(self) -> Iterator[tuple[str, int, int, Example]]:
        """Yield hook name, neuron, rank and example."""
        for name, by_neuron in self.contexts.items():
            for neuron, examples in by_neuron.items():
                for rank, example in enumerate(examples, start=1):
                    yield name, neuron, rank, example

    def save(self, path: str | Path) -> None:
        """Write to a safetensors file, atomically."""
        activations = [z for _, _, _, example in self._all_examples() for z in example.activations]
        contexts = {
            name: {
                neuron: [[e.tokens, e.peak, e.row, e.position, e.document, e.texts] for e in examples]
                for neuron, examples in by_neuron.items()
            }
            for name, by_neuron in self.contexts.items()
        }
        header = {"layout": self.layout.to_json(), "about": self.about, "contexts": contexts}
        save_tensors(path, "TopExamples", {"activations": torch.tensor(activations, dtype=torch.float32)}, header)

    @classmethod
    def load(cls, path: str | Path) -> "TopExamples":
        """Read a file that `save` wrote.

        Raises:
            SpLensError: If the file is missing, truncated, not written by sp_lens, or of another kind.
        """
        saved_example = tuple[tuple[str, ...], Int64, Int64, Int64, str | None, tuple[str, ...]]
        types = {"layout": Any, "about": ABOUT, "contexts": Mapping[str, Mapping[str, Sequence[saved_example]]]}
        with opened(path, "TopExamples", types) as (tensors, header):
            layout, saved = Layout.from_json(header["layout"]), header["contexts"]
            examples = [example for by_neuron in saved.values() for kept in by_neuron.values() for example in kept]
            size = sum(len(tokens) for tokens, *_ in examples)
            if tensors["activations"].shape != (size,):
                raise SpLensError(
                    f"the file has {size} tokens and activations of the shape {tuple(tensors['activations'].shape)}: "
                    "expected one activation per token."
                )
            activations = iter(tensors["activations"].tolist())
            contexts = {
                name: {
                    _index(neuron, layout.group(name)): tuple(
                        Example(tokens, tuple(islice(activations, len(tokens))), *rest) for tokens, *rest in kept
                    )
                    for neuron, kept in by_neuron.items()
                }
                for name, by_neuron in saved.items()
            }
            return cls(layout, contexts, header["about"])

    def __repr__(self) -> str:
        neurons = sum(len(by_neuron) for by_neuron in self.contexts.values())
        return f"TopExamples({sum(1 for _ in self._all_examples())} contexts of {neurons} neurons: {self.layout})"


def _index(neuron: str, group: NeuronGroup) -> int:
    """Return the index of a neuron, which is a string in JSON."""
    if not (neuron.isascii() and neuron.isdecimal() and len(neuron) < 20 and int(neuron) < group.width):
        raise SpLensError(f"{group.name} has no neuron {neuron!r:.40}: expected a number from 0 to {group.width - 1}.")
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
    """Find the `k` contexts of a corpus in which each chosen neuron is most active, in one streaming pass.

    Strength is |z| at either site, and the sign of z is kept. Pre-out neurons and the neurons of gated MLPs act with
    either sign, and so do the importances "abs", "rms" and "std", which these contexts explain. For a neuron after a
    ReLU, the strongest context is the one with the largest z.

    Each row gives a neuron at most one context, around the first of its strongest tokens. Rows of equal strength are
    in the order of the corpus. The peak is always a token that `collect` counts. Memory grows with
    neurons * k * context, not with the corpus. Active ablations (`with ablate(...)`) apply.

    Args:
        model: A `TransformerBridge` or a `HookedTransformer` with a tokenizer.
        corpus: The result of `load_corpus`, a list of strings, or an iterable of batches.
        neurons: Chosen neurons of either site.
        k: Number of contexts per neuron; fewer if the corpus has fewer rows.
        context: Number of tokens on either side of the peak; fewer at the ends of a row.
        batch_tokens: Number of tokens per batch, including padding. A batch that does not fit into memory is split.
        progress: Whether to show a progress bar.

    Raises:
        SpLensError: If the mask is for another model or selects no neuron, `k` is below 1, the corpus cannot be read,
            or an activation is NaN or infinite.

    Example:
        >>> import sp_lens as sp
        >>> model = sp.load_model("demo")
        >>> mask = sp.NeuronMask.from_neurons(sp.layout_of(model), {"blocks.1.mlp.hook_post": [7]})
        >>> examples = sp.top_examples(model, ["def f(x):", "of the"], mask, progress=False)
        >>> [example.tokens for example in examples["blocks.1.mlp.hook_post"][7]]
        [('</s>', 'def', ' f', '(', 'x', '):'), ('</s>', 'of', ' the')]
    """
    check_mask(model, neurons)
    check_at_least(1, k=k)
    check_at_least(0, context=context)
    chosen = {g: neurons[g.name].nonzero().squeeze(1) for g in neurons.layout if neurons[g.name].any()}
    if not chosen:
        raise SpLensError(
            "the mask of neurons is empty: select at least one neuron, for example "
            "neurons=scores.top(0.01, site='mlp')."
        )
    tokenizer = tokenizer_of(model)
    strongest: dict[str, Contexts] = {}
    documents: dict[int, str | None] = {}
    stream = BatchStream(model, corpus, batch_tokens=batch_tokens)
    with inference(model), tqdm(desc="examples", unit=" tokens", disable=not progress) as bar:
        contexts_by_batch = stream.map(lambda batch: strongest_contexts(model, batch, chosen, k=k, context=context))
        for batch, batch_contexts in contexts_by_batch:
            for name, contexts in batch_contexts.items():
                strongest[name] = strongest[name].merge(contexts, k) if name in strongest else contexts
            documents |= {row.number: row.document for row in batch.rows}
            kept = {row for contexts in strongest.values() for row in contexts.row.unique().tolist()}
            documents = {row: documents[row] for row in kept}
            bar.update(int(batch.in_context.sum()))
    if not strongest:
        raise no_counted_token()
    examples = {
        group.name: {
            neuron: tuple(_examples(strongest[group.name], index, tokenizer, documents))
            for index, neuron in enumerate(neuron_indices.tolist())
        }
        for group, neuron_indices in chosen.items()
    }
    about = {"model": model_name(model), "corpora": [describe(corpus)], "k": k, "context": context}
    return TopExamples(neurons.layout, examples, {**about, "versions": versions()})


def _examples(contexts: Contexts, index: int, tokenizer: Any, documents: Mapping[int, str | None]) -> Iterator[Example]:
    """Yield the examples of the chosen neuron at `index`."""
    middle = contexts.tokens.shape[2] // 2
    for rank in range(contexts.strength.shape[1]):
        if contexts.strength[index, rank] < 0:
            continue
        inside = contexts.tokens[index, rank] != OUTSIDE
        row = int(contexts.row[index, rank])
        tokens = contexts.tokens[index, rank][inside].tolist()
        yield Example(
            tokens=tuple(token_text(tokenizer, token) for token in tokens),
            activations=tuple(contexts.z[index, rank][inside].tolist()),
            peak=int(inside[:middle].sum()),
            row=row,
            position=int(contexts.position[index, rank]),
            document=documents[row],
            texts=tuple(decode_jointly(tokenizer, tokens)),
        )
