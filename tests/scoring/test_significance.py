"""The permutation test for specialised neurons, compared with `scipy.stats.permutation_test`."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from fold_stats import MLP, activations, flat, stats_of

import sp_lens as sp
from sp_lens.typing import METRICS


@pytest.mark.parametrize("metric", METRICS)
def test_p_values_are_those_of_scipys_permutation_test(metric: Any) -> None:
    """Uses all 252 ways to label 5 of 10 folds as forget. scipy permutes the indices of the folds."""
    corpora = [activations(seed, folds=5, shift=seed) for seed in (0, 1)]
    forget, retain = (stats_of(parts) for parts in corpora)
    parts = [part for corpus in corpora for part in corpus]
    sizes = np.array([len(part) for part in parts])
    measure = {"abs": np.abs, "freq": lambda z: z > 0, "rms": np.square, "std": np.square}[metric]

    def welch(first: np.ndarray, second: np.ndarray, axis: int = -1) -> Any:
        means, variances = [], []
        for folds in (first.astype(int), second.astype(int)):
            count, tokens = len(folds), sizes[folds].sum()
            # "std" is about the mean of the folds with the same label, in every permutation.
            centre = np.concatenate([parts[fold] for fold in folds]).mean(0) if metric == "std" else 0
            sums = np.array([measure(parts[fold] - centre).sum(0) for fold in folds])
            mean = sums.sum(0) / tokens
            residuals = sums - mean * sizes[folds][:, None]
            means.append(mean)
            variances.append((residuals**2).sum(0) / tokens**2 * count / (count - 1))
        return (means[0] - means[1]) / np.sqrt(variances[0] + variances[1])

    test = sp.specialisation_test(forget, retain, metric=metric, progress=False)
    np.testing.assert_allclose(flat(test.statistic), welch(np.arange(5), np.arange(5, 10)), rtol=1e-4)
    for neuron in (0, 7, 15):
        expected = scipy.stats.permutation_test(
            (np.arange(5), np.arange(5, 10)), lambda one, two, neuron=neuron: np.abs(welch(one, two)[neuron]),
            vectorized=False, n_resamples=10_000, alternative="greater",
        )  # fmt: skip
        assert flat(test.p_values)[neuron] == pytest.approx(expected.pvalue)
    np.testing.assert_allclose(flat(test.adjusted), scipy.stats.false_discovery_control(flat(test.p_values)))
    assert test.statistic.about["permutations"] == 252
    assert test.statistic.about["seed"] is None


def test_random_permutations_approximate_all_of_them() -> None:
    forget, retain = (stats_of(activations(seed, folds=8, shift=seed / 3)) for seed in (0, 1))
    complete = sp.specialisation_test(forget, retain, permutations=20_000, progress=False)
    assert complete.statistic.about["permutations"] == len(list(itertools.combinations(range(16), 8)))
    random = sp.specialisation_test(forget, retain, permutations=5000, seed=1, progress=False)
    np.testing.assert_allclose(flat(random.p_values), flat(complete.p_values), atol=0.03)
    assert flat(random.p_values).min() >= 1 / 5001
    repeated = sp.specialisation_test(forget, retain, permutations=5000, seed=1, progress=False)
    assert torch.equal(repeated.p_values[MLP.name], random.p_values[MLP.name])


def test_the_masks_and_the_frame_name_the_corpus(tmp_path: Path) -> None:
    corpora = [activations(0), activations(1)]
    for parts, neuron in zip(corpora, (5, 9), strict=True):
        for part in parts:
            part[:, neuron] *= 20
    test = sp.specialisation_test(*(stats_of(parts, model="tiny") for parts in corpora), progress=False)
    assert test.mask("forget")[MLP.name].nonzero().flatten().tolist() == [1]
    assert test.mask("retain")[MLP.name].nonzero().flatten().tolist() == [5]
    assert test.mask().count() == 2
    frame = test.frame()
    assert frame.loc[frame["specialised"], "side"].tolist() == ["forget", "retain"]
    test.save(tmp_path / "test.safetensors")
    assert sp.SpecialisationTest.load(tmp_path / "test.safetensors").frame().equals(frame)
    assert "2 of 16" in repr(test)


def test_a_silent_neuron_is_not_specialised() -> None:
    parts = activations(0)
    for part in parts:
        part[:, 0] = 0
    test = sp.specialisation_test(stats_of(parts), stats_of(parts[::-1]), permutations=100, progress=False)
    assert flat(test.p_values)[0] == 1


def test_invalid_options_raise_an_error() -> None:
    stats = stats_of(activations(0))
    with pytest.raises(sp.SpLensError, match="rate is 5: expected a number between 0 and 1"):
        sp.specialisation_test(stats, stats, rate=5)
    with pytest.raises(
        sp.SpLensError, match=r"no p-value is below 0\.091, so no neuron can be found at a rate of 0\.05"
    ):
        sp.specialisation_test(stats, stats, permutations=10)
    with pytest.raises(sp.SpLensError, match="unknown side 'both'"):
        sp.specialisation_test(stats, stats, progress=False).mask("both")  # type: ignore[arg-type]


def test_the_smallest_p_value_is_stated(caplog: pytest.LogCaptureFixture) -> None:
    """With 5 + 5 folds there are 252 permutations, and swapping the corpora gives the same |t|."""
    forget, retain = (stats_of([part + 9 * seed for part in activations(seed, folds=5)]) for seed in (0, 1))
    test = sp.specialisation_test(forget, retain, progress=False)
    assert test.smallest_p_value == pytest.approx(2 / 252)
    assert test.smallest_share == pytest.approx(2 / 252 / 0.05)
    assert "no neuron is found unless 16 % of all neurons are specialised" in caplog.text
    assert flat(test.p_values).min() == pytest.approx(2 / 252)  # the two corpora differ in every neuron
    with pytest.raises(sp.SpLensError, match=r"with 5 \+ 5 folds .* no neuron can be found at a rate of 0\.005"):
        sp.specialisation_test(forget, retain, rate=0.005, progress=False)
    uneven = sp.specialisation_test(forget, stats_of(activations(1, folds=6)), progress=False)
    assert uneven.smallest_p_value == pytest.approx(1 / 462)
    caplog.clear()
    many = [stats_of(activations(seed, folds=20)) for seed in (0, 1)]
    assert sp.specialisation_test(*many, progress=False).smallest_p_value == pytest.approx(1 / 10_001)
    assert not caplog.records
