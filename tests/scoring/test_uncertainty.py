"""Statistics by folds of documents: the whole is untouched, and what they say against brute force and scipy."""

import itertools
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from factories import random_rows, tiny_bridge
from hypothesis import given, settings
from hypothesis import strategies as st

import sp_lens as sp
from sp_lens.data.batching import deal
from sp_lens.neurons.layout import Layout, NeuronGroup
from sp_lens.statistics.moments import Moments, leave_one_out, standard_errors
from sp_lens.typing import METRICS

MLP, ATTN = NeuronGroup("mlp", 0, 12), NeuronGroup("attn", 0, 4, heads=2)
LAYOUT = Layout((ATTN, MLP))
FORMULAS = {
    "freq": lambda z: (z > 0).mean(0),
    "abs": lambda z: np.abs(z).mean(0),
    "rms": lambda z: np.sqrt((z**2).mean(0)),
    "std": lambda z: z.std(0),
}


def activations(seed: int, folds: int = 8, width: int = 16, shift: float = 0.0) -> list[np.ndarray]:
    """Of each fold [token neuron], of different sizes; what folds have in common makes them differ."""
    generator = np.random.default_rng(seed)
    sizes = generator.integers(10, 60, folds)
    found = [generator.normal(shift + generator.normal(0, 0.5, width), 1, (size, width)) for size in sizes]
    return [z.astype(np.float32).astype(float) for z in found]


def stats_of(parts: list[np.ndarray], **about: Any) -> sp.ActivationStats:
    """Statistics by folds of activations, the first 4 neurons of which are attention neurons."""

    def one(z: np.ndarray) -> dict[str, Moments]:
        tensor = torch.tensor(z)
        return {ATTN.name: Moments.from_activations(tensor[:, :4]), MLP.name: Moments.from_activations(tensor[:, 4:])}

    folds = tuple(sp.ActivationStats(LAYOUT, one(part), about) for part in parts)
    return sp.ActivationStats(LAYOUT, one(np.concatenate(parts)), about, folds)


def flat(values: sp.NeuronValues) -> np.ndarray:
    return np.concatenate([tensor.numpy() for tensor in values.values()])


# Collecting


@pytest.mark.model
def test_the_whole_is_the_same_to_the_last_bit_and_the_folds_are_those_of_their_documents(opt: Any) -> None:
    texts = [f"{word} " * count for count, word in enumerate(["def", "The boat", "x = 1", "noon", "import"] * 3, 4)]
    corpus = sp.load_corpus(texts, opt, tokens=None, row_tokens=12)  # several rows of each document
    whole = sp.collect(opt, corpus, batch_tokens=60, progress=False)
    stats = sp.collect(opt, corpus, batch_tokens=60, folds=5, progress=False)
    for name in whole:
        for key, tensor in whole[name].tensors().items():
            assert torch.equal(tensor, stats[name].tensors()[key])
    assert whole.folds == ()
    assert len(stats.folds) == 5
    documents = list(dict.fromkeys(corpus["document"]))
    for place, fold in enumerate(stats.folds):
        own = set(documents[place::5])
        alone = sp.collect(opt, corpus.filter(lambda row, own=own: row["document"] in own), progress=False)
        assert fold.count == alone.count
        np.testing.assert_allclose(fold.frame().iloc[:, 4:], alone.frame().iloc[:, 4:], rtol=1e-5, atol=1e-6)
    # A batch is reduced in float32, and the folds are other batches.
    together = reduce(sp.ActivationStats.merge, stats.folds)
    np.testing.assert_allclose(together.frame().iloc[:, 4:], whole.frame().iloc[:, 4:], rtol=1e-5, atol=1e-6)
    for name in whole:
        assert torch.equal(together[name].positive, whole[name].positive)
        assert torch.equal(together[name].uncounted_peak, whole[name].uncounted_peak)


@pytest.mark.model
def test_images_are_dealt_one_by_one() -> None:
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
def test_what_can_not_be_dealt_is_refused(opt: Any) -> None:
    rows = random_rows(6)
    assert list(deal(opt, rows, 5).values()) == [0, 1, 2, 3, 4, 0]  # a row that is of no document is its own
    for corpus, folds, match in (
        (rows, 4, "folds=4: expected 5 or more"),
        (rows, 7, "has 6 documents: ask for 6 folds at most"),
        (rows[:3], 5, "has 3 documents: none can be made"),
        (["one text that is long " * 90] * 3, 5, "has 1 documents"),
        (iter(rows), 5, "read once only"),
    ):
        with pytest.raises(sp.SpLensError, match=match):
            sp.collect(opt, corpus, folds=folds, progress=False)


