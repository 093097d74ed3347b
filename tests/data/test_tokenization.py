"""Rows, batches and the check for shared data, compared with plain lists and a tokenizer of transformers."""

import copy
from collections import Counter
from functools import partial
from typing import Any

import pandas as pd
import pytest
import torch
import transformers
from datasets import Dataset
from factories import DEMO_FOLDER, tiny_bridge, tiny_hf
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformer_lens.model_bridge import TransformerBridge

import sp_lens as sp
from sp_lens import SpLensError, load_corpus
from sp_lens.data.batching import text_batches
from sp_lens.data.leakage import check_disjoint as check_contents_disjoint
from sp_lens.data.leakage import content_of
from sp_lens.data.rows import rows
from sp_lens.data.tokenization import split_text

pytestmark = pytest.mark.model
quick = settings(deadline=None, max_examples=40)

PAD, EOS = 0, 1  # token ids of the bundled tokenizer, where EOS is also BOS
TEXTS = ["def f(x):\n    return x + 1\n", "Once upon a time there was a </s> in the middle.", "naïve → ünïcode 🙂"]


@pytest.fixture(scope="module", params=["own pad", "pad is eos"])
def model(request: pytest.FixtureRequest) -> Any:
    """A tiny bridge whose tokenizer has a separate pad token, or pads with EOS."""
    bridge = tiny_bridge("opt")
    if request.param == "pad is eos":
        bridge.tokenizer.pad_token = bridge.tokenizer.eos_token
    assert bridge.tokenizer.pad_token_id == (EOS if request.param == "pad is eos" else PAD)
    return bridge


def is_ordinary(model: Any, row: list[int]) -> list[bool]:
    """Return which tokens are neither EOS (which is also BOS) nor the pad token."""
    return [token not in (EOS, model.tokenizer.pad_token_id) for token in row]


def plain(model: Any, corpus: Any) -> list[tuple[list[int], list[bool]]]:
    return [(row.tokens.tolist(), row.counted.tolist()) for row in rows(model, corpus)]


token = st.integers(2, 4095) | st.sampled_from([EOS, EOS, PAD])
lists_of_tokens = st.lists(st.lists(token, min_size=2, max_size=30), min_size=1, max_size=12)


@quick
@given(tokens=lists_of_tokens, side=st.sampled_from(["left", "right"]), longer=st.integers(0, 9))
@example(tokens=[[EOS, 7, EOS], [EOS, EOS, 9, 9, EOS]], side="left", longer=2)
def test_padding_changes_neither_rows_nor_counts(model: Any, tokens: list[list[int]], side: str, longer: int) -> None:
    width = max(map(len, tokens)) + longer
    padded = model.tokenizer.pad(
        {"input_ids": tokens}, padding="max_length", max_length=width, padding_side=side, return_tensors="pt"
    )
    assert padded["input_ids"].shape == (len(tokens), width)
    expected = [(row, is_ordinary(model, row)) for row in tokens]
    assert plain(model, tokens) == expected
    assert plain(model, [padded]) == expected
    assert plain(model, Dataset.from_dict({name: padded[name].tolist() for name in padded})) == expected
    counted = sum(int(row.counted.sum()) for row in rows(model, padded))
    assert counted == sum(sum(ordinary) for _, ordinary in expected)
    assert content_of(model, padded).fingerprint == content_of(model, tokens).fingerprint


