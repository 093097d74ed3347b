"""Read text into a `datasets.Dataset` of token rows: named corpora, text files, tables, or a list of strings.

`sp_lens.data.sources.registry` lists the named corpora, and `sp_lens.data.sources.offline.split_of` assigns their
documents to the splits train, collect and evaluate.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset, Features, List, Value

from sp_lens.data.sources.registry import CORPORA, read_text
from sp_lens.data.sources.tables import (
    FILE_READERS,
    Document,
    file_documents,
    is_table,
    table_documents,
    text_name,
)
from sp_lens.data.tokenization import DOCUMENT_TOKENS, frame_of, split_text, tokenizer_of
from sp_lens.errors import SpLensError, check_choice
from sp_lens.models.hooks import blocks_of
from sp_lens.models.task import require_tokens
from sp_lens.storage.serialization import versions
from sp_lens.typing import SPLITS, Split


class _DocumentRow(NamedTuple):
    """Tokens of a row, how many of them are not special tokens, and the name of the document."""

    tokens: list[int]
    counted: int
    document: str


def load_corpus(
    source: Any,
    model: Any,
    *,
    tokens: int | None = 100_000,
    split: Split = "collect",
    offline: bool = False,
    row_tokens: int | None = None,
    document_tokens: int | None = None,
) -> Dataset:
    """Read text and split it into rows of tokens, for `collect`, `evaluate` and `prune`.

    Args:
        source: Named corpus ("code", "python", "non_python", "prose", "pile", "pile_codeless", "civil", "toxic",
            "wikitext", "novels", "toxic_comments"), path of a file (.txt; .json, .jsonl, .csv or .parquet with a
            column of text), a table with a column of text (a pandas object, a dictionary of lists or a
            `datasets.Dataset`, see `sp_lens.data.sources.tables`), or an iterable of strings.
        model: Model whose tokenizer reads the text. Its context length limits the rows.
        tokens: Number of tokens to read, without special tokens. None reads all of a file or of the strings; a named
            corpus needs a number.
        split: Dataset split of a named corpus: "train", "collect" or "evaluate". A document is assigned to one of them
            by a hash of its name, or of its text on the Hub; "wikitext" keeps its published splits. Files and strings
            are not split.
        offline: Whether to read the offline text of a named corpus instead of the Hub's. It is different text, and is
            never substituted silently.
        row_tokens: Maximum number of tokens in a row, special tokens included. By default `document_tokens`, or 1000 if
            that is unlimited. Rows are never longer than the context length of the model.
        document_tokens: Maximum number of tokens of a document, special tokens included; the rest is dropped. By
            default 1000 for named corpora, as in the released experiments, and unlimited for files and strings.

    Returns:
        Dataset with the columns `input_ids` and `document`. Its `.info.description` is a JSON record of what was read:
        source, split, number of documents and tokens, versions, and `offline`, which is true if offline text was read
        instead of the Hub's; for a named corpus also `origin`, a description of the text.

    Raises:
        SpLensError: If the name is unknown, the corpus is empty or has fewer tokens than requested, one of the
            strings has fewer than two tokens, a file cannot be read, or the Hub is unreachable.
    """
    check_choice("split", split, SPLITS)
    blocks_of(model)
    require_tokens(model)
    _check_lengths(tokens, row_tokens, document_tokens)
    named = isinstance(source, str) and source in CORPORA
    if named and tokens is None:
        raise SpLensError(f"the named corpus {source!r} is read up to a number of tokens: pass tokens=100_000.")
    if named and document_tokens is None:
        document_tokens = DOCUMENT_TOKENS
    longest = min(model.cfg.n_ctx, row_tokens or document_tokens or DOCUMENT_TOKENS)
    tail = frame_of(model)[1]
    documents, record = _documents(source, split, offline)
    document_rows = (
        row for document in documents for row in _rows(document, model, longest, document_tokens, allow_short=named)
    )
    rows = list(_take(document_rows, tokens, tail))
    total = sum(row.counted for row in rows)
    label = str(source) if isinstance(source, str | Path) else "texts"
    if not rows:
        raise SpLensError(f"the corpus {label!r} is empty: it has no text.")
    if tokens is not None and total < tokens:
        part = f"the split {split!r} of the corpus" if named else "the corpus"
        raise SpLensError(
            f"{part} {label!r} has {total} tokens, but {tokens} were requested: pass tokens={total} or fewer, or add "
            "text."
        )
    dataset = Dataset.from_dict(
        {"input_ids": [row.tokens for row in rows], "document": [row.document for row in rows]},
        features=Features({"input_ids": List(Value("int32")), "document": Value("string")}),
    )
    about = {
        "source": label,
        "split": split,
        **record,
        "documents": len({row.document for row in rows}),
        "tokens": total,
        "versions": versions(),
    }
    dataset.info.description = json.dumps(about)
    return dataset


def describe(corpus: Any) -> dict[str, Any]:
    """Return what `load_corpus` or `load_images` recorded about a corpus; for any other corpus, its type."""
    description = getattr(getattr(corpus, "info", None), "description", "") or ""
    if description.startswith('{"source"'):
        with suppress(ValueError):  # the description of another dataset may begin in the same way
            return json.loads(description)
    return {"source": type(corpus).__name__}


def _check_lengths(tokens: int | None, row_tokens: int | None, document_tokens: int | None) -> None:
    if tokens is not None and tokens < 1:
        raise SpLensError(f"tokens is {tokens}: expected the number of tokens to read, or None for all of them.")
    for name, limit in (("row_tokens", row_tokens), ("document_tokens", document_tokens)):
        if limit is not None and limit < 2:
            raise SpLensError(f"{name} is {limit}: expected 2 or more, because the first token is not predicted.")


def _rows(
    document: Document, model: Any, longest: int, document_tokens: int | None, *, allow_short: bool
) -> Iterator[_DocumentRow]:
    """Yield the rows of a document up to `document_tokens`; rows without anything to predict are dropped."""
    tokenizer = tokenizer_of(model)
    special = set(tokenizer.all_special_ids)
    head, tail = frame_of(model)
    remaining = sys.maxsize if document_tokens is None else document_tokens
    read = 0
    for whole in split_text(tokenizer, document.text, row_tokens=longest, head=head, tail=tail):
        read += len(whole)
        row = _cut(whole, remaining, tail)
        remaining -= len(row)
        counted = sum(token not in special for token in row)
        if len(row) >= 2 and counted:
            yield _DocumentRow(row, counted, document.name)
        if remaining <= 0:
            break
    if not allow_short and read < 2:
        raise SpLensError(
            f"document {document.name} ({document.text[:30]!r}) has fewer than two tokens: remove it from the corpus."
        )


def _take(rows: Iterable[_DocumentRow], tokens: int | None, tail: list[int]) -> Iterator[_DocumentRow]:
    """Yield rows until they have `tokens` counted tokens. The last row is cut to the exact number."""
    remaining = sys.maxsize if tokens is None else tokens
    for row in rows:
        counted = min(row.counted, remaining)
        length = max(2, len(row.tokens) - (row.counted - counted))
        yield _DocumentRow(_cut(row.tokens, length, tail), counted, row.document)
        remaining -= counted
        if not remaining:
            return


def _cut(row: list[int], length: int, tail: list[int]) -> list[int]:
    """Cut a row to at most `length` tokens, of which the last are the special tokens that end every row."""
    return row if len(row) <= length else [*row[: max(0, length - len(tail))], *tail][: max(0, length)]


def _documents(source: Any, split: Split, offline: bool) -> tuple[Iterator[Document], dict[str, Any]]:
    """Return the documents of a source, and what is recorded about their origin."""
    if not isinstance(source, str | Path):
        documents = table_documents if is_table(source) else _string_documents
        return documents(source), {"offline": False}
    if source in CORPORA:
        return read_text(str(source), split, offline=offline)
    if (path := Path(source)).suffix.lower() in FILE_READERS or path.exists():
        return file_documents(path), {"offline": False}
    check_choice("corpus (or file of text)", source, CORPORA)
    raise AssertionError("unreachable: check_choice raises an error for a name that is not in CORPORA")


def _string_documents(texts: Any) -> Iterator[Document]:
    if not isinstance(texts, Iterable):
        raise SpLensError(f"expected the name of a corpus, a file, a table, or strings, got {type(texts).__name__}.")
    for text in texts:
        if not isinstance(text, str):
            raise SpLensError(f"expected strings, but one item has the type {type(text).__name__}: {str(text)[:40]!r}.")
        yield Document(text_name(text), text)