def test_folds_come_back_from_disk(tmp_path: Path) -> None:
    stats = stats_of(activations(0), model="tiny")
    stats.save(tmp_path / "stats.safetensors")
    again = sp.ActivationStats.load(tmp_path / "stats.safetensors")
    assert again.frame().equals(stats.frame())
    assert [fold.count for fold in again.folds] == [fold.count for fold in stats.folds]
    for one, other in zip(again.folds, stats.folds, strict=True):
        assert one.frame().equals(other.frame())
        assert one.about == other.about
    assert repr(again) == repr(stats)
    assert "in 8 folds" in repr(stats)


@given(seed=st.integers(0, 1000), order=st.permutations(range(3)))
@settings(max_examples=5)
def test_folds_merge_one_to_one_in_any_order(seed: int, order: list[int]) -> None:
    corpora = [stats_of(activations(seed + place)) for place in range(3)]
    merged = reduce(sp.ActivationStats.merge, [corpora[place] for place in order])
    for place, fold in enumerate(merged.folds):
        expected = stats_of([np.concatenate([activations(seed + corpus)[place] for corpus in range(3)])]).folds[0]
        np.testing.assert_allclose(fold.frame().iloc[:, 4:], expected.frame().iloc[:, 4:], rtol=1e-5, atol=1e-6)
    together = reduce(sp.ActivationStats.merge, merged.folds)
    again = reduce(sp.ActivationStats.merge, merged.folds[::-1])
    np.testing.assert_allclose(together.frame().iloc[:, 4:], again.frame().iloc[:, 4:], rtol=1e-12, atol=1e-12)
    with pytest.raises(sp.SpLensError, match="8 and 7 folds"):
        merged.merge(stats_of(activations(0, folds=7)))


# Standard errors and intervals


@given(seed=st.integers(0, 1000), folds=st.integers(2, 9))
@settings(max_examples=20)
def test_standard_errors_are_those_of_leaving_each_fold_out(seed: int, folds: int) -> None:
    parts = activations(seed, folds)
    stats = stats_of(parts)
    assert [others.count for others in leave_one_out([fold[MLP.name] for fold in stats.folds])] == [
        sum(map(len, parts)) - len(part) for part in parts
    ]
    for metric, formula in FORMULAS.items():
        left = np.array([formula(np.concatenate(parts[:out] + parts[out + 1 :])) for out in range(folds)])
        expected = np.sqrt((folds - 1) * left.var(0))
        np.testing.assert_allclose(flat(stats.standard_error(metric)), expected, rtol=1e-4, atol=1e-7)  # type: ignore[arg-type]
        np.testing.assert_allclose(stats.frame()[f"{metric}_error"], expected, rtol=1e-4, atol=1e-7)


def test_of_blocks_of_one_token_the_standard_error_of_abs_is_that_of_a_mean() -> None:
    z = torch.randn(30, 3, generator=torch.Generator().manual_seed(0)).double()
    errors = standard_errors([Moments.from_activations(row[None]) for row in z], "abs")
    np.testing.assert_allclose(errors, scipy.stats.sem(z.abs().numpy()), rtol=1e-6)


def test_an_interval_is_students_on_the_logarithm() -> None:
    """By hand, of folds of one size: their t has folds - 1 degrees of freedom, and two corpora's add (Welch)."""
    parts = [[z[:10] for z in activations(seed)] for seed in (0, 1)]
    forget, retain = (stats_of(part) for part in parts)
    one = sp.uncertainty(forget, metric="rms", level=0.9).frame()
    relative = one["standard_error"] / one["value"]
    np.testing.assert_allclose(one["high"], one["value"] * np.exp(scipy.stats.t.ppf(0.95, 7) * relative))
    np.testing.assert_allclose(one["low"] * one["high"], one["value"] ** 2)
    score = sp.uncertainty(forget, retain, metric="rms", eps=0.5).frame()
    np.testing.assert_allclose(score["value"], flat(sp.score(forget, retain, metric="rms", eps=0.5)))
    shares = [flat(forget.standard_error("rms")) / flat(forget.importance("rms"))]
    shares += [flat(retain.standard_error("rms")) / (flat(retain.importance("rms")) + 0.5)]
    total = shares[0] ** 2 + shares[1] ** 2
    freedom = total**2 / (shares[0] ** 4 / 7 + shares[1] ** 4 / 7)
    np.testing.assert_allclose(score["standard_error"], score["value"] * np.sqrt(total))
    expected = score["value"] * np.exp(-scipy.stats.t.ppf(0.975, freedom) * np.sqrt(total))
    np.testing.assert_allclose(score["low"], expected)


