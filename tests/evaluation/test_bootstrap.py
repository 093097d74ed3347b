"""Compare sums by item with evaluating each item alone, and bootstrap intervals with scipy."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from factories import hits_of, random_mask, tiny_bridge
from tqdm.auto import tqdm

import sp_lens as sp
from sp_lens.evaluation.bootstrap import DocumentHits, document_hits, sums_by_item

pytestmark = pytest.mark.libraries

TEXTS = [
    "def add(a, b):\n    return a + b",
    "The boat left the harbour at noon, and nobody saw it again.",
    "x = 1\n" * 9,
]


def right(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return logits.argmax(dim=1) == targets


@pytest.mark.model
@pytest.mark.parametrize("family", ["opt", "bert"])
def test_sums_of_an_item_match_evaluating_it_alone(family: str) -> None:
    model = tiny_bridge(family)
    corpus = sp.load_corpus(TEXTS, model, tokens=None, row_tokens=12)  # several rows per document
    with tqdm(disable=True) as bar:
        result = sums_by_item(model, corpus, right, seed=3, batch_tokens=40, bar=bar)
    whole = sp.evaluate(model, corpus, seed=3, progress=False)
    assert int(result.counts.sum()) == whole.tokens
    assert float(result.sums.sum()) == pytest.approx(whole.top1 * whole.tokens)
    # The tokens that a masked model predicts depend on the number of the row, so only a causal one can be compared.
    if family == "opt":
        rows = {text: sp.load_corpus([text], model, tokens=None, row_tokens=12) for text in TEXTS}
        alone = [sp.evaluate(model, rows[text], progress=False) for text in TEXTS]
        assert sorted(result.counts.tolist()) == sorted(evaluation.tokens for evaluation in alone)
        assert sorted(result.sums.tolist()) == pytest.approx(
            sorted(evaluation.top1 * evaluation.tokens for evaluation in alone)
        )


def test_the_interval_matches_scipy() -> None:
    hits = hits_of(0)
    tensors = {name: tensor.numpy() for name, tensor in hits.tensors.items()}

    def drop(counts: Any, before: Any, after: Any, axis: int = -1) -> Any:
        return (before - after).sum(axis) / counts.sum(axis)

    def sides(**options: Any) -> list[Any]:
        return [
            scipy.stats.bootstrap(
                [tensors[f"{side}_{what}"] for what in ("counts", "before", "after")],
                drop, paired=True, method="percentile", n_resamples=4000, **options,
                random_state=np.random.default_rng(1),  # pyright: ignore[reportCallIssue]  # `rng` since scipy 1.15
            ).bootstrap_distribution
            for side in ("forget", "retain")
        ]  # fmt: skip

    forget, retain = sides()
    expected = np.percentile(forget - np.random.default_rng(2).permutation(retain), [2.5, 97.5])
    interval = hits.interval()
    assert interval[1:] == pytest.approx(tuple(expected), abs=0.006)
    value = drop(tensors["forget_counts"], tensors["forget_before"], tensors["forget_after"])
    value -= drop(tensors["retain_counts"], tensors["retain_before"], tensors["retain_after"])
    assert interval.value == pytest.approx(value)
    assert interval.low < value < interval.high


def test_the_difference_of_a_change_and_itself_is_zero() -> None:
    assert tuple(hits_of(0).more_than(hits_of(0))) == (0, 0, 0)


def test_few_documents_have_no_interval() -> None:
    interval = hits_of(0, documents=4).interval()
    assert math.isnan(interval.low)
    assert "too few documents" in str(interval)


@pytest.mark.model
def test_hits_have_the_selectivity_of_a_mask_and_are_saved(tmp_path: Path) -> None:
    model = tiny_bridge("gpt2")
    corpora = {side: sp.load_corpus(TEXTS[index::2], model, tokens=None) for index, side in enumerate(["a", "b"])}
    mask = random_mask(model, 0.3)
    held_out = {"eval_forget": corpora["a"], "eval_retain": corpora["b"]}
    hits = document_hits(model, held_out, sp.ablate(model, mask), progress=False)
    before = {side: sp.evaluate(model, corpus, progress=False).top1 for side, corpus in corpora.items()}
    with sp.ablate(model, mask):
        after = {side: sp.evaluate(model, corpus, progress=False).top1 for side, corpus in corpora.items()}
    expected = (before["a"] - after["a"]) - (before["b"] - after["b"])
    assert hits.selectivity == pytest.approx(expected)
    hits.save(tmp_path / "hits.safetensors")
    assert DocumentHits.load(tmp_path / "hits.safetensors").selectivity == hits.selectivity
