"""Statistics by folds of documents: the total does not change, and errors agree with brute force and scipy."""

from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from factories import random_rows, tiny_bridge
from fold_stats import MLP, activations, flat, stats_of
from hypothesis import given, settings
from hypothesis import strategies as st

import sp_lens as sp
from sp_lens.data.batching import assign_folds
from sp_lens.statistics.moments import Moments, leave_one_out, standard_errors
from sp_lens.typing import METRICS

FORMULAS = {
    "freq": lambda z: (z > 0).mean(0),
    "abs": lambda z: np.abs(z).mean(0),
    "rms": lambda z: np.sqrt((z**2).mean(0)),
    "std": lambda z: z.std(0),
}


def assert_close(stats: sp.ActivationStats, other: sp.ActivationStats, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    """Compare the numeric columns of the frames of two statistics."""
    np.testing.assert_allclose(stats.frame().iloc[:, 4:], other.frame().iloc[:, 4:], rtol=rtol, atol=atol)


@pytest.mark.model
def test_folds_change_no_bit_of_the_total_and_contain_their_documents(opt: Any) -> None:
    texts = [f"{word} " * count for count, word in enumerate(["def", "The boat", "x = 1", "noon", "import"] * 3, 4)]
    corpus = sp.load_corpus(texts, opt, tokens=None, row_tokens=12)  # several rows per document
    without_folds = sp.collect(opt, corpus, batch_tokens=60, progress=False)
    stats = sp.collect(opt, corpus, batch_tokens=60, folds=5, progress=False)
    for name in without_folds:
        for key, tensor in without_folds[name].tensors().items():
            assert torch.equal(tensor, stats[name].tensors()[key])
    assert without_folds.folds == ()
    assert len(stats.folds) == 5
    documents = list(dict.fromkeys(corpus["document"]))
    for index, fold in enumerate(stats.folds):
        expected = set(documents[index::5])
        rows = corpus.filter(lambda row, expected=expected: row["document"] in expected)
        alone = sp.collect(opt, rows, progress=False)
        assert fold.count == alone.count
        assert_close(fold, alone)
    # Batches are reduced in float32, and the batches of the folds are different ones, so this is not exact.
    merged = reduce(sp.ActivationStats.merge, stats.folds)
    assert_close(merged, without_folds)
    for name in without_folds:
        assert torch.equal(merged[name].positive, without_folds[name].positive)
        assert torch.equal(merged[name].uncounted_peak, without_folds[name].uncounted_peak)


@pytest.mark.model
def test_images_are_assigned_to_folds_one_by_one() -> None:
    vit = tiny_bridge("vit")
    generator = torch.Generator().manual_seed(0)
    size = vit.original_model.config.image_size
    images = [
        {"pixel_values": torch.randn(3, size, size, generator=generator), "labels": torch.tensor(0)} for _ in range(7)
    ]
    stats = sp.collect(vit, images, folds=5, batch_tokens=1, progress=False)
    patches = stats.count // 7
    assert [fold.count for fold in stats.folds] == [2 * patches] * 2 + [patches] * 3


@pytest.mark.model
def test_corpora_that_cannot_be_divided_into_folds_raise_an_error(opt: Any) -> None:
    rows = random_rows(6)
    fold_of = assign_folds(opt, rows, folds=5, fold_documents=None)
    assert list(fold_of.values()) == [0, 1, 2, 3, 4, 0]  # a row without a document is one by itself
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (rows, {"folds": 4}, "folds=4 is too few"),
        (rows, {"folds": 7}, "only 6 documents. Use at most folds=6"),
        (rows[:3], {"folds": 5}, "only 3 documents. Omit folds"),
        (["one text that is long " * 90] * 3, {"folds": 5}, "only 1 documents"),
        (iter(rows), {"folds": 5}, "read once only"),
        (rows, {"fold_documents": 0}, "fold_documents is 0: expected 1 or more"),
        (rows, {"fold_documents": 2}, "only 6 documents, and at least 5 folds are needed"),
        (rows, {"folds": 5, "fold_documents": 1}, "exclude each other"),
    ]
    for corpus, options, match in cases:
        with pytest.raises(sp.SpLensError, match=match):
            sp.collect(opt, corpus, progress=False, **options)


