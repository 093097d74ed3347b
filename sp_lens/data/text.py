"""Text -> a `datasets.Dataset` of token rows: named datasets, files, the text that is on every machine."""

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from datasets import Dataset, Features, List, Value, load_dataset

from sp_lens.data.offline import Document
from sp_lens.data.registry import CORPORA, read_text
from sp_lens.data.tokenization import DOCUMENT_TOKENS, frame_of, split_text, text_name, tokenizer_of
from sp_lens.errors import SpLensError, check_choice
from sp_lens.models.hooks import blocks_of
from sp_lens.models.task import require_tokens
from sp_lens.storage.serialization import versions
from sp_lens.typing import SPLITS, Split

_FILE_BUILDERS = {".txt": "text", ".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}


def load_corpus(
    source: str | Path | Iterable[str],
    model: Any,
    *,
    tokens: int | None = 100_000,
    split: Split = "collect",
    offline: bool = False,
    row_tokens: int | None = None,
    document_tokens: int | None = None,
) -> Dataset:
    """Read text and make rows of tokens of it, for `collect`, `evaluate` and `prune`.

    Args:
        source: a named corpus ("code", "python", "non_python", "prose", "pile", "pile_codeless", "civil", "toxic",
            "wikitext", "novels", "toxic_comments"), a file (.txt, .json, .jsonl, .csv, .parquet with a "text" column),
            or texts.
        model: whose tokenizer reads the text, and whose context bounds the rows.
        tokens: how many tokens to take, special ones not counted; None takes all of a file or of texts.
        split: "collect" or "evaluate" (or "train"): a document is in one of them, by a hash of its name, and of
            "wikitext" as it was published. Texts and files of your own are not split.
        offline: read what this machine has under the name instead of the Hub's text. Nothing is swapped silently.
        row_tokens: longest row, BOS included; the model's context by default.
        document_tokens: documents are cut there. By default those of a named corpus at 1000, as in the
            released experiments, and your own not at all.

    Returns:
        Columns `input_ids` and `document`. What was read stands as JSON in `.info.description`: source, split,
        documents, tokens, versions, and of a named corpus `origin`, what it really is, and `offline`, whether that
        stands in for the Hub's.

    Raises:
        SpLensError: for an unknown name, fewer tokens than asked for, an empty corpus, a text of fewer
            than two tokens, or a Hub that can't be reached.
    """
    check_choice("split", split, SPLITS)
    blocks_of(model)
    require_tokens(model)
    if tokens is not None and tokens < 1:
        raise SpLensError(f"tokens={tokens}: expected how many tokens to take, or None for all.")
    for name, limit in (("row_tokens", row_tokens), ("document_tokens", document_tokens)):
        if limit is not None and limit < 2:
            raise SpLensError(f"{name}={limit}: expected two tokens or more, of which one can be predicted.")
    named = isinstance(source, str) and source in CORPORA
    if named and tokens is None:
        raise SpLensError(f"say how many tokens of {source!r} to take: tokens=100_000.")
    if named and document_tokens is None:
        document_tokens = DOCUMENT_TOKENS
    longest = min(model.cfg.n_ctx, row_tokens or document_tokens or DOCUMENT_TOKENS)
    tail = frame_of(model)[1]
    found: dict[str, list[Any]] = {"input_ids": [], "document": []}
    left, total = tokens, 0
    documents, record = _documents(source, split, offline)
    for document in documents:
        for row, counted in _rows(document, model, longest, document_tokens, own=not named):
            total += counted
            if left is not None:
                taken = min(counted, left)
                row = _cut(row, max(2, len(row) - (counted - taken)), tail)  # noqa: PLW2901
                left -= taken
            found["input_ids"].append(row)
            found["document"].append(document.name)
            if left == 0:
                break
        if left == 0:
            break
    label = str(source) if isinstance(source, str | Path) else "texts"
    if not found["input_ids"]:
        raise SpLensError(f"the corpus {label!r} is empty: there is no text in it.")
    if tokens is not None and left:
        raise SpLensError(
            f"the corpus {label!r} has {tokens - left} tokens in its split {split!r}, and {tokens} were asked for: "
            f"ask for tokens={tokens - left} or fewer, or bring more text."
        )
    dataset = Dataset.from_dict(
        found, features=Features({"input_ids": List(Value("int32")), "document": Value("string")})
    )
    about = {
        "source": label,
        "split": split,
        **record,
        "documents": len(set(found["document"])),
        "tokens": total if tokens is None else tokens,
        "versions": versions(),
    }
    dataset.info.description = json.dumps(about)
    return dataset


def describe(corpus: Any) -> dict[str, Any]:
    """What `load_corpus` recorded of a corpus; for anything else, its type."""
    description = getattr(getattr(corpus, "info", None), "description", "") or ""
    if description.startswith('{"source"'):
        with suppress(ValueError):  # a dataset of others may begin like ours
            return json.loads(description)
    return {"source": type(corpus).__name__}


def _rows(
    document: Document, model: Any, longest: int, document_tokens: int | None, *, own: bool
) -> Iterator[tuple[list[int], int]]:
    """The rows of a document and how many tokens of each count."""
    tokenizer = tokenizer_of(model)
    special = set(tokenizer.all_special_ids)
    head, tail = frame_of(model)
    left = sys.maxsize if document_tokens is None else document_tokens
    read = 0
    for whole in split_text(tokenizer, document.text, row_tokens=longest, head=head, tail=tail):
        read += len(whole)
        piece = _cut(whole, left, tail)
        left -= len(piece)
        counted = sum(token not in special for token in piece)
        if len(piece) >= 2 and counted:
            yield piece, counted
        if left <= 0:
            break
    if own and read < 2:
        raise SpLensError(f"document {document.name} ({document.text[:30]!r}) has fewer than two tokens: take it out.")


def _cut(row: list[int], length: int, tail: list[int]) -> list[int]:
    """At most the first `length` tokens of a row, which end as every row ends."""
    return row if len(row) <= length else [*row[: max(0, length - len(tail))], *tail][: max(0, length)]


def _documents(
    source: str | Path | Iterable[str], split: Split, offline: bool
) -> tuple[Iterator[Document], dict[str, Any]]:
    """The documents of a source, and what the record says of them."""
    if not isinstance(source, str | Path):
        return _own_documents(source), {"offline": False}
    if source in CORPORA:
        return read_text(str(source), split, offline=offline)
    if (path := Path(source)).suffix in _FILE_BUILDERS or path.exists():
        return _file_documents(path), {"offline": False}
    check_choice("corpus (or file of text)", source, CORPORA)
    raise AssertionError("unreachable: check_choice refuses what is no corpus")


def _own_documents(texts: Any) -> Iterator[Document]:
    if not isinstance(texts, Iterable):
        raise SpLensError(f"expected the name of a corpus, a file, or texts, got {type(texts).__name__}.")
    if columns := getattr(texts, "column_names", None):
        raise SpLensError(f"expected texts, got a dataset with the columns {columns}: give one, dataset['text'].")
    for text in texts:
        if not isinstance(text, str):
            raise SpLensError(f"expected texts, got {type(text).__name__} among them: {str(text)[:40]!r}.")
        yield Document(text_name(text), text)


def _file_documents(path: Path) -> Iterator[Document]:
    check_choice("kind of text file", path.suffix, _FILE_BUILDERS)
    if not path.is_file():
        raise SpLensError(f"there is no file {path}.")
    try:
        if path.suffix == ".txt":
            text = path.read_text("utf-8-sig")  # the mark that some editors begin a file with is no text
            return iter([Document(f"{path.name} {_hash(text)}", text)])
        dataset = cast(Dataset, load_dataset(_FILE_BUILDERS[path.suffix], data_files=str(path), split="train"))
    except Exception as error:  # each of the builders has errors of its own for a file that it can't read
        raise SpLensError(
            f"cannot read {path} as {path.suffix} ({type(error).__name__}: {str(error)[:80]}): is it empty, cut short, "
            "or not UTF-8?"
        ) from error
    if "text" not in dataset.column_names:
        raise SpLensError(
            f"{path} has the columns {dataset.column_names} and no 'text': rename the column with the text."
        )
    return (Document(f"{path.name} {document.name}", document.text) for document in _own_documents(dataset["text"]))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
