"""Confidence intervals of importances and scores, compared with the formulas written out with scipy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from fold_stats import LAYOUT, activations, flat, stats_of

import sp_lens as sp


def test_an_interval_is_that_of_students_t_on_the_logarithm() -> None:
    """With folds of equal size, t has folds - 1 degrees of freedom; those of two corpora combine (Welch)."""
    parts = [[z[:10] for z in activations(seed)] for seed in (0, 1)]
    forget, retain = (stats_of(part) for part in parts)
    importance = sp.uncertainty(forget, metric="rms", level=0.9).frame()
    relative = importance["standard_error"] / importance["value"]
    expected = importance["value"] * np.exp(scipy.stats.t.ppf(0.95, 7) * relative)
    np.testing.assert_allclose(importance["high"], expected)
    np.testing.assert_allclose(importance["low"] * importance["high"], importance["value"] ** 2)

    score = sp.uncertainty(forget, retain, metric="rms", eps=0.5).frame()
    np.testing.assert_allclose(score["value"], flat(sp.score(forget, retain, metric="rms", eps=0.5)))
    relative_forget = flat(forget.standard_error("rms")) / flat(forget.importance("rms"))
    relative_retain = flat(retain.standard_error("rms")) / (flat(retain.importance("rms")) + 0.5)
    total = relative_forget**2 + relative_retain**2
    freedom = total**2 / (relative_forget**4 / 7 + relative_retain**4 / 7)
    np.testing.assert_allclose(score["standard_error"], score["value"] * np.sqrt(total))
    expected = score["value"] * np.exp(-scipy.stats.t.ppf(0.975, freedom) * np.sqrt(total))
    np.testing.assert_allclose(score["low"], expected)


def test_a_silent_neuron_has_an_interval_of_width_0_and_one_active_in_one_fold_a_wide_one() -> None:
    parts = activations(0)
    for part in parts:
        part[:, :2] = 0
    parts[3][:, 1] = 1
    importance = sp.uncertainty(stats_of(parts)).frame()
    assert importance.loc[0, ["value", "standard_error", "low", "high"]].tolist() == [0, 0, 0, 0]
    assert importance.loc[1, "high"] > 5 * importance.loc[1, "value"]
    score = sp.uncertainty(stats_of(parts), stats_of(parts), eps=0).frame()
    assert score.loc[0, ["value", "low", "high"]].tolist() == [0, 0, 0]


def test_folds_of_unequal_size_have_fewer_degrees_of_freedom() -> None:
    equal = [z[:10] for z in activations(0)]
    unequal = [np.concatenate([z[:10]] * (12 if index < 2 else 1)) for index, z in enumerate(activations(0))]

    def t_quantiles(parts: list[np.ndarray]) -> np.ndarray:
        frame = sp.uncertainty(stats_of(parts)).frame()
        return np.log(frame["high"] / frame["value"]) / (frame["standard_error"] / frame["value"])

    np.testing.assert_allclose(t_quantiles(equal), scipy.stats.t.ppf(0.975, 7), rtol=1e-9)
    assert (t_quantiles(unequal) > 5).all()  # the number of folds is effectively little more than two


def test_uncertainty_is_saved_and_loaded(tmp_path: Path) -> None:
    result = sp.uncertainty(stats_of(activations(0), model="a"), stats_of(activations(1), model="a"))
    result.save(tmp_path / "uncertainty.safetensors")
    loaded = sp.Uncertainty.load(tmp_path / "uncertainty.safetensors")
    assert loaded.frame().equals(result.frame())
    assert loaded.values.about["folds"] == [8, 8]
    assert len(result.select("attn").frame()) == 4


@pytest.mark.parametrize("function", [sp.uncertainty, sp.specialisation_test, sp.rank_stability])
def test_statistics_without_folds_or_of_different_models_raise_an_error(function: Any) -> None:
    stats, other = stats_of(activations(0), model="a"), stats_of(activations(1), model="b")
    without_folds = sp.ActivationStats(LAYOUT, stats.moments)
    for corpora, message in (
        ((stats, other), "different models"),
        ((stats, without_folds), "folds=20"),
        ((3, stats), "forget is a int"),
    ):
        with pytest.raises(sp.SpLensError, match=message):
            function(*corpora)


def test_a_level_in_per_cent_raises_an_error() -> None:
    with pytest.raises(sp.SpLensError, match="level is 95: expected a number between 0 and 1"):
        sp.uncertainty(stats_of(activations(0)), level=95)
