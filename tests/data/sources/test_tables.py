"""Documents of tables and files: exactly the named file, exactly its text, and errors that name the row."""

import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from datasets import Dataset

import sp_lens as sp
from sp_lens.data.sources.tables import file_documents, table_documents

TEXTS = ["def add(a, b):\n    return a + b\n" * 40, "It was a bright cold day in April.", 'She said "no", and left.']


def texts(path: Path) -> list[str]:
    return [document.text for document in file_documents(path)]


def write(path: Path, values: list[Any], **others: list[Any]) -> Path:
    """Write a table with the column "text" in the format of the suffix."""
    frame = pd.DataFrame({"text": values, **others})
    match path.suffix.lower():
        case ".parquet":
            frame.to_parquet(path)
        case ".csv":
            frame.to_csv(path, index=False)
        case suffix:
            frame.to_json(path, orient="records", lines=suffix == ".jsonl")
    return path


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.json", "a.csv", "a.CSV", "a.JSONL", "b.Parquet"])
def test_every_kind_of_file_has_the_same_documents(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, TEXTS, year=[1900, 1949, 2000])
    assert texts(path) == TEXTS
    names = [document.name for document in file_documents(path)]
    assert names == [f"{name} {document.name}" for document in table_documents({"text": TEXTS})]


def test_a_file_of_text_is_one_document(demo: Any, tmp_path: Path) -> None:
    (tmp_path / "one.TXT").write_bytes(b"\xef\xbb\xbf" + TEXTS[0].encode())
    assert texts(tmp_path / "one.TXT") == TEXTS[:1]
    corpora = [sp.load_corpus(source, demo, tokens=None) for source in (tmp_path / "one.TXT", TEXTS[:1])]
    assert list(corpora[0]["input_ids"]) == list(corpora[1]["input_ids"])


def test_json_may_be_a_list_or_lines(tmp_path: Path) -> None:
    records = [{"text": text} for text in TEXTS]
    (tmp_path / "lines.json").write_text("\n" + "\n".join(map(json.dumps, records)) + "\n\n")
    (tmp_path / "list.json").write_text("  \n " + json.dumps(records, indent=1))
    assert texts(tmp_path / "lines.json") == texts(tmp_path / "list.json") == TEXTS


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".json", ".parquet", ".txt"])
def test_the_name_of_a_file_is_not_a_pattern(tmp_path: Path, suffix: str) -> None:
    for name in ("code1", "code2", "b", "ab"):
        Path(tmp_path, name + suffix).write_bytes(b"another file")
    for name in ("code[1]", "code*", "code?", "a::b", "{a,b}", "**", "~", "$HOME", "100%", "hf:", "a b", "data,1"):
        path = tmp_path / (name + suffix)
        with pytest.raises(sp.SpLensError, match="there is no file"):
            texts(path)
        if suffix == ".txt":
            path.write_text("this one")
        else:
            write(path, ["this one"])
        assert texts(path) == ["this one"], name


def test_the_values_of_a_csv_file_are_strings(tmp_path: Path) -> None:
    words = ["null", "NA", "007", "2020-01-01", "3.10", "true", "nan"]
    assert texts(write(tmp_path / "a.csv", words)) == words


def test_strings_that_look_like_dates_or_numbers_are_kept_in_json(tmp_path: Path) -> None:
    words = ["2020-01-01", "007", "NaN"]
    assert texts(write(tmp_path / "a.jsonl", words)) == texts(write(tmp_path / "a.json", words)) == words


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".txt"])
def test_a_file_that_changes_is_read_again_even_with_the_same_time(tmp_path: Path, suffix: str) -> None:
    path, contents = tmp_path / f"a{suffix}", []
    for text in ("first text", "other text", "a longer text"):
        if suffix == ".txt":
            path.write_text(text)
        else:
            write(path, [text])
        os.utime(path, (10**9, 10**9))
        contents += texts(path)
    assert contents == ["first text", "other text", "a longer text"]


def test_reading_needs_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", "/proc/no/such/folder")
    assert texts(write(tmp_path / "a.csv", TEXTS)) == TEXTS


def test_a_long_file_is_read_in_parts_and_only_as_far_as_needed(demo: Any, tmp_path: Path) -> None:
    words = [f"This is sentence number {number}." for number in range(2500)]
    for name in ("a.csv", "a.jsonl", "a.parquet"):
        assert texts(write(tmp_path / name, words)) == words
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write("{damaged")
    assert sp.load_corpus(tmp_path / "a.jsonl", demo, tokens=100).num_rows > 5
    with pytest.raises(sp.SpLensError, match=r"cannot read .*a\.jsonl as \.jsonl \(JSONDecodeError"):
        sp.load_corpus(tmp_path / "a.jsonl", demo, tokens=None)


def test_a_table_may_name_its_documents(demo: Any) -> None:
    table = pd.DataFrame({"text": TEXTS, "document": ["a", "b", "b"]})
    for source in (table, Dataset.from_pandas(table), table.to_dict("list")):
        assert dict.fromkeys(sp.load_corpus(source, demo, tokens=None)["document"]) == dict.fromkeys("ab")
    assert [document.name for document in table_documents(table)] == ["a", "b", "b"]


def test_a_table_and_its_texts_have_the_same_statistics(demo: Any) -> None:
    expected = sp.collect(demo, TEXTS, progress=False).frame()
    for table in (pd.DataFrame({"text": TEXTS, "source_name": list("abc")}), {"text": TEXTS, "n": [1, 2, 3]}):
        assert sp.collect(demo, table, progress=False).frame().equals(expected)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"title": ["a"], "body": ["b"]}, r"columns \['title', 'body'\], of which 2 contain text"),
        (pd.DataFrame({"n": [1, 2]}), r"columns \['n'\], of which 0 contain text"),
        (pd.DataFrame({"text": ["a b c", None]}), "row 1 of the table"),
        (pd.Series(["a b c", 7.5]), r"row 1 .* has '7\.5' in the column 'text', which has the type float"),
        (pd.DataFrame([["a b c", "d e f"]], columns=["text", "text"]), "two columns of the same name"),
        ({"text": "one string"}, "expected lists of equal length"),
        ({"text": ["a", "b"], "n": [1]}, "expected lists of equal length"),
    ],
)
def test_a_table_without_text_raises_an_error(demo: Any, table: Any, message: str) -> None:
    for read in (lambda: sp.load_corpus(table, demo, tokens=None), lambda: sp.collect(demo, table, progress=False)):
        with pytest.raises(sp.SpLensError, match=message):
            read()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "a b"}\n{"text": null}', r"row 1 of .*a\.jsonl .* has 'None'"),
        ("a.jsonl", b'{"text": "a b"}\n{"other": "x"}', r"row 1 of .*a\.jsonl .* has 'nan'"),
        ("a.jsonl", b'{"text": "a b"}\n["x"]', r"row 1 of .*a\.jsonl is .*expected an object"),
        ("a.json", b'["a", "b"]', r"row 0 of .* is 'a': expected an object"),
        ("a.json", b'[{"text": "a"', "JSONDecodeError"),
        ("a.csv", b"text\n\xff\xfe\n", "encoded in UTF-8"),
        ("a.csv", b"", "not empty"),
        ("a.csv", b'text\n"open', "cannot read"),
        ("a.parquet", b"PAR1", "cannot read"),
        ("a.txt", b"\xff", "encoded in UTF-8"),
    ],
)
def test_a_damaged_file_raises_an_error(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(sp.SpLensError, match=message):
        texts(tmp_path / name)
