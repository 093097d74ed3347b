"""Batch streams: folds of documents, and splitting batches that do not fit into memory.

A hook raises torch's out-of-memory error, as on a GPU, whenever the model reads more than a given number of rows.
"""

import logging
from typing import Any

import pytest
import torch
from factories import little_memory, random_rows, same, tiny_bridge
from hypothesis import given
from hypothesis import strategies as st

import sp_lens as sp
from sp_lens.data.batching import BatchStream, text_batches

pytestmark = pytest.mark.model

MAX_ROWS = 3


def random_texts(model: Any) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    lengths = (9, 20, 14, 7, 20, 11, 5, 17)
    return [torch.randint(5, model.cfg.d_vocab, (1, length), generator=generator) for length in lengths]


def test_a_stream_has_all_batches_of_the_corpus(opt: Any) -> None:
    rows = random_rows(20)
    expected = [batch.tokens.tolist() for batch in text_batches(opt, rows, batch_tokens=60)]
    stream = BatchStream(opt, rows, batch_tokens=60)
    results = list(stream.map(lambda batch: batch.tokens.tolist()))
    assert [result for _, result in results] == expected
    assert [batch.number for batch, _ in results] == list(range(len(expected)))
    assert all(stream.folds_of(batch) is None for batch, _ in results)


@given(lengths=st.lists(st.integers(2, 250), min_size=1, max_size=60), batch_tokens=st.integers(50, 1000))
def test_batches_have_each_row_once_and_little_padding(demo: Any, lengths: list[int], batch_tokens: int) -> None:
    corpus = [torch.full((length,), 5 + index) for index, length in enumerate(lengths)]
    batches = list(text_batches(demo, corpus, batch_tokens=batch_tokens))
    in_batches = [row.tokens.tolist() for batch in batches for row in batch.rows]
    assert sorted(in_batches) == sorted(row.tolist() for row in corpus)
    for batch in batches:
        assert batch.tokens.numel() <= max(batch_tokens, batch.tokens.shape[1])
        assert (batch.attention_mask.sum(dim=1) >= batch.tokens.shape[1] - 64).all()  # the model is on the CPU


def test_folds_of_rows_are_those_of_their_documents(opt: Any) -> None:
    texts = [f"{word} " * 20 for word in ("def", "boat", "noon", "import", "captain", "harbour")]
    corpus = sp.load_corpus(texts, opt, tokens=None, row_tokens=12)  # several rows per document
    documents = list(dict.fromkeys(corpus["document"]))
    stream = BatchStream(opt, corpus, batch_tokens=30, folds=5)
    for batch, folds in stream.map(stream.folds_of):
        assert folds is not None
        assert folds.tolist() == [documents.index(row.document) % 5 for row in batch.rows]


def test_folds_of_images_are_assigned_in_turn() -> None:
    vit = tiny_bridge("vit")
    size = vit.original_model.config.image_size
    images = [{"pixel_values": torch.zeros(3, size, size), "labels": 0} for _ in range(7)]
    stream = BatchStream(vit, images, batch_tokens=40, folds=5)
    folds = [folds for _, folds in stream.map(stream.folds_of) if folds is not None]
    assert torch.cat(folds).tolist() == [0, 1, 2, 3, 4, 0, 1]


def test_statistics_are_the_same_when_batches_are_split(opt: Any, caplog: pytest.LogCaptureFixture) -> None:
    corpus = random_texts(opt)
    edges = torch.linspace(-3, 3, 13)
    whole = sp.collect(opt, corpus, edges=edges, folds=5, progress=False)
    with little_memory(opt, MAX_ROWS) as seen, caplog.at_level(logging.WARNING, "sp_lens"):
        split = sp.collect(opt, corpus, edges=edges, folds=5, progress=False)
    assert seen[0] == 8
    assert seen[1] == 4
    assert max(seen[2:]) <= MAX_ROWS
    assert "out of memory with 160 tokens per batch, continuing with half" in caplog.text
    same(split, whole)
    for split_fold, whole_fold in zip(split.folds, whole.folds, strict=True):
        same(split_fold, whole_fold)


def test_later_batches_are_split_from_the_start(opt: Any) -> None:
    corpus = [torch.arange(2, 22).repeat(8, 1) for _ in range(3)]
    with little_memory(opt, MAX_ROWS) as seen:
        sp.collect(opt, corpus, batch_tokens=160, progress=False)
    assert seen == [8, 4, 2, 2, 2, 2, *[2] * 8]


def test_an_evaluation_is_the_same_when_batches_are_split(opt: Any) -> None:
    corpus = random_texts(opt)
    whole = sp.evaluate(opt, corpus, progress=False)
    with little_memory(opt, MAX_ROWS):
        split = sp.evaluate(opt, corpus, progress=False)
    assert (split.tokens, split.top1, split.top10) == (whole.tokens, whole.top1, whole.top10)
    assert split.loss == pytest.approx(whole.loss, rel=1e-6)


def test_a_masked_model_predicts_the_same_tokens_when_batches_are_split() -> None:
    bert = tiny_bridge("bert")
    corpus = random_texts(bert)
    whole = sp.evaluate(bert, corpus, progress=False)
    with little_memory(bert, MAX_ROWS):
        split = sp.evaluate(bert, corpus, progress=False)
    assert (split.tokens, split.top1) == (whole.tokens, whole.top1)
    assert split.loss == pytest.approx(whole.loss, rel=1e-5)


def test_examples_are_the_same_when_batches_are_split(opt: Any) -> None:
    corpus = random_texts(opt)
    neurons = sp.NeuronMask.from_neurons(sp.layout_of(opt), {"blocks.1.mlp.hook_post": [3, 40]})
    whole = sp.top_examples(opt, corpus, neurons, k=4, context=3, progress=False).frame()
    with little_memory(opt, MAX_ROWS):
        split = sp.top_examples(opt, corpus, neurons, k=4, context=3, progress=False).frame()
    assert split.drop(columns="activation").equals(whole.drop(columns="activation"))
    assert split["activation"].tolist() == pytest.approx(whole["activation"].tolist(), rel=1e-5, abs=1e-6, nan_ok=True)


def test_a_row_that_does_not_fit_into_memory_is_an_error(opt: Any) -> None:
    with little_memory(opt, 0), pytest.raises(sp.SpLensError, match="a row of 20 tokens does not fit into memory"):
        sp.collect(opt, random_texts(opt), progress=False)


def test_other_errors_are_raised_as_they_are(opt: Any) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("shapes do not agree")

    handle = opt.blocks[0].register_forward_pre_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="shapes do not agree"):
            sp.evaluate(opt, random_texts(opt), progress=False)
    finally:
        handle.remove()
