"""Read named text corpora from the Hugging Face Hub, or their offline text.

| name             | Hugging Face Hub (default)                    | `offline=True`                               |
|------------------|-----------------------------------------------|----------------------------------------------|
| `code`           | `codeparrot/github-code-clean`                | `python` and `non_python` in turn            |
| `python`         | the same, language Python                     | Python's standard library without docstrings |
| `non_python`     | the same, all other languages                 | C and C++ headers of Python and PyTorch      |
| `pile`           | `nickypro/minipile`                           | not available                                |
| `pile_codeless`  | the same, without its part Github             | sentences from docstrings                    |
| `prose`          | another name of `pile_codeless`               | another name of `pile_codeless`              |
| `toxic`          | `google/civil_comments`, toxicity 0.8 or more | tweets labelled hate or offensive (*)        |
| `civil`          | `google/civil_comments`, toxicity 0.2 or less | tweets labelled neither (*)                  |
| `wikitext`       | `Salesforce/wikitext`, `wikitext-103-v1`      | held-out articles of WikiText-2 (*)          |
| `novels`         | not available: offline text is always read    | novels of Project Gutenberg (*)              |
| `toxic_comments` | not available: offline text is always read    | toxic comments of Civil Comments (*)         |

The datasets of the Hub are those of the released experiments. Offline text is different text of a similar kind. It is
read on request only, and results record it. Text marked (*) is read from the folder in the environment variable
SP_LENS_DATA (see `sp_lens.data.sources.local_tables`). Every installation has the other offline text (see
`sp_lens.data.sources.offline`).
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

from datasets import IterableDataset, load_dataset

from sp_lens.data.sources.local_tables import articles
from sp_lens.data.sources.offline import OFFLINE, passages, read_offline, split_of
from sp_lens.data.sources.tables import Document
from sp_lens.errors import SpLensError
from sp_lens.typing import Split


class HubText(NamedTuple):
    """A text dataset on the Hugging Face Hub.

    Attributes:
        repository: Name of the dataset.
        configuration: Name of the configuration, if the dataset has several.
        column: Name of the column of text.
        keep: Function of an example that returns whether it belongs to the corpus. None keeps all examples.
        files: Pattern of Parquet files to read instead of running the loading script of the repository.
        own_splits: Split of the Hub for each of our splits. Without it, the texts of the Hub's "train" are assigned to
            our splits by a hash.
        in_lines: Whether an example is a line of an article. The articles are then the documents.
    """

    repository: str
    configuration: str | None = None
    column: str = "text"
    keep: Callable[[Mapping[str, Any]], bool] | None = None
    files: str | None = None
    own_splits: Mapping[Split, str] | None = None
    in_lines: bool = False


def _toxicity(example: Mapping[str, Any]) -> float:
    """Return the share of annotators who called a comment toxic, stored in float32 (0.2 is 0.20000000298)."""
    return round(example["toxicity"], 6)


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
    """Return the documents of a named corpus in a split, and a record of their origin.

    Args:
        name: Name of the corpus, one of `CORPORA`.
        split: Dataset split. No document is in two splits.
        offline: Whether to read the offline text instead of the Hub's. A corpus that the Hub does not have is always
            read offline.

    Returns:
        The documents, and a record with `offline` (whether offline text was read instead of the Hub's) and `origin` (a
        description of the text).

    Raises:
        SpLensError: If there is no offline text of this name, or, when the documents are read, if the Hub is
            unreachable.
    """
    if not offline and name in HUB:
        return _read_hub(name, split), {"offline": False, "origin": HUB[name].repository}
    if name not in OFFLINE:
        raise SpLensError(_no_offline_text(name))
    return read_offline(name, split), {"offline": name in HUB, "origin": OFFLINE[name].origin}


def _no_offline_text(name: str) -> str:
    return f"{name!r} has no offline text: the corpora that have it are {', '.join(OFFLINE)}."


def _read_hub(name: str, split: Split) -> Iterator[Document]:
    hub = HUB[name]
    advice = _no_offline_text(name)
    if name in OFFLINE:
        advice = (
            f"To read offline text instead ({OFFLINE[name].origin}), use load_corpus({name!r}, model, offline=True) or "
            "--offline."
        )
    with reading(hub.repository, advice):
        hub_split = hub.own_splits[split] if hub.own_splits else "train"
        examples = stream(hub.repository, hub_split, configuration=hub.configuration, files=hub.files)
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
    """Open a dataset of the Hub as a stream of examples, in the order of the Hub.

    Args:
        repository: Name of the dataset on the Hub, or a folder with the same layout.
        split: Split of the Hub, usually "train".
        configuration: Name of the configuration, if the dataset has several.
        files: Pattern of Parquet files to read directly, for a repository with a loading script. `datasets` does not
            run such scripts since version 4.0.
    """
    if files:
        return cast(IterableDataset, load_dataset("parquet", data_files=files, split=split, streaming=True))
    return cast(IterableDataset, load_dataset(repository, configuration, split=split, streaming=True))


@contextmanager
def reading(repository: str, advice: str) -> Iterator[None]:
    """Context manager that raises errors of reading a dataset of the Hub as SpLensError, followed by `advice`."""
    try:
        yield
    except SpLensError:
        raise
    except Exception as error:  # each of the libraries that access the Hub raises its own exceptions
        raise SpLensError(
            f"cannot read {repository} from the Hugging Face Hub ({type(error).__name__}: {error}). {advice}"
        ) from error
