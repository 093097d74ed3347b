"""The four corpora of a pruning run: two to collect from, and held-out data of both.

`sp_lens.data.sources.registry` lists the named corpora, and `sp_lens.data.sources.offline.split_of` assigns documents
to splits.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from datasets import Dataset

from sp_lens.data.sources.registry import CORPORA
from sp_lens.data.text import load_corpus
from sp_lens.errors import check_choice
from sp_lens.typing import Split


@dataclass(frozen=True, eq=False)
class Corpora(Mapping[str, Any]):
    """The corpora that `prune` and the methods of `sp_lens.unlearning` take: `prune(model, **corpora)`.

    A corpus is what `load_corpus` or `load_images` returns, a list of strings, or a list of batches.

    Attributes:
        forget: Data to collect from, whose capability is removed.
        retain: Data to collect from, whose capability is kept.
        eval_forget: Held-out data of the forget corpus.
        eval_retain: Held-out data of the retain corpus.
    """

    forget: Any
    retain: Any
    eval_forget: Any
    eval_retain: Any

    def __getitem__(self, name: str) -> Any:
        if name not in self.__dataclass_fields__:
            raise KeyError(name)
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return (field.name for field in fields(self))

    def __len__(self) -> int:
        return len(fields(self))


def load_corpora(forget: str, retain: str, model: Any, *, tokens: int = 100_000, offline: bool = False) -> Corpora:
    """Load the four corpora of a pruning run from two named corpora: `prune(model, **load_corpora(...))`.

    Args:
        forget: Name of the corpus to forget, see `load_corpus`.
        retain: Name of the corpus to retain.
        model: Model whose tokenizer reads the text.
        tokens: Number of tokens of each of the four corpora.
        offline: Whether to read offline text instead of the Hub's, see `load_corpus`.

    Returns:
        `forget` and `retain` from the split "collect", `eval_forget` and `eval_retain` from the split "evaluate".

    Raises:
        SpLensError: If a name is not a named corpus, or if `load_corpus` raises it. Files and lists of strings have no
            splits: load their held-out text with `load_corpus`.
    """
    for source in (forget, retain):
        check_choice("corpus with held-out text", source, CORPORA)

    def load(source: str, split: Split) -> Dataset:
        return load_corpus(source, model, tokens=tokens, split=split, offline=offline)

    return Corpora(
        forget=load(forget, "collect"),
        retain=load(retain, "collect"),
        eval_forget=load(forget, "evaluate"),
        eval_retain=load(retain, "evaluate"),
    )