@pytest.mark.model
def test_folds_hold_the_requested_number_of_documents(opt: Any, tmp_path: Path) -> None:
    """The documents that would not fill another fold are added to the others, one to each."""
    rows = random_rows(17)
    stats = sp.collect(opt, rows, fold_documents=3, progress=False)
    assert [fold.about["documents"] for fold in stats.folds] == [4, 4, 3, 3, 3]
    stats.save(tmp_path / "stats.safetensors")
    assert [fold.about["documents"] for fold in sp.ActivationStats.load(tmp_path / "stats.safetensors").folds] == [
        4, 4, 3, 3, 3
    ]  # fmt: skip
    twice = stats.merge(sp.collect(opt, rows[::-1], fold_documents=3, progress=False))
    assert [fold.about["documents"] for fold in twice.folds] == [8, 8, 6, 6, 6]
    assert "documents" not in twice.about


def test_folds_are_saved_and_loaded(tmp_path: Path) -> None:
    stats = stats_of(activations(0), model="tiny")
    stats.save(tmp_path / "stats.safetensors")
    loaded = sp.ActivationStats.load(tmp_path / "stats.safetensors")
    assert loaded.frame().equals(stats.frame())
    assert [fold.count for fold in loaded.folds] == [fold.count for fold in stats.folds]
    for fold, expected in zip(loaded.folds, stats.folds, strict=True):
        assert fold.frame().equals(expected.frame())
        assert fold.about == expected.about
    assert repr(loaded) == repr(stats)
    assert "in 8 folds" in repr(stats)


@given(seed=st.integers(0, 1000), order=st.permutations(range(3)))
@settings(max_examples=5)
def test_folds_of_several_corpora_merge_pairwise_in_any_order(seed: int, order: list[int]) -> None:
    corpora = [stats_of(activations(seed + corpus)) for corpus in range(3)]
    merged = reduce(sp.ActivationStats.merge, [corpora[corpus] for corpus in order])
    for index, fold in enumerate(merged.folds):
        parts = [activations(seed + corpus)[index] for corpus in range(3)]
        assert_close(fold, stats_of([np.concatenate(parts)]).folds[0])
    forwards = reduce(sp.ActivationStats.merge, merged.folds)
    backwards = reduce(sp.ActivationStats.merge, merged.folds[::-1])
    assert_close(forwards, backwards, rtol=1e-12, atol=1e-12)
    with pytest.raises(sp.SpLensError, match="8 and 7 folds"):
        merged.merge(stats_of(activations(0, folds=7)))


@given(seed=st.integers(0, 1000), folds=st.integers(2, 9))
@settings(max_examples=20)
def test_standard_errors_are_those_of_leaving_out_each_fold(seed: int, folds: int) -> None:
    parts = activations(seed, folds)
    stats = stats_of(parts)
    assert [others.count for others in leave_one_out([fold[MLP.name] for fold in stats.folds])] == [
        sum(map(len, parts)) - len(part) for part in parts
    ]
    for metric in METRICS:
        left_out = [np.concatenate(parts[:fold] + parts[fold + 1 :]) for fold in range(folds)]
        expected = np.sqrt((folds - 1) * np.array([FORMULAS[metric](z) for z in left_out]).var(0))
        np.testing.assert_allclose(flat(stats.standard_error(metric)), expected, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(stats.frame()[f"{metric}_error"], expected, rtol=1e-4, atol=1e-7)


def test_with_one_token_per_fold_the_standard_error_of_abs_is_that_of_a_mean() -> None:
    z = torch.randn(30, 3, generator=torch.Generator().manual_seed(0)).double()
    errors = standard_errors([Moments.from_activations(row[None]) for row in z], "abs")
    np.testing.assert_allclose(errors, scipy.stats.sem(z.abs().numpy()), rtol=1e-6)


def test_standard_errors_need_folds() -> None:
    stats = stats_of(activations(0))
    with pytest.raises(sp.SpLensError, match=r"folds=20"):
        sp.ActivationStats(stats.layout, stats.moments).standard_error()
