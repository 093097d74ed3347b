"""Read documents from files of text and from tables in memory: data frames, dictionaries of columns, and datasets.

A file is read as it is, row by row: its name is not a pattern, and nothing is cached, so a changed file is read again.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from sp_lens.errors import SpLensError, check_choice

# Number of rows of a file that are read at once.
_ROWS = 1000


class Document(NamedTuple):
    """A named text. The split is a function of the name, which does not depend on where the file is installed."""

    name: str
    text: str


def text_name(text: str) -> str:
    """Return the document name of a text that has none: a hash of its content."""
    try:
        return f"text {hashlib.sha256(text.encode()).hexdigest()[:12]}"
    except UnicodeEncodeError as error:
        raise SpLensError(
            f"the text {text[:40]!a} contains a lone surrogate, which is not a valid character ({error.reason}): read "
            'the file as UTF-8, or replace it with text.encode("utf-8", "replace").decode().'
        ) from error


def document_name(value: Any) -> str | None:
    """Return the name of a document from the column "document", which may have numbers or missing values."""
    value = value.item() if hasattr(value, "item") else value  # a number of numpy or torch
    return None if pd.isna(value) else str(value)


def is_table(corpus: Any) -> bool:
    """Return whether a corpus has named columns: a pandas object, a dictionary of columns, or a dataset."""
    if isinstance(corpus, Mapping):
        return "input_ids" not in corpus
    return isinstance(corpus, pd.DataFrame | pd.Series) or bool(getattr(corpus, "column_names", None))


def column_names(table: Any) -> list[str]:
    """Return the names of the columns of a table."""
    if isinstance(table, Mapping):
        return list(table)
    if isinstance(table, pd.Series):
        return [str(table.name or "text")]
    return [str(name) for name in (table.columns if isinstance(table, pd.DataFrame) else table.column_names)]


def table_documents(table: Any, name: str = "the table") -> Iterator[Document]:
    """Yield the documents of a table with a column of text.

    Args:
        table: A pandas `DataFrame` or `Series`, a dictionary of lists, or a `datasets.Dataset`. The text is in the
            column "text", or else in the only column of strings. A column "document" names the documents.
        name: What error messages call the table.

    Raises:
        SpLensError: If there is no such column, or one of its values is not a string.

    Example:
        >>> list(table_documents({"text": ["Rain."], "year": [1900], "document": ["a"]}))
        [Document(name='a', text='Rain.')]
    """
    return _documents(_frames(table, name), name)


def file_documents(path: Path) -> Iterator[Document]:
    """Yield the documents of a file of text.

    Args:
        path: A .txt file, which is one document, or a .csv, .json, .jsonl or .parquet file with a column of text as in
            `table_documents`. A .json file contains a list of objects, or one object per line.

    Raises:
        SpLensError: If there is no such file, or it cannot be read as a file of its kind.
    """
    suffix = path.suffix.lower()
    check_choice("kind of text file", suffix, FILE_READERS)
    if not path.is_file():
        raise SpLensError(f"there is no file {path}.")
    try:
        yield from FILE_READERS[suffix](path)
    except SpLensError:
        raise
    except (ValueError, OSError, RecursionError) as error:  # includes the errors of pandas, pyarrow and Unicode
        raise SpLensError(
            f"cannot read {path} as {suffix} ({type(error).__name__}: {str(error)[:120]}): check that it is complete, "
            "not empty, and encoded in UTF-8."
        ) from error


def _text_file(path: Path) -> Iterator[Document]:
    text = path.read_text("utf-8-sig")  # drops the byte order mark that some editors write
    yield Document(f"{path.name} {hashlib.sha256(text.encode()).hexdigest()[:12]}", text)


def _table_file(read: Callable[[Path], Iterable[pd.DataFrame]]) -> Callable[[Path], Iterator[Document]]:
    def documents(path: Path) -> Iterator[Document]:
        for document in _documents(read(path), str(path)):
            yield Document(f"{path.name} {document.name}", document.text)

    return documents


def _csv(path: Path) -> Iterable[pd.DataFrame]:
    # Every value of a CSV file is text: pandas would read "NA" and "null" as missing, and "007" as a number.
    return pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", chunksize=_ROWS)


def _json(path: Path) -> Iterator[pd.DataFrame]:
    with path.open(encoding="utf-8-sig") as file:
        start = file.read(1)
        while start.isspace():
            start = file.read(1)
        file.seek(0)
        # pandas' own reader turns strings that look like dates or numbers into such.
        if start == "[":
            yield pd.DataFrame(list(_objects([json.load(file)], path)), dtype=object)
        else:
            yield from _chunks(_objects(([json.loads(line)] for line in file if line.strip()), path))


def _objects(lists: Iterable[list[Any]], path: Path) -> Iterator[dict[str, Any]]:
    row = 0
    for items in lists:
        for item in items:
            if not isinstance(item, dict):
                raise SpLensError(
                    f'row {row} of {path} is {str(item)[:40]!r}: expected an object such as {{"text": "..."}}.'
                )
            yield item
            row += 1


def _chunks(records: Iterator[dict[str, Any]]) -> Iterator[pd.DataFrame]:
    while chunk := list(itertools.islice(records, _ROWS)):
        yield pd.DataFrame(chunk, dtype=object)


def _parquet(path: Path) -> Iterator[pd.DataFrame]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(_ROWS):
            yield batch.to_pandas()


FILE_READERS: dict[str, Callable[[Path], Iterator[Document]]] = {
    ".txt": _text_file,
    ".csv": _table_file(_csv),
    ".json": _table_file(_json),
    ".jsonl": _table_file(_json),
    ".parquet": _table_file(_parquet),
}


def _frames(table: Any, name: str) -> Iterator[pd.DataFrame]:
    if isinstance(table, pd.Series):
        yield table.to_frame(table.name or "text")
    elif isinstance(table, pd.DataFrame):
        yield table
    elif isinstance(table, Mapping):
        try:
            yield pd.DataFrame(dict(table))
        except ValueError as error:  # columns of different lengths, or single values
            raise SpLensError(
                f"cannot read {name} with the columns {list(table)} ({error}): expected lists of equal length."
            ) from error
    else:
        yield from table.with_format(None).to_pandas(batch_size=_ROWS, batched=True)


def _documents(frames: Iterable[pd.DataFrame], name: str) -> Iterator[Document]:
    column, row = None, 0
    for frame in frames:
        column = column or _text_column(frame, name)
        names = frame["document"] if "document" in frame.columns else [None] * len(frame)
        for text, document in zip(frame[column], names, strict=True):
            if not isinstance(text, str):
                raise SpLensError(
                    f"row {row} of {name} (the first is row 0) has {str(text)[:40]!r} in the column {str(column)!r}, "
                    f"which has the type {type(text).__name__}: expected a string. Convert it to one or remove the row."
                )
            yield Document(document_name(document) or text_name(text), text)
            row += 1


def _text_column(frame: pd.DataFrame, name: str) -> Any:
    """Return the column "text", or else the only column that has strings."""
    if not frame.columns.is_unique:
        raise SpLensError(f"{name} has two columns of the same name ({list(frame.columns)}): rename one of them.")
    if "text" in frame.columns:
        return "text"
    candidates = [
        column
        for column in frame.columns
        if column != "document" and any(isinstance(value, str) for value in frame[column])
    ]
    if len(candidates) != 1:
        raise SpLensError(
            f"{name} has the columns {[str(column) for column in frame.columns]}, of which {len(candidates)} contain "
            "text and none is called 'text': rename the column of text, or pass that column only. A column of token "
            "ids must be called 'input_ids'."
        )
    return candidates[0]
