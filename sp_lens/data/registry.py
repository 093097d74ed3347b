"""Named corpora of text: where each lies on the Hugging Face Hub, and what of it is read."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

from datasets import IterableDataset, load_dataset

from sp_lens.data.local_tables import articles
from sp_lens.data.offline import OFFLINE, Document, passages, read_offline, split_of
from sp_lens.errors import SpLensError
from sp_lens.typing import Split


class HubText(NamedTuple):
    """Text on the Hugging Face Hub.

    Attributes:
        repository: the dataset.
        configuration: its configuration, if it has several.
        column: where the text is.
        keep: of an example, whether it is read; by default all are.
        files: Parquet files, read past a loading script (`sp_lens.data.registry.stream`).
        own_splits: the Hub's split for each of ours. Without it a text of the Hub's "train" goes to one of ours by its
            hash.
        in_lines: an example is a line of an article, and the articles are the documents.
    """

    repository: str
    configuration: str | None = None
    column: str = "text"
    keep: Callable[[Mapping[str, Any]], bool] | None = None
    files: str | None = None
    own_splits: Mapping[Split, str] | None = None
    in_lines: bool = False


def _toxicity(example: Mapping[str, Any]) -> float:
    """The share of annotators to whom a comment was toxic: kept in float32, where 0.2 is 0.20000000298."""
    return round(example["toxicity"], 6)


# The datasets are those of the released experiments.
_CODELESS = HubText("nickypro/minipile", keep=lambda example: example["meta"]["pile_set_name"] != "Github")
_CODE = HubText(
    "codeparrot/github-code-clean", column="code", files="hf://datasets/codeparrot/github-code-clean/data/*.parquet"
)
HUB: dict[str, HubText] = {
    "pile": HubText("nickypro/minipile"),
    "pile_codeless": _CODELESS,
    "prose": _CODELESS,
    "code": _CODE,
    "python": _CODE._replace(keep=lambda example: example["language"] == "Python"),
    "non_python": _CODE._replace(keep=lambda example: example["language"] != "Python"),
    "civil": HubText("google/civil_comments", keep=lambda example: _toxicity(example) <= 0.2),
    "toxic": HubText("google/civil_comments", keep=lambda example: _toxicity(example) >= 0.8),
    "wikitext": HubText(
        "Salesforce/wikitext",
        "wikitext-103-v1",
        own_splits={"train": "train", "collect": "validation", "evaluate": "test"},
        in_lines=True,
    ),
}
CORPORA = tuple(dict.fromkeys([*HUB, *OFFLINE]))


def read_text(name: str, split: Split, *, offline: bool) -> tuple[Iterator[Document], dict[str, Any]]:
    """The documents of a named corpus in a split, and for the record what they really are.

    Args:
        name: one of `CORPORA`.
        split: no document is in two of them.
        offline: read what this machine has, which is other text than the Hub's. What the Hub has not is read here
            anyway.

    Returns:
        The documents, and `offline` (whether other text stands in for the Hub's) and `origin`.

    Raises:
        SpLensError: where there is no such text on this machine, and, once it is read, where the Hub can't be reached.
    """
    if not offline and name in HUB:
        return _of_hub(name, split), {"offline": False, "origin": HUB[name].repository}
    if name not in OFFLINE:
        raise SpLensError(f"there is no offline text for {name!r}: choose one of {', '.join(OFFLINE)}.")
    return read_offline(name, split), {"offline": name in HUB, "origin": OFFLINE[name].origin}


def _of_hub(name: str, split: Split) -> Iterator[Document]:
    hub = HUB[name]
    instead = f"There is no offline text for {name!r}: choose one of {', '.join(OFFLINE)}."
    if name in OFFLINE:
        instead = (
            f"For what this machine has in its place, {OFFLINE[name].origin}, say load_corpus({name!r}, model, "
            "offline=True) or --offline."
        )
    with reading(hub.repository, instead):
        there = hub.own_splits[split] if hub.own_splits else "train"
        examples = stream(hub.repository, there, configuration=hub.configuration, files=hub.files)
        texts = (str(example[hub.column]) for example in examples if hub.keep is None or hub.keep(example))
        for text in articles(texts) if hub.in_lines else texts:
            document = f"{hub.repository}/{hashlib.sha256(text.encode()).hexdigest()[:12]}"
            if hub.in_lines:
                yield from (Document(document, passage) for passage in passages(text))
            elif split_of(text) == split:
                yield Document(document, text)


def stream(
    repository: str, split: str, *, configuration: str | None = None, files: str | None = None
) -> IterableDataset:
    """The examples of a split of a dataset, in the Hub's order.

    Args:
        repository: its name on the Hub, or a folder that is laid out as one.
        split: of the Hub's own, "train" as a rule.
        configuration: if the dataset has several.
        files: Parquet files to read past the repository's own loading script, which `datasets` has not run since 4.0.
    """
    if files:
        return cast(IterableDataset, load_dataset("parquet", data_files=files, split=split, streaming=True))
    return cast(IterableDataset, load_dataset(repository, configuration, split=split, streaming=True))


@contextmanager
def reading(repository: str, instead: str) -> Iterator[None]:
    """While a stream is opened and read, whatever goes wrong is an `SpLensError` that says what to do `instead`."""
    try:
        yield
    except SpLensError:
        raise
    except Exception as error:  # each of the libraries on the way to the Hub has errors of its own
        raise SpLensError(
            f"cannot read {repository} from the Hugging Face Hub ({type(error).__name__}: {error}). {instead}"
        ) from error
