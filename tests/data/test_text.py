"""`load_corpus`: rows of tokens from named corpora, files and strings."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

import sp_lens as sp
from sp_lens.data.text import describe
from sp_lens.typing import SPLITS

TEXTS = ["def add(a, b):\n    return a + b\n" * 40, "It was a bright cold day in April."]


def ids(corpus: Dataset) -> list[list[int]]:
    return [list(row) for row in corpus["input_ids"]]


@pytest.mark.parametrize("name", ["python", "non_python", "code", "prose"])
@pytest.mark.parametrize("split", ["collect", "evaluate"])
def test_offline_text_has_the_requested_number_of_tokens(demo: Any, name: str, split: Any) -> None:
    corpus = sp.load_corpus(name, demo, tokens=100_000, split=split, offline=True)
    rows = ids(corpus)
    assert sum(token > 1 for row in rows for token in row) == 100_000  # 0 and 1 are the special tokens
    assert all(row[0] == 1 and len(row) <= 256 for row in rows)
    about = describe(corpus)
    assert about["documents"] == len(set(corpus["document"])) > 20
    assert {key: about[key] for key in ("source", "split", "offline", "tokens")} == {
        "source": name,
        "split": split,
        "offline": True,
        "tokens": 100_000,
    }
    assert about["versions"]["sp_lens"] == sp.__version__


def test_the_offline_text_of_pile_codeless_is_prose(demo: Any) -> None:
    corpora = [sp.load_corpus(name, demo, tokens=2_000, offline=True) for name in ("prose", "pile_codeless")]
    assert ids(corpora[0]) == ids(corpora[1])
    assert describe(corpora[1])["offline"] is True


def test_splits_share_no_document(demo: Any) -> None:
    documents = [
        set(sp.load_corpus("code", demo, tokens=50_000, split=split, offline=True)["document"]) for split in SPLITS
    ]
    assert not documents[0] & documents[1]
    assert not documents[1] & documents[2]
    assert not documents[0] & documents[2]


def test_strings_are_read_completely(demo: Any) -> None:
    corpus = sp.load_corpus(TEXTS, demo, tokens=None, row_tokens=50)
    assert max(len(row) for row in ids(corpus)) == 50
    for text, document in zip(TEXTS, dict.fromkeys(corpus["document"]), strict=True):
        rows = [row[1:] for row, name in zip(ids(corpus), corpus["document"], strict=True) if name == document]
        assert demo.tokenizer.decode([token for row in rows for token in row]) == text


def test_documents_of_named_corpora_are_cut(demo: Any) -> None:
    corpus = sp.load_corpus("python", demo, tokens=5_000, offline=True, document_tokens=100)
    rows = ids(corpus)
    assert max(len(row) for row in rows) <= 100
    assert len(set(corpus["document"])) >= 50


def test_a_corpus_can_be_saved_and_loaded(demo: Any, tmp_path: Path) -> None:
    corpus = sp.load_corpus("prose", demo, tokens=1_000, offline=True)
    corpus.save_to_disk(tmp_path / "corpus")
    loaded = Dataset.load_from_disk(tmp_path / "corpus")
    assert describe(loaded) == describe(corpus)
    expected, actual = (sp.collect(demo, rows, progress=False) for rows in (corpus, loaded))
    assert actual.frame().equals(expected.frame())


def test_load_corpora_returns_disjoint_corpora_for_prune(demo: Any) -> None:
    corpora = sp.load_corpora("code", "prose", demo, tokens=1_000, offline=True)
    assert list(corpora) == ["forget", "retain", "eval_forget", "eval_retain"]
    for name, corpus in corpora.items():
        about = describe(corpus)
        assert about["source"] == ("code" if name.endswith("forget") else "prose")
        assert about["split"] == ("evaluate" if name.startswith("eval_") else "collect")
        assert (about["tokens"], about["offline"]) == (1_000, True)
    assert not set(corpora["forget"]["document"]) & set(corpora["eval_forget"]["document"])
    assert sp.prune(demo, **corpora, fraction=0.1, steps=1, progress=False).steps == 1


INVALID: list[tuple[str, Callable[[Any], Any]]] = [
    (r"unknown corpus .* 'kode': choose one of 'pile'", lambda m: sp.load_corpus("kode", m)),
    ("unknown split 'test'", lambda m: sp.load_corpus("code", m, split="test", offline=True)),  # type: ignore[arg-type]
    ("'pile' has no offline text", lambda m: sp.load_corpus("pile", m, offline=True)),
    (r"offline=True\) or --offline", lambda m: sp.load_corpus("code", m)),
    ("pass tokens=100_000", lambda m: sp.load_corpus("code", m, tokens=None, offline=True)),
    ("expected the number of tokens to read", lambda m: sp.load_corpus("code", m, tokens=0, offline=True)),
    (r"'texts' has \d+ tokens, but 10000 were requested", lambda m: sp.load_corpus(TEXTS, m, tokens=10_000)),
    ("'texts' is empty", lambda m: sp.load_corpus([], m, tokens=None)),
    ("fewer than two tokens", lambda m: sp.load_corpus([TEXTS[0], ""], m, tokens=None)),
    ("there is no file", lambda m: sp.load_corpus("no/such.txt", m)),
    (r"unknown corpus with held-out text 'mine.txt'", lambda m: sp.load_corpora("mine.txt", "prose", m)),
]


@pytest.mark.parametrize(("message", "call"), INVALID, ids=[message for message, _ in INVALID])
def test_invalid_arguments_raise_an_error(demo: Any, message: str, call: Callable[[Any], Any]) -> None:
    with pytest.raises(sp.SpLensError, match=message):
        call(demo)


def test_a_file_of_an_unknown_kind_raises_an_error(demo: Any, tmp_path: Path) -> None:
    (tmp_path / "file.docx").write_text("x")
    with pytest.raises(sp.SpLensError, match=r"unknown kind of text file '\.docx'"):
        sp.load_corpus(tmp_path / "file.docx", demo)


def test_novels_need_sp_lens_data(demo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SP_LENS_DATA", raising=False)
    with pytest.raises(sp.SpLensError, match="SP_LENS_DATA"):
        sp.load_corpus("novels", demo)
