"""Offline text, compared with the results of `ast` and `inspect` on modules of the standard library."""

import argparse
import ast
import asyncio.events
import base64
import collections
import csv
import dataclasses
import difflib
import hashlib
import inspect
import itertools
import json.decoder
import logging
import os
import pathlib
import random
import socket
import string
import sysconfig
import textwrap
import threading
from pathlib import Path
from types import ModuleType

import pytest

from sp_lens import SpLensError
from sp_lens.data.sources.docstrings import sentences, without_docstrings
from sp_lens.data.sources.offline import read_offline, split_of
from sp_lens.data.sources.tables import Document
from sp_lens.typing import SPLITS, Split

STDLIB = Path(sysconfig.get_paths()["stdlib"])
MODULES = [
    argparse, asyncio.events, collections, csv, dataclasses, difflib, json.decoder, logging, pathlib, random, string,
    textwrap, threading,
]  # fmt: skip
CORPORA = ("python", "non_python", "code", "prose")


def first_documents(name: str, split: Split, count: int = 60) -> list[Document]:
    return list(itertools.islice(read_offline(name, split), count))


def squeezed(text: str) -> str:
    return " ".join(text.split())


def docstrings(module: ModuleType) -> list[str]:
    """Return the `__doc__` of a module, its functions, its classes and their methods."""
    members = [o for o in vars(module).values() if getattr(o, "__module__", None) == module.__name__]
    methods = [m for o in members if inspect.isclass(o) for m in vars(o).values() if inspect.isfunction(m)]
    docs = [getattr(o, "__doc__", None) for o in (module, *members, *methods)]
    return [inspect.cleandoc(text) for text in docs if isinstance(text, str)]


def paragraphs(texts: list[str]) -> set[str]:
    return {squeezed(part) for text in texts for part in text.split("\n\n") if len(part) > 60}


def test_the_split_is_a_hash_of_the_name() -> None:
    names = [f"python/module_{number}.py" for number in range(10_000)]
    splits = [split_of(name) for name in names]
    positions = [int(hashlib.sha256(name.encode()).hexdigest()[:16], 16) / 2**64 for name in names]
    assert splits == ["train" if x < 0.6 else "collect" if x < 0.8 else "evaluate" for x in positions]
    assert [round(splits.count(split) / 10_000, 1) for split in SPLITS] == [0.6, 0.2, 0.2]


@pytest.mark.parametrize("name", CORPORA)
def test_documents_are_read_in_the_same_order_from_their_split(name: str) -> None:
    for split in SPLITS:
        documents = first_documents(name, split)
        assert len({document.name for document in documents}) == len(documents) == 60  # first passages come first
        assert all(split_of(document.name) == split for document in documents)
        assert all(document.text.strip() for document in documents)
        assert all(len(document.text) <= 3000 or "\n" not in document.text.strip() for document in documents)
        assert not any(str(STDLIB) in document.name for document in documents)  # the same name on every machine
        assert split != "collect" or first_documents(name, split) == documents


def test_every_module_of_a_split_is_read_completely() -> None:
    passages: dict[str, str] = {}
    for name, text in itertools.islice(read_offline("python", "evaluate"), 4000):
        passages[name] = passages.get(name, "") + text
    assert len(passages) > 50
    for name, text in itertools.islice(passages.items(), 20):
        code = without_docstrings((STDLIB / name.removeprefix("python/")).read_text("utf-8"))
        assert "".join(text.split()) == "".join(code.split())


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_docstrings_are_removed_from_code(module: ModuleType) -> None:
    source = inspect.getsource(module)
    code = squeezed(without_docstrings(source))
    expected = {paragraph for paragraph in paragraphs(docstrings(module)) if paragraph in squeezed(source)}
    assert expected
    assert not [paragraph for paragraph in expected if paragraph in code]
    assert not [paragraph for paragraph in sentences(source).split("\n\n") if paragraph and paragraph in code]


@pytest.mark.parametrize("module", [base64, socket], ids=lambda module: module.__name__)
def test_no_sentence_is_in_both_if_a_module_repeats_its_docstrings(module: ModuleType) -> None:
    code = squeezed(without_docstrings(inspect.getsource(module)))
    assert not [paragraph for paragraph in sentences(inspect.getsource(module)).split("\n\n") if paragraph in code]


