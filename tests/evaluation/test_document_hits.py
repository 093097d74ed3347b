"""Hits by document, compared with evaluating each document alone, and the selection of the best step."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import hits_of, random_mask, tiny_bridge

import sp_lens as sp
from sp_lens.evaluation.document_hits import DocumentHits, cross_fitted, document_hits, mean_hits
from sp_lens.evaluation.evaluate import DocumentSums, evaluate_documents
from sp_lens.typing import SIDES

pytestmark = pytest.mark.libraries

TEXTS = [
    "def add(a, b):\n    return a + b",
    "The boat left the harbour at noon, and nobody saw it again.",
    "x = 1\n" * 9,
]


@pytest.mark.model
@pytest.mark.parametrize("family", ["opt", "bert"])
def test_sums_of_a_document_match_evaluating_it_alone(family: str) -> None:
    model = tiny_bridge(family)
    corpus = sp.load_corpus(TEXTS, model, tokens=None, row_tokens=12)  # several rows per document
    whole, sums = evaluate_documents(model, corpus, seed=3, batch_tokens=40, progress=False)
    assert whole == sp.evaluate(model, corpus, seed=3, progress=False)
    assert int(sums.counts.sum()) == whole.tokens
    assert float(sums.hits.sum()) == pytest.approx(whole.top1 * whole.tokens)
    assert float(sums.nats.sum()) == pytest.approx(whole.loss * whole.tokens)
    # The tokens that a masked model predicts depend on the number of the row, so only a causal one can be compared.
    if family == "opt":
        alone = [
            sp.evaluate(model, sp.load_corpus([text], model, tokens=None, row_tokens=12), progress=False)
            for text in TEXTS
        ]
        assert sums.counts.tolist() == [evaluation.tokens for evaluation in alone]  # in the order of the corpus
        assert sums.hits.tolist() == pytest.approx([evaluation.top1 * evaluation.tokens for evaluation in alone])
        assert sums.nats.tolist() == pytest.approx([evaluation.loss * evaluation.tokens for evaluation in alone])


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


def test_differences_are_taken_document_by_document() -> None:
    first, second, third = (hits_of(0, lost=lost) for lost in (0.5, 0.4, 0.2))
    assert tuple(first.more_than(first)) == (0, 0, 0)
    difference = first.more_than(second, third)
    assert difference.value == pytest.approx(first.selectivity - (second.selectivity + third.selectivity) / 2)
    assert mean_hits([second, third]).selectivity == pytest.approx((second.selectivity + third.selectivity) / 2)
    with pytest.raises(sp.SpLensError, match=r"different forget documents \(30 and 20\)"):
        first.more_than(hits_of(0, documents=20))


def step(forget: list[int], retain: list[int]) -> dict[Any, DocumentSums]:
    """Return the sums after a step, given the hits on documents of 10 predictions."""
    hits = {"forget": torch.tensor(forget).double(), "retain": torch.tensor(retain).double()}
    return {side: DocumentSums(torch.full_like(hits[side], 10), hits[side], hits[side]) for side in SIDES}


def test_each_half_is_measured_at_the_step_that_is_best_on_the_other_half() -> None:
    """Step 1 is the best on the documents at even positions, and step 2 on those at odd positions."""
    steps = [step([9, 9, 9, 9], [9, 9]), step([1, 7, 1, 7], [9, 9]), step([6, 2, 6, 2], [8, 8])]
    hits = cross_fitted(steps)
    assert hits.tensors["forget_after"].tolist() == [6, 7, 6, 7]
    assert hits.tensors["retain_after"].tolist() == [8, 9]
    assert hits.tensors["forget_before"].tolist() == [9, 9, 9, 9]
    assert steps[0]["forget"].hits.tolist() == [9, 9, 9, 9]
    assert cross_fitted(steps[:1]).selectivity == 0
    one = [step([9], [9]), step([3], [8]), step([2], [2])]  # no second half
    assert cross_fitted(one).selectivity == pytest.approx(0.5)


def test_without_any_effect_the_mean_selectivity_is_zero() -> None:
    """The largest of ten steps that change nothing but chance is positive; the cross-fitted one is not."""
    generator = np.random.default_rng(0)
    naive, fitted = [], []
    for _ in range(300):
        steps = [
            step(generator.binomial(10, 0.5, 4).tolist(), generator.binomial(10, 0.5, 4).tolist()) for _ in range(10)
        ]
        fitted.append(cross_fitted(steps).selectivity)
        naive.append(max(DocumentHits.from_sums(steps[0], each).selectivity for each in steps))
    assert np.mean(naive) > 0.1
    # Step 0 is one of the steps, and all drops are relative to it, so the mean is compared with its standard error.
    assert abs(np.mean(fitted)) < 3 * np.std(fitted) / np.sqrt(300)


@pytest.mark.model
def test_runs_record_their_documents(opt: Any, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    corpora = {
        name: [torch.randint(5, 4000, (1, 12), generator=generator) for _ in range(9)]
        for name in ("forget", "retain", "eval_forget", "eval_retain")
    }
    options: dict[str, Any] = {**corpora, "steps": 2, "progress": False}
    for run in (sp.prune(opt, fraction=0.2, **options), sp.unlearning.gradient_ascent(opt, **options)):
        for number in range(3):
            hits = run.hits_at(number)
            record = run.history.iloc[number]
            assert hits.drop("forget").value == pytest.approx(record["forget_drop"])
            assert hits.perplexity("retain").value == pytest.approx(record["retain_perplexity"])
        assert run.selectivity == pytest.approx(run.best_hits().interval().value)
        run.save(tmp_path / "run.safetensors")
        loaded = type(run).load(tmp_path / "run.safetensors")
        assert loaded.best_hits().interval() == run.best_hits().interval()
        with pytest.raises(sp.SpLensError, match="no step 3"):
            run.hits_at(3)


def test_a_run_without_documents_says_so() -> None:
    run = sp.PruneRun(sp.layout_of(tiny_bridge("opt")), {}, [{"step": 0, "forget_top1": 0.5, "retain_top1": 0.5}], {})
    assert run.selectivity == 0
    with pytest.raises(sp.SpLensError, match="earlier version, without the hits on each document"):
        run.best_hits()