def test_every_kind_of_corpus_gives_the_same_rows(model: Any) -> None:
    ids = [[EOS, *model.tokenizer(text, add_special_tokens=False)["input_ids"]] for text in TEXTS]
    padded = model.tokenizer.pad({"input_ids": ids}, return_tensors="pt")
    dataset = Dataset.from_dict({"input_ids": ids, "document": TEXTS})
    corpora = {
        "texts": TEXTS,
        "generator of texts": (text for text in TEXTS),
        "tensors": [torch.tensor(row) for row in ids],
        "tensors of one row": [torch.tensor([row]) for row in ids],
        "int32": [torch.tensor(row, dtype=torch.int32) for row in ids],
        "numpy": [torch.tensor(row).numpy() for row in ids],
        "one batch of a tokenizer": padded,
        "batches": [{name: padded[name][:2] for name in padded}, {name: padded[name][2:] for name in padded}],
        "lists with a mask": [{"input_ids": padded["input_ids"].tolist(), "attention_mask": padded["attention_mask"]}],
        "generator of batches": (dict(padded) for _ in range(1)),
        "dataset": dataset,
        "dataset of tensors": dataset.with_format("torch"),
        "streamed dataset": dataset.to_iterable_dataset(),
        "padded dataset": Dataset.from_dict({name: padded[name].tolist() for name in padded}),
        "loaded": load_corpus(TEXTS, model, tokens=None),
        "float mask": {name: padded[name].to(torch.float32 if "mask" in name else torch.int64) for name in padded},
        "other columns": dict(padded)
        | {
            "token_type_ids": torch.zeros_like(padded["input_ids"]),
            "position_ids": (padded["attention_mask"].cumsum(-1) - 1).clamp(min=0),
        },
        "data frame of tokens": pd.DataFrame({"input_ids": ids}),
        "data frame": pd.DataFrame({"text": TEXTS, "source_name": ["a", "b", "c"]}),
        "series": pd.Series(TEXTS, name="content"),
        "dictionary": {"text": TEXTS, "source_name": ["a", "b", "c"]},
        "dataset of text": Dataset.from_dict({"content": TEXTS, "length": [1, 2, 3]}),
        "streamed dataset of text": Dataset.from_dict({"text": TEXTS}).to_iterable_dataset(),
    }
    expected = [(row, is_ordinary(model, row)) for row in ids]
    assert EOS in ids[1][1:]  # "</s>" in a text
    for name, corpus in corpora.items():
        assert plain(model, corpus) == expected, name


def test_documents_may_be_numbers(model: Any) -> None:
    columns = {"input_ids": [[5, 6], [7, 8], [9, 10]], "document": [7, 7, 3]}
    for corpus in (Dataset.from_dict(columns), Dataset.from_dict(columns).with_format("torch"), pd.DataFrame(columns)):
        assert [row.document for row in rows(model, corpus)] == ["7", "7", "3"]
    assert [row.document for row in rows(model, pd.DataFrame(columns | {"document": [7, None, 3]}))][1] is None


def test_a_tensor_of_rows_is_a_corpus(model: Any) -> None:
    tokens = torch.randint(2, 4096, (3, 5))
    assert plain(model, tokens) == plain(model, {"input_ids": tokens}) == [(row, [True] * 5) for row in tokens.tolist()]


@quick
@given(lengths=st.lists(st.integers(2, 40), min_size=1, max_size=60), batch_tokens=st.integers(1, 200))
@example(lengths=[2 + i * 7 % 39 for i in range(600)], batch_tokens=100)  # more rows than are sorted at once
def test_every_row_is_in_one_batch(model: Any, lengths: list[int], batch_tokens: int) -> None:
    # The tokens include PAD and EOS.
    expected = [[(i + position) % 40 for position in range(length)] for i, length in enumerate(lengths)]
    actual: Counter[tuple[int, ...]] = Counter()
    counted = 0
    for batch in text_batches(model, expected, batch_tokens=batch_tokens):
        assert batch.tokens.shape == batch.attention_mask.shape == batch.counted.shape
        assert batch.tokens.numel() <= batch_tokens or len(batch.tokens) == 1
        assert (batch.attention_mask.diff(dim=1) <= 0).all()  # padding is on the right only
        assert batch.attention_mask.any(dim=0).all()  # and no wider than the longest row
        for tokens, mask in zip(batch.tokens, batch.attention_mask.bool(), strict=True):
            actual[tuple(tokens[mask].tolist())] += 1
        ordinary = torch.tensor([is_ordinary(model, row) for row in batch.tokens.tolist()])
        assert torch.equal(batch.counted, batch.attention_mask.bool() & ordinary)
        counted += int(batch.counted.sum())
    assert actual == Counter(map(tuple, expected))
    assert counted == sum(sum(is_ordinary(model, row)) for row in expected)


