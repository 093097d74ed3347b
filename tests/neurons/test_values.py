"""Test rankings, heads, masks and scores against plain Python and NumPy."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sp_lens import ActivationStats, HeadValues, NeuronMask, NeuronValues, SpLensError, score
from sp_lens.neurons.layout import Layout, NeuronGroup
from sp_lens.neurons.mask import pick_count
from sp_lens.typing import EPS, Site

pytestmark = pytest.mark.libraries

quick = settings(deadline=None, max_examples=80)

MLP0, MLP1, ATTN0, ATTN1 = (f"blocks.{layer}.{hook}" for hook in ("mlp.hook_post", "attn.hook_z") for layer in (0, 1))
LAYOUT = Layout(
    (
        NeuronGroup("attn", 0, 12, heads=3),
        NeuronGroup("mlp", 0, 10),
        NeuronGroup("attn", 1, 12, heads=3),
        NeuronGroup("mlp", 1, 7),
    )
)


def values_of(seed: int, layout: Layout = LAYOUT, **about: Any) -> NeuronValues:
    generator = np.random.default_rng(seed)
    tensors = {group.name: torch.from_numpy(generator.normal(size=group.width)) for group in layout}
    return NeuronValues(layout, tensors, about)


def marked(mask: NeuronMask) -> set[tuple[str, int]]:
    """Return the neurons of a mask as a set."""
    return {(name, index) for name in mask for index, is_marked in enumerate(mask[name].tolist()) if is_marked}


def best(values: dict[tuple[int, int], float], k: int, excluded: set[tuple[int, int]]) -> set[tuple[int, int]]:
    """Return the keys of the k largest values. Equal values are ordered by their keys (layer, index)."""
    ranked = sorted((-value, key) for key, value in values.items() if key not in excluded)
    return {key for _, key in ranked[:k]}


@st.composite
def ranking(draw: st.DrawFn) -> tuple[list[list[float]], float, list[list[bool]]]:
    """Draw values of a few layers of different widths with many ties, a fraction, and excluded neurons."""
    widths = draw(st.lists(st.integers(1, 8), min_size=1, max_size=4))
    value = st.integers(-2, 2).map(float) | st.sampled_from([math.inf, -math.inf, 0.5])
    values = [draw(st.lists(value, min_size=width, max_size=width)) for width in widths]
    excluded = [draw(st.lists(st.booleans(), min_size=width, max_size=width)) for width in widths]
    excluded[-1][-1] = False
    k = draw(st.integers(1, sum(widths)))
    return values, k / sum(widths), excluded


@quick
@given(ranking())
def test_the_top_is_one_ranking_over_all_layers(case: tuple[list[list[float]], float, list[list[bool]]]) -> None:
    values, fraction, excluded = case
    layout = Layout(tuple(NeuronGroup("mlp", layer, len(row)) for layer, row in enumerate(values)))
    mask = NeuronMask(layout, {name: torch.tensor(row) for name, row in zip(layout.names, excluded, strict=True)})
    tensors = {name: torch.tensor(row) for name, row in zip(layout.names, values, strict=True)}
    top = NeuronValues(layout, tensors).top(fraction, site="mlp", exclude=mask)

    by_neuron = {(layer, n): value for layer, row in enumerate(values) for n, value in enumerate(row)}
    pruned = {(layer, n) for layer, row in enumerate(excluded) for n, is_excluded in enumerate(row) if is_excluded}
    expected = best(by_neuron, round(fraction * len(by_neuron)), pruned)
    assert marked(top) == {(layout.names[layer], n) for layer, n in expected}


def test_equal_values_are_ordered_by_layer_then_neuron() -> None:
    same = NeuronValues(LAYOUT, {group.name: torch.ones(group.width) for group in LAYOUT})
    assert marked(same.top(12 / 17, site="mlp")) == {*((MLP0, n) for n in range(10)), (MLP1, 0), (MLP1, 1)}


def test_a_fraction_refers_to_all_neurons_including_excluded_ones() -> None:
    values = values_of(0)
    pruned = values.top(0.8, site="mlp")
    assert pruned.count() == 14
    assert values.top(0.1, site="mlp", exclude=pruned).count() == 2  # a tenth of all 17, not of the remaining 3
    assert values.top(0.5, site="mlp", exclude=pruned).count() == 3
    assert not marked(values.top(0.5, site="mlp", exclude=pruned)) & marked(pruned)
    with pytest.raises(SpLensError, match="nothing left"):
        values.top(0.1, site="mlp", exclude=values.top(1, site="mlp"))


@pytest.mark.parametrize(("fraction", "total", "count"), [(0.02, 100, 2), (0.02, 12288, 246), (1, 7, 7), (0.1, 6, 1)])
def test_a_fraction_is_converted_to_a_count(fraction: float, total: int, count: int) -> None:
    assert pick_count(fraction, total, "neurons") == count


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01, math.nan, 0.001])
def test_invalid_fractions_are_rejected(fraction: float) -> None:
    with pytest.raises(SpLensError, match="fraction"):
        values_of(0).top(fraction, site="mlp")


@pytest.mark.parametrize("total", [100, 1000])
def test_the_fraction_suggested_by_the_message_works(total: int) -> None:
    with pytest.raises(SpLensError) as error:
        pick_count(1e-9, total, "neurons")
    suggested = re.search(r"at least ([\d.e-]+[\de])\.", str(error.value))
    assert suggested
    assert pick_count(float(suggested[1]), total, "neurons") >= 1


def test_nan_values_are_not_ranked() -> None:
    values = values_of(0)
    values[MLP1][3] = math.nan
    with pytest.raises(SpLensError, match=r"1 of the 17 mlp neurons .* NaN"):
        values.top(0.1, site="mlp")
    assert values.top(0.1, site="attn").count() == 2


@pytest.mark.parametrize(
    "other", [LAYOUT.select("attn"), Layout((*LAYOUT.select("mlp")[:1], NeuronGroup("mlp", 1, 9)))]
)
def test_excluding_neurons_of_another_model_is_rejected(other: Layout) -> None:
    with pytest.raises(SpLensError):
        values_of(0).top(0.1, site="mlp", exclude=NeuronMask.from_neurons(other, {}))


@pytest.mark.parametrize(
    ("aggregate", "by_numpy"),
    [
        ("mean", np.mean),
        ("median", np.median),
        ("max", np.max),
        ("sum", np.sum),
        ("l2", lambda z, axis: np.sqrt((z**2).sum(axis))),
    ],
)
def test_head_values_are_aggregates_of_their_neurons(aggregate: Any, by_numpy: Any) -> None:
    values = values_of(1, model="m")
    heads = values.heads(aggregate)
    assert list(heads) == [ATTN0, ATTN1]
    for name in heads:
        np.testing.assert_allclose(heads[name], by_numpy(values[name].numpy().reshape(3, 4), axis=1), rtol=1e-12)
    assert heads.about == {"model": "m", "aggregate": aggregate}


def test_unknown_aggregates_and_models_without_attention_are_rejected() -> None:
    with pytest.raises(SpLensError, match="aggregate 'product'"):
        values_of(0).heads("product")  # pyright: ignore[reportArgumentType]
    with pytest.raises(SpLensError, match="attn"):
        values_of(0).select("mlp").heads()


@quick
@given(
    st.lists(st.integers(-2, 2), min_size=6, max_size=6),
    st.integers(1, 6),
    st.sets(st.tuples(st.integers(0, 1), st.integers(0, 2)), max_size=5),
    st.integers(0, 11),
)
def test_a_head_mask_selects_whole_heads(numbers: list[int], k: int, pruned: set[tuple[int, int]], neuron: int) -> None:
    layout = LAYOUT.select("attn")
    heads = HeadValues(layout, {ATTN0: torch.tensor(numbers[:3]).float(), ATTN1: torch.tensor(numbers[3:]).float()})
    neurons = {name: [4 * h + i for layer, h in pruned if layer == n for i in range(4)] for n, name in enumerate(heads)}
    # One excluded neuron does not exclude its head.
    mask = NeuronMask.from_neurons(layout, neurons) | NeuronMask.from_neurons(layout, {ATTN0: [neuron]})

    chosen = best({(n // 3, n % 3): value for n, value in enumerate(numbers)}, k, pruned)
    expected = {((ATTN0, ATTN1)[layer], 4 * head + i) for layer, head in chosen for i in range(4)}
    assert marked(heads.top(k / 6, exclude=mask)) == expected


def test_a_stack_has_one_row_per_layer() -> None:
    values = values_of(2)
    assert values.stack("attn").shape == (2, 12)
    assert torch.equal(values.stack("attn")[1], values[ATTN1])
    assert torch.equal(values.heads().stack(), torch.stack([values.heads()[name] for name in (ATTN0, ATTN1)]))
    with pytest.raises(SpLensError, match="differ in width"):
        values.stack("mlp")


def test_a_frame_has_one_row_per_neuron() -> None:
    values = values_of(3)
    frame = values.frame()
    assert list(frame.columns) == ["site", "layer", "head", "neuron", "value"]
    assert len(frame) == 12 + 10 + 12 + 7
    attn, mlp = frame[frame.site == "attn"], frame[frame.site == "mlp"]
    assert pd.isna(mlp["head"]).all()
    assert (attn["head"] == attn["neuron"] // 4).all()
    assert mlp.set_index(["layer", "neuron"]).loc[(1, 6), "value"] == values[MLP1][6]
    assert attn.set_index(["layer", "head", "neuron"]).loc[(0, 2, 9), "value"] == values[ATTN0][9]

    heads = values.heads("mean").frame()
    assert list(heads.columns) == ["site", "layer", "head", "value"]
    means = attn.astype({"head": int}).groupby(["layer", "head"])["value"].mean()
    pd.testing.assert_series_equal(heads.set_index(["layer", "head"])["value"], means, check_index_type=False)


@pytest.mark.parametrize("metric", ["abs", "rms", "std", "freq"])
def test_scores_follow_definition_2_with_an_eps_per_site(metric: Any) -> None:
    generator = np.random.default_rng(4)
    sides = [{ATTN0: generator.normal(size=(2, 30, 3, 4)), MLP0: generator.normal(size=(2, 30, 10))} for _ in range(2)]
    sides[1][MLP0][..., 5] = 0  # no activation on retain: the denominator is eps
    definition = {
        "abs": lambda z: np.abs(z).mean(0),
        "rms": lambda z: np.sqrt((z**2).mean(0)),
        "std": lambda z: np.sqrt(((z - z.mean(0)) ** 2).mean(0)),
        "freq": lambda z: (z > 0).mean(0),
    }[metric]
    stats = [ActivationStats.from_cache({name: torch.from_numpy(z) for name, z in side.items()}) for side in sides]
    cases: list[tuple[dict[str, Any], dict[str, float]]] = [
        ({}, {ATTN0: 1e-4, MLP0: 1e-3}),
        ({"eps": 0.5}, {ATTN0: 0.5, MLP0: 0.5}),
        ({"eps": {"mlp": 0.1, "attn": 0.2}}, {ATTN0: 0.2, MLP0: 0.1}),
        ({"eps": {"mlp": 0.1}}, {ATTN0: 1e-4, MLP0: 0.1}),
    ]
    for options, eps in cases:
        scores = score(stats[0], stats[1], metric=metric, **options)
        for name, width in ((ATTN0, 12), (MLP0, 10)):
            forget, retain = (definition(side[name].reshape(-1, width)) for side in sides)
            np.testing.assert_allclose(scores[name], forget / (retain + eps[name]), rtol=1e-6)
        assert scores.about["eps"] == {"attn": eps[ATTN0], "mlp": eps[MLP0]}
        assert scores.about["metric"] == metric


def one_layer(*numbers: float) -> NeuronValues:
    return NeuronValues(Layout((NeuronGroup("mlp", 0, len(numbers)),)), {MLP0: torch.tensor(numbers).double()})


def test_zero_and_negative_importances_have_defined_scores() -> None:
    forget, retain = one_layer(0, 1, -1, 2, 6), one_layer(0, 0, 1, -4, 3)
    assert score(forget, retain, eps=0)[MLP0].tolist() == [0, math.inf, 0, math.inf, 2]
    assert score(forget, retain, eps=1)[MLP0].tolist() == [0, 1, 0, 2, 1.5]
    heads = values_of(5).heads("l2")
    np.testing.assert_allclose(score(heads, heads)[ATTN1], (heads[ATTN1] / (heads[ATTN1] + EPS["attn"])).numpy())
    with pytest.raises(SpLensError, match="another model"):
        score(forget, values_of(0))


def test_the_score_of_nan_is_nan() -> None:
    assert score(one_layer(math.nan, 1), one_layer(1, 1))[MLP0].isnan().tolist() == [True, False]


@pytest.mark.parametrize("eps", [-1, math.nan, {"ffn": 1}, {"mlp": -1}, {"mlp": math.nan}, {"attn": math.nan}])
def test_an_invalid_eps_is_rejected(eps: Any) -> None:
    with pytest.raises(SpLensError, match="eps"):
        score(values_of(0), values_of(1), eps=eps)


def test_random_scores_are_seeded_and_do_not_use_the_global_generator() -> None:
    stats = ActivationStats.from_cache({MLP0: torch.randn(1, 8, 1000), MLP1: torch.randn(1, 8, 1000)})
    state = torch.get_rng_state()
    first, again, other = (score(stats, stats, metric="random", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first[MLP0], again[MLP0])
    assert not torch.equal(first[MLP0], other[MLP0])
    assert not torch.equal(first[MLP0], first[MLP1])
    numbers = np.concatenate([first[name].numpy() for name in first])
    assert (numbers >= 0).all()
    assert (numbers < 1).all()
    assert abs(numbers.mean() - 0.5) < 0.03
    assert len(np.unique(numbers)) == 2000
    assert (first.about["metric"], first.about["seed"]) == ("random", 0)


@pytest.mark.parametrize(
    "saved",
    [values_of(6, model="m", corpora=[{"source": "x"}]), values_of(6).heads("max"), values_of(6).top(0.3, site="attn")],
    ids=lambda saved: type(saved).__name__,
)
def test_loaded_values_equal_the_saved_ones(saved: NeuronValues | HeadValues | NeuronMask, tmp_path: Path) -> None:
    saved.save(tmp_path / "new folder" / "saved.safetensors")
    loaded = type(saved).load(tmp_path / "new folder" / "saved.safetensors")
    assert type(loaded) is type(saved)
    assert loaded.layout == saved.layout
    assert list(loaded) == list(saved)
    assert all(torch.equal(loaded[name], saved[name]) and loaded[name].dtype == saved[name].dtype for name in saved)
    assert loaded.about == saved.about


def mask_of(neurons: set[tuple[str, int]]) -> NeuronMask:
    indices = {name: [index for hook, index in neurons if hook == name] for name in LAYOUT.names}
    return NeuronMask.from_neurons(LAYOUT, indices)


neurons = st.sets(
    st.sampled_from([(group.name, index) for group in LAYOUT for index in range(group.width)]), max_size=20
)


@quick
@given(neurons, neurons)
def test_masks_are_sets_of_neurons(one: set[tuple[str, int]], other: set[tuple[str, int]]) -> None:
    a, b = mask_of(one), mask_of(other)
    assert marked(a) == one
    assert marked(a | b) == marked(b | a) == one | other
    assert (a | b).count() == len(one | other)
    assert (a | b).share() == len(one | other) / 41
    sites: list[tuple[Site, int]] = [("attn", 24), ("mlp", 17)]
    for site, total in sites:
        at_site = {neuron for neuron in one if f".{site}." in neuron[0]}
        assert a.count(site) == len(at_site)
        assert a.share(site) == len(at_site) / total
        assert marked(a.select(site)) == at_site


def test_invalid_masks_and_values_are_rejected() -> None:
    mask = NeuronMask.from_neurons(LAYOUT, {MLP0: [0]})
    with pytest.raises(SpLensError, match="another model"):
        _ = mask | mask.select("mlp")
    with pytest.raises(SpLensError, match=r"neurons 0 to 9, got 3 to 10"):
        NeuronMask.from_neurons(LAYOUT, {MLP0: [3, 10]})
    with pytest.raises(SpLensError, match="got -1"):
        NeuronMask.from_neurons(LAYOUT, {MLP0: [-1]})
    with pytest.raises(SpLensError, match=r"blocks\.7"):
        NeuronMask.from_neurons(LAYOUT, {"blocks.7.mlp.hook_post": [0]})
    with pytest.raises(SpLensError, match="booleans"):
        NeuronMask(LAYOUT, values_of(0).tensors)
    with pytest.raises(SpLensError, match="one tensor for each"):
        NeuronValues(LAYOUT, {MLP0: torch.zeros(10)})
    with pytest.raises(SpLensError, match=re.escape("expected a tensor of shape (10,), got (9,)")):
        NeuronValues(LAYOUT, {**values_of(0).tensors, MLP0: torch.zeros(9)})
    with pytest.raises(SpLensError, match="no heads"):
        HeadValues(LAYOUT.select("mlp"), values_of(0).select("mlp").tensors)


def test_a_boolean_vector_is_not_used_as_indices() -> None:
    with pytest.raises(SpLensError):
        NeuronMask.from_neurons(LAYOUT, {MLP0: torch.tensor([False] * 9 + [True])})  # pyright: ignore[reportArgumentType]