def test_a_neuron_that_never_fires_is_0_for_sure_and_one_of_a_few_documents_is_not() -> None:
    parts = activations(0)
    for part in parts:
        part[:, 0] = 0
        part[:, 1] = 0
    parts[3][:, 1] = 1
    found = sp.uncertainty(stats_of(parts)).frame()
    assert found.loc[0, ["value", "standard_error", "low", "high"]].tolist() == [0, 0, 0, 0]
    assert found.loc[1, "high"] > 5 * found.loc[1, "value"]
    score = sp.uncertainty(stats_of(parts), stats_of(parts), eps=0).frame()
    assert score.loc[0, ["value", "low", "high"]].tolist() == [0, 0, 0]


def test_unequal_folds_have_fewer_degrees_of_freedom() -> None:
    even = [z[:10] for z in activations(0)]
    uneven = [np.concatenate([z[:10]] * (12 if place < 2 else 1)) for place, z in enumerate(activations(0))]

    def reach(parts: list[np.ndarray]) -> np.ndarray:
        frame = sp.uncertainty(stats_of(parts)).frame()
        return np.log(frame["high"] / frame["value"]) / (frame["standard_error"] / frame["value"])

    np.testing.assert_allclose(reach(even), scipy.stats.t.ppf(0.975, 7), rtol=1e-9)
    assert (reach(uneven) > 5).all()  # little more than two folds count


def test_uncertainty_comes_back_from_disk(tmp_path: Path) -> None:
    found = sp.uncertainty(stats_of(activations(0), model="a"), stats_of(activations(1), model="a"))
    found.save(tmp_path / "found.safetensors")
    again = sp.Uncertainty.load(tmp_path / "found.safetensors")
    assert again.frame().equals(found.frame())
    assert again.values.about["folds"] == [8, 8]
    assert len(found.select("attn").frame()) == 4


# Which neurons are specialised


@pytest.mark.parametrize("metric", METRICS)
def test_p_values_are_those_of_scipys_permutation_test(metric: Any) -> None:
    """All 252 ways to call 5 of 10 folds forget; scipy moves the folds themselves, by their numbers."""
    sides = [activations(seed, folds=5, shift=seed) for seed in (0, 1)]
    forget, retain = (stats_of(parts) for parts in sides)
    centres = [np.concatenate(parts).mean(0) for parts in sides]
    amounts = []
    for parts, centre in zip(sides, centres, strict=True):
        measure = {"abs": np.abs, "freq": lambda z: z > 0, "rms": np.square, "std": lambda z, c=centre: (z - c) ** 2}
        amounts += [measure[metric](z).sum(0) for z in parts]
    sums, sizes = np.array(amounts), np.array([len(z) for parts in sides for z in parts])

    def welch(first: np.ndarray, second: np.ndarray, axis: int = -1) -> Any:
        values = []
        for chosen in (first.astype(int), second.astype(int)):
            count, tokens = len(chosen), sizes[chosen].sum()
            mean = sums[chosen].sum(0) / tokens
            rest = sums[chosen] - mean * sizes[chosen][:, None]
            values.append((mean, (rest**2).sum(0) / tokens**2 * count / (count - 1)))
        return (values[0][0] - values[1][0]) / np.sqrt(values[0][1] + values[1][1])

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