def test_a_pad_token_without_an_embedding_is_not_used(model: Any) -> None:
    bridge, texts = tiny_bridge("opt"), ["def f(x):\n    return x + 1\n", "a b c"]
    expected = sp.evaluate(bridge, texts, progress=False)
    bridge.tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert bridge.tokenizer.pad_token_id == bridge.cfg.d_vocab
    batch = next(text_batches(bridge, texts, batch_tokens=100))
    assert len(batch.tokens) == 2
    assert int(batch.tokens.max()) < bridge.cfg.d_vocab
    assert sp.evaluate(bridge, texts, progress=False) == expected


def test_tokens_that_were_added_in_memory(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO_FOLDER)
    tokenizer.add_tokens(["<new1>", transformers.AddedToken("<new2>", special=True)])
    tokenizer.chat_template = "{{ messages[0].content }}"
    hf = tiny_hf("opt")
    hf.resize_token_embeddings(len(tokenizer))
    boot: Any = partial(TransformerBridge.boot_transformers, "tiny", device="cpu")
    bridge = boot(hf_model=copy.deepcopy(hf), tokenizer=tokenizer)
    for _ in range(2):
        assert 4096 not in load_corpus(["a <new1> b <new2> c"], bridge, tokens=None)["input_ids"][0]
    assert "2 more than on disk, but its tokenizer has 4096 tokens" in caplog.text
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    bridge = boot(hf_model=hf, tokenizer=transformers.AutoTokenizer.from_pretrained(tmp_path / "tokenizer"))
    assert 4096 in load_corpus(["a <new1> b <new2> c"], bridge, tokens=None)["input_ids"][0]
    assert len(caplog.records) == 1
    bridge.tokenizer.add_tokens("<new3>")  # without an embedding
    mask = sp.NeuronMask.from_neurons(sp.layout_of(bridge), {"blocks.0.mlp.hook_post": [0]})
    saved = transformers.AutoTokenizer.from_pretrained(sp.export(bridge, mask, tmp_path / "pruned"))
    assert saved("a <new1> b <new2>")["input_ids"] == tokenizer("a <new1> b <new2>")["input_ids"]
    assert saved.chat_template == tokenizer.chat_template
    assert saved.added_tokens_decoder[4097].special
    assert len(saved) == 4098


def test_batches_are_reproducible(model: Any) -> None:
    ids = [list(range(2, 4 + i % 9)) for i in range(50)]
    first, again = ([b.tokens.tolist() for b in text_batches(model, ids, batch_tokens=20)] for _ in range(2))
    assert first == again


@quick
@given(text=st.text(min_size=1, max_size=200), row_tokens=st.integers(3, 40), bos=st.booleans())
@example(text="a b c d e f g", row_tokens=3, bos=False)
def test_the_rows_of_a_text_contain_its_tokens(model: Any, text: str, row_tokens: int, bos: bool) -> None:
    tokens = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = list(split_text(model.tokenizer, text, row_tokens=row_tokens, head=[EOS] * bos))
    assert [token for piece in pieces for token in piece[bos:]] == tokens
    assert all(len(piece) <= row_tokens for piece in pieces)
    assert all(piece[0] == EOS for piece in pieces) or not bos
    if len(tokens) > 1:
        assert all(len(piece) >= 2 for piece in pieces)  # every row has a token to predict


