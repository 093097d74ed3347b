"""The stability of the ranking, compared with sets of neurons computed by numpy."""

import numpy as np
import pytest
from fold_stats import activations, stats_of

import sp_lens as sp


def test_shared_fractions_are_those_of_the_sets() -> None:
    corpora = [activations(0), activations(1)]
    forget, retain = (stats_of(parts) for parts in corpora)
    frame = sp.rank_stability(forget, retain, fraction=0.25, orders=2, seed=3)
    assert len(frame) == 16

    def top(folds: np.ndarray) -> set[int]:
        importances = [
            np.abs(np.concatenate([parts[fold] for fold in folds]))[:, 4:].mean(0)  # MLP neurons
            for parts in corpora
        ]
        return set(np.argsort(-importances[0] / (importances[1] + 1e-3))[:3].tolist())

    generator = np.random.default_rng(3)
    for number in range(2):
        order = generator.permutation(8)
        for k in range(1, 9):
            row = frame[(frame["order"] == number) & (frame["folds"] == k)].iloc[0]
            assert row["with_all"] == len(top(order[:k]) & top(order)) / 3
            assert row["tokens"] == sum(len(parts[fold]) for parts in corpora for fold in order[:k]) / 2
            if k <= 4:
                assert row["with_others"] == len(top(order[:k]) & top(order[-k:])) / 3
            else:
                assert np.isnan(row["with_others"])
    assert (frame.query("folds == 8")["with_all"] == 1).all()


def test_invalid_input_raises_an_error() -> None:
    stats = stats_of(activations(0))
    with pytest.raises(sp.SpLensError, match="forget has 8 folds and retain has 7"):
        sp.rank_stability(stats, stats_of(activations(0, folds=7)))
    with pytest.raises(sp.SpLensError, match="orders is 0"):
        sp.rank_stability(stats, stats, orders=0)