def test_drawn_permutations_approach_all_of_them() -> None:
    forget, retain = (stats_of(activations(seed, folds=8, shift=seed / 3)) for seed in (0, 1))
    complete = sp.specialisation_test(forget, retain, permutations=20_000, progress=False)
    assert complete.statistic.about["permutations"] == len(list(itertools.combinations(range(16), 8)))
    drawn = sp.specialisation_test(forget, retain, permutations=5000, seed=1, progress=False)
    np.testing.assert_allclose(flat(drawn.p_values), flat(complete.p_values), atol=0.03)
    assert flat(drawn.p_values).min() >= 1 / 5001
    same = sp.specialisation_test(forget, retain, permutations=5000, seed=1, progress=False)
    assert torch.equal(same.p_values[MLP.name], drawn.p_values[MLP.name])


def test_masks_and_frame_say_for_which_corpus(tmp_path: Path) -> None:
    parts = [activations(0), activations(1)]
    for part in parts[0]:
        part[:, 5] *= 20
    for part in parts[1]:
        part[:, 9] *= 20
    test = sp.specialisation_test(*(stats_of(part, model="tiny") for part in parts), progress=False)
    assert test.mask("forget")[MLP.name].nonzero().flatten().tolist() == [1]
    assert test.mask("retain")[MLP.name].nonzero().flatten().tolist() == [5]
    assert test.mask().count() == 2
    frame = test.frame()
    assert frame.loc[frame["specialised"], "side"].tolist() == ["forget", "retain"]
    test.save(tmp_path / "test.safetensors")
    assert sp.SpecialisationTest.load(tmp_path / "test.safetensors").frame().equals(frame)
    assert "2 of 16" in repr(test)


def test_a_dead_neuron_is_not_specialised() -> None:
    parts = activations(0)
    for part in parts:
        part[:, 0] = 0
    test = sp.specialisation_test(stats_of(parts), stats_of(parts[::-1]), permutations=100, progress=False)
    assert flat(test.p_values)[0] == 1


# How many tokens are enough


def test_the_top_is_as_stable_as_the_sets_say() -> None:
    sides = [activations(0), activations(1)]
    forget, retain = (stats_of(parts) for parts in sides)
    found = sp.rank_stability(forget, retain, fraction=0.25, orders=2, seed=3)
    assert len(found) == 16

    def top(folds: np.ndarray) -> set[int]:
        one, two = (np.abs(np.concatenate([parts[place] for place in folds]))[:, 4:].mean(0) for parts in sides)
        return set(np.argsort(-one / (two + 1e-3))[:3].tolist())

    generator = np.random.default_rng(3)
    for number in range(2):
        order = generator.permutation(8)
        for k in range(1, 9):
            row = found[(found["order"] == number) & (found["folds"] == k)].iloc[0]
            assert row["with_all"] == len(top(order[:k]) & top(order)) / 3
            assert row["tokens"] == sum(len(parts[place]) for parts in sides for place in order[:k]) / 2
            if k <= 4:
                assert row["with_others"] == len(top(order[:k]) & top(order[-k:])) / 3
            else:
                assert np.isnan(row["with_others"])
    assert (found.query("folds == 8")["with_all"] == 1).all()


def test_bad_input_is_refused() -> None:
    forget, other = stats_of(activations(0), model="a"), stats_of(activations(1), model="b")
    whole = sp.ActivationStats(LAYOUT, forget.moments)
    for function in (sp.uncertainty, sp.specialisation_test, sp.rank_stability):
        for given_, match in (
            ((forget, other), "different models"),
            ((forget, whole), "collect them by folds"),
            ((3, forget), "forget is a int"),
        ):
            with pytest.raises(sp.SpLensError, match=match):
                function(*given_)  # type: ignore[arg-type]
    with pytest.raises(sp.SpLensError, match="collect them by folds"):
        whole.standard_error()
    with pytest.raises(sp.SpLensError, match="level 95"):
        sp.uncertainty(forget, level=95)
    with pytest.raises(sp.SpLensError, match="rate 5"):
        sp.specialisation_test(forget, forget, rate=5)
    with pytest.raises(sp.SpLensError, match="permutations=10: expected 20 or more"):
        sp.specialisation_test(forget, forget, permutations=10)
    with pytest.raises(sp.SpLensError, match="8 folds and 7"):
        sp.rank_stability(forget, stats_of(activations(0, folds=7), model="a"))
    with pytest.raises(sp.SpLensError, match="orders=0"):
        sp.rank_stability(forget, forget, orders=0)
    with pytest.raises(sp.SpLensError, match="unknown side 'both'"):
        sp.specialisation_test(forget, forget, progress=False).mask("both")  # type: ignore[arg-type]