def test_the_last_token_is_dropped_if_it_would_be_a_row_of_one_token(model: Any) -> None:
    pieces = list(split_text(model.tokenizer, " one two three", row_tokens=2))
    assert [len(piece) for piece in pieces] == [2]


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        ("a text", "wrap it in a list"),
        ([], "empty"),
        ([""], "fewer than two tokens"),
        ([[5]], "has 1 token"),
        ([{"input_ids": [[5, 6]], "attention_mask": [[0, 0]]}], "has 0 token"),
        ([list(range(2, 131))], "129 tokens, but the context length of the model is 128"),
        ([[5, 4096]], "the vocabulary of the model is 0 to 4095"),
        ([[5, -1]], "from -1 to 5"),
        ([5, 6], r"expected \[pos\] or \[row pos\]"),
        ([torch.zeros(1, 2, 3, dtype=torch.long)], r"shape \(1, 2, 3\)"),
        ([{"input_ids": [[5, 6]], "attention_mask": [[1]]}], "attention_mask has shape"),
        ([{"tokens": [[5, 6]]}], "no 'input_ids'"),
        ([object()], "cannot read input_ids of the type object"),
        ([{"input_ids": [[5, 6]], "attention_mask": [[0.0, -torch.inf]]}], r"values \[-inf.*attention_mask == 0"),
        ([{"input_ids": [[5, 6]], "attention_mask": [[1, torch.nan]]}], "expected 1 at tokens"),
        ([{"input_ids": [[5, 6, 7, 8]], "attention_mask": [[1, 0, 1, 1]]}], "a gap"),
        (Dataset.from_dict({"input_ids": [[5, 6, 7]], "attention_mask": [[1, 0, 1]]}), "a gap"),
        ([{"input_ids": [[5, 6, 7]], "token_type_ids": [[0, 0, 1]]}], "pairs of sentences"),
        ([{"input_ids": [[5, 6], [7, 8]], "document": ["a", "b"]}], "a list of documents"),
        ([{"input_ids": [[5, 6, 7, 8]], "position_ids": [[0, 1, 0, 1]]}], "pack several texts"),
        ([torch.tensor([[2.7, 3.2]])], "dtype torch.float32: expected integers"),
        ([torch.tensor([[True, False]])], "dtype torch.bool: expected integers"),
        ([{"input_ids": [[5, 6]], "attention_mask": [[1], [1, 1]]}], "attention_mask has 2 rows and input_ids 1"),
        ([{"input_ids": [[5, 6], [7, 8]], "attention_mask": [[1, 1]]}], "attention_mask has 1 rows and input_ids 2"),
        (None, "got NoneType"),
    ],
)
def test_an_invalid_corpus_raises_an_error(model: Any, corpus: Any, message: str) -> None:
    with pytest.raises(SpLensError, match=message):
        list(rows(model, corpus))


def dataset(**documents: list[int]) -> Dataset:
    return Dataset.from_dict({"input_ids": list(documents.values()), "document": list(documents)})


def check_disjoint(model: Any, collected: Any, evaluated: Any, names: tuple[str, str]) -> None:
    check_contents_disjoint(content_of(model, collected), content_of(model, evaluated), names)


LONG, OTHER = list(range(100, 120)), list(range(200, 220))


def test_disjoint_corpora_pass(model: Any) -> None:
    names = ("forget", "eval_forget")
    check_disjoint(model, dataset(a=LONG), dataset(b=OTHER), names)
    check_disjoint(model, dataset(a=LONG[:15]), dataset(b=LONG[:15]), names)  # too short to be compared
    check_disjoint(model, ["one thing", "and another"], [torch.tensor(LONG)], names)


def test_shared_text_raises_an_error(model: Any) -> None:
    names = ("forget", "eval_retain")
    with pytest.raises(SpLensError, match="eval_retain shares 1 documents with forget, for example 'b'"):
        check_disjoint(model, dataset(a=LONG, b=LONG), dataset(b=OTHER, c=OTHER), names)
    for same in (LONG, LONG[:16]):
        with pytest.raises(SpLensError, match="eval_retain has 2 rows that are in forget too"):
            check_disjoint(model, dataset(a=same, b=OTHER[:9]), dataset(c=same, d=OTHER, e=same), names)
    padded = {"input_ids": [[PAD, PAD, *LONG]], "attention_mask": [[0, 0] + [1] * 20]}
    with pytest.raises(SpLensError, match="1 rows"):
        check_disjoint(model, dataset(a=LONG), [padded], names)


def test_different_strings_are_different_documents(model: Any) -> None:
    forget, held_out = (load_corpus([text], model, tokens=None) for text in TEXTS[:2])
    check_disjoint(model, forget, held_out, ("forget", "eval_forget"))


def test_files_with_the_same_name_are_different_documents(model: Any, tmp_path: Any) -> None:
    corpora = []
    for folder, text in zip(("collect", "evaluate"), TEXTS, strict=False):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "text.txt").write_text(text)
        corpora.append(load_corpus(tmp_path / folder / "text.txt", model, tokens=None))
    check_disjoint(model, corpora[0], corpora[1], ("forget", "eval_forget"))