def test_nothing_but_docstrings_is_removed_from_code() -> None:
    compared = 0
    for module in MODULES:
        source = inspect.getsource(module)
        try:
            cut = ast.parse(without_docstrings(source))
        except SyntaxError:  # a body that consisted of a docstring
            continue
        tree = ast.parse(source)
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                del node.body[: ast.get_docstring(node) is not None]
        assert ast.dump(cut) == ast.dump(tree), module.__name__
        compared += 1
    assert compared >= 5


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ('"""Module."""\nx = 1\n', "x = 1\n"),
        ('async def f():\n    r"""Say\n\n    f."""\n    return 1\n', "async def f():\n    return 1\n"),
        ('x = 1\n"""A string that nobody reads."""\n', 'x = 1\n"""A string that nobody reads."""\n'),
        ('def f():\n    x = 1\n    "no docstring"\n', 'def f():\n    x = 1\n    "no docstring"\n'),
        ("# Copyright me\n# All rights reserved\n\nimport os  # Licence\n", "import os  # Licence\n"),
        ("# What this does\nimport os\n", "# What this does\nimport os\n"),
        ("this is no Python", ""),
        ("x = '\0'", ""),
        ("", ""),
    ],
)
def test_docstrings_are_removed_without_changing_other_code(source: str, code: str) -> None:
    assert without_docstrings(source) == code


@pytest.mark.parametrize(
    ("source", "removed", "kept"),
    [
        ('class A: "A thing."\nx = 1\n', "A thing", "class A"),
        ('"""Say\nmore."""; import os\n', "more", "import os"),
        ('x = 1\n\f\ndef f():\n    """Say f."""\n    return 1\n', "Say f", "def f"),
    ],
    ids=["class on one line", "code after it", "form feed"],
)
def test_code_on_the_lines_of_a_docstring_is_kept(source: str, removed: str, kept: str) -> None:
    code = without_docstrings(source)
    assert removed not in code
    assert kept in code


def test_prose_is_whole_sentences() -> None:
    for split in SPLITS:
        for document in first_documents("prose", split, 150):
            for paragraph in document.text.strip().split("\n\n"):
                assert paragraph == squeezed(paragraph), document.name
                assert len(paragraph) >= 60
                assert paragraph[0].isupper()
                assert paragraph[-1] in ".!?"
                assert len(paragraph.split()) >= 4
                assert sum(character in "=_{}[]()<>*/|`:#+$" for character in paragraph) <= 0.05 * len(paragraph)
                assert ">>>" not in paragraph


def test_prose_is_from_the_docstrings_of_the_imported_modules() -> None:
    for module in (argparse, json.decoder, logging):
        expected = paragraphs(docstrings(module))
        prose = set(sentences(inspect.getsource(module)).split("\n\n")) - {""}
        plain = {
            text for text in expected if text[0].isupper() and text[-1] == "." and text[:-1].replace(" ", "").isalpha()
        }
        assert plain <= prose
        assert len(prose & expected) >= 0.8 * len(prose)


def test_code_takes_turns_between_python_and_other_languages() -> None:
    documents = first_documents("code", "collect", 20)
    assert documents[::2] == first_documents("python", "collect", 10)
    assert documents[1::2] == first_documents("non_python", "collect", 10)
    suffixes = {Path(document.name).suffix for document in first_documents("non_python", "train")}
    assert suffixes <= {".h", ".hpp", ".cuh"}


def test_unknown_names_raise_an_error() -> None:
    with pytest.raises(SpLensError, match=r"offline corpus 'pile': choose one of 'python', .*'prose'"):
        read_offline("pile", "collect")
    with pytest.raises(SpLensError, match=r"split 'test': choose one of 'train', 'collect', 'evaluate'"):
        read_offline("prose", "test")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("folder", [None, "", "missing"])
def test_novels_need_a_folder(folder: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if folder is None:
        monkeypatch.delenv("SP_LENS_DATA", raising=False)
    else:
        monkeypatch.setenv("SP_LENS_DATA", folder and str(tmp_path / folder))
    with pytest.raises(SpLensError, match="SP_LENS_DATA"):
        next(read_offline("novels", "collect"))


@pytest.mark.skipif("SP_LENS_DATA" not in os.environ, reason="the novels are in the folder SP_LENS_DATA")
def test_novels_are_read_passage_by_passage() -> None:
    books = {split: {document.name for document in first_documents("novels", split)} for split in SPLITS}
    assert all(name.startswith("novels/") for names in books.values() for name in names)
    assert sum(map(len, books.values())) == len(set.union(*books.values())) > 1


def test_novels_need_a_folder_with_novels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SP_LENS_DATA", str(tmp_path))
    with pytest.raises(SpLensError, match=r"gutenberg"):
        next(read_offline("novels", "collect"))
