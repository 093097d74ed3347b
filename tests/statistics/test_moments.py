"""Compare streaming moments with NumPy in float64, for random batches and random orders of merging."""

import random
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sp_lens.errors import SpLensError
from sp_lens.statistics.histogram import Histogram
from sp_lens.statistics.moments import Moments

pytestmark = pytest.mark.libraries

quick = settings(deadline=None, max_examples=80)

METRICS = ("freq", "abs", "rms", "std")
SHAPES = {
    "normal": lambda x: x,
    "relu": lambda x: x.relu(),
    "heavy": lambda x: x.exp() * x.sign(),
    "dead": lambda x: x * 0,
}


@st.composite
def activations(draw: st.DrawFn) -> torch.Tensor:
    """Draw float32 activations [token neuron] of several distributions and sizes, some with a large mean."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    size = draw(st.integers(1, 300)), draw(st.integers(1, 4))
    plain = SHAPES[draw(st.sampled_from(list(SHAPES)))](torch.randn(size, generator=generator))
    return (plain + draw(st.sampled_from([0, 0, -1, 10]))) * 10.0 ** draw(st.integers(-3, 3))


@st.composite
def batched(draw: st.DrawFn) -> list[torch.Tensor]:
    """Draw activations, split into batches at random positions."""
    x = draw(activations())
    cuts = sorted(draw(st.sets(st.integers(1, len(x)), max_size=8)) - {len(x)})
    return list(torch.tensor_split(x, cuts))


def merged(parts: list[Moments], order: random.Random) -> Moments:
    """Merge all parts pairwise, in a random order and tree."""
    parts = list(parts)
    while len(parts) > 1:
        first, second = (parts.pop(order.randrange(len(parts))) for _ in range(2))
        parts.append(first.merge(second))
    return parts[0]


def by_numpy(x: torch.Tensor) -> dict[str, np.ndarray]:
    """Compute Definition 1 literally."""
    z = x.double().numpy()
    return {
        "freq": (z > 0).mean(0),
        "abs": np.abs(z).mean(0),
        "rms": np.sqrt((z**2).mean(0)),
        "std": np.sqrt(((z - z.mean(0)) ** 2).mean(0)),
        "mean": z.mean(0),
        "min": z.min(0),
        "max": z.max(0),
    }


def assert_close(actual: torch.Tensor, expected: np.ndarray, scale: np.ndarray, tolerance: float) -> None:
    error = np.abs(actual.numpy() - expected)
    assert (error <= tolerance * scale).all(), f"off by {(error / np.maximum(scale, 1e-300)).max():.2g}"


def assert_is(moments: Moments, x: torch.Tensor, tolerance: float = 1e-6) -> None:
    """Compare moments with those of `x`; errors are relative to the value, and to the scale of z for std and mean."""
    expected = by_numpy(x)
    assert moments.count == len(x)
    for metric in METRICS:
        scale = expected["rms" if metric == "std" else metric]
        assert_close(getattr(moments, metric)(), expected[metric], scale, tolerance)
    assert_close(moments.mean, expected["mean"], expected["abs"], tolerance)
    for extreme in ("min", "max"):
        np.testing.assert_array_equal(getattr(moments, extreme).numpy(), expected[extreme])


@quick
@given(batched(), st.randoms())
def test_moments_match_numpy_for_any_batches_and_any_order(batches: list[torch.Tensor], order: random.Random) -> None:
    moments = merged([Moments.from_activations(batch) for batch in batches], order)
    assert_is(moments, torch.cat(batches))
    np.testing.assert_array_equal(moments.positive.numpy(), (torch.cat(batches).numpy() > 0).sum(0))


@quick
@given(batched(), st.randoms(), st.randoms())
def test_the_order_of_merging_does_not_matter(
    batches: list[torch.Tensor], first: random.Random, second: random.Random
) -> None:
    parts = [Moments.from_activations(batch) for batch in batches]
    a, b = merged(parts, first), merged(parts, second)
    expected = by_numpy(torch.cat(batches))
    assert_close(a.abs(), b.abs().numpy(), expected["abs"], 1e-12)
    assert_close(a.mean, b.mean.numpy(), expected["abs"], 1e-12)
    assert_close(a.squares / a.count, (b.squares / b.count).numpy(), expected["rms"] ** 2, 1e-12)
    for exact in ("positive", "min", "max"):
        assert torch.equal(getattr(a, exact), getattr(b, exact))


@quick
@given(activations(), st.integers(-3, 3), st.sampled_from([1, -1, 3, -7]))
def test_metrics_scale_with_the_activations(x: torch.Tensor, exponent: int, digit: int) -> None:
    factor = digit * 10.0**exponent
    before, after = by_numpy(x), Moments.from_activations(x * factor)
    for metric in ("abs", "rms", "std"):
        scale = before["rms" if metric == "std" else metric] * abs(factor)
        assert_close(getattr(after, metric)(), before[metric] * abs(factor), scale, 2e-6)
    share = (x if factor > 0 else -x).numpy() > 0
    np.testing.assert_array_equal(after.freq().numpy(), share.mean(0))


@pytest.mark.parametrize("batch", [1, 7, 100, 1000])
def test_a_small_spread_around_a_large_mean_is_measured(batch: int) -> None:
    x = 1e3 + 1e-2 * torch.randn(1000, 4, generator=torch.Generator().manual_seed(0))
    moments = merged([Moments.from_activations(part) for part in x.split(batch)], random.Random(0))
    spread = by_numpy(x)["std"]
    assert_close(moments.std(), spread, spread, 1e-3)  # E[x^2] - E[x]^2 is off by more than 100 %


MILLIONTH = {
    "normal": lambda x: x,
    "relu": lambda x: x.relu(),
    "mostly off": lambda x: (x - 3).relu() - 0.1,
    "constant": lambda x: x * 0 - 1000,
}


@pytest.mark.parametrize("shape", MILLIONTH)
def test_a_batch_of_the_default_size_has_an_error_below_1e6(shape: str) -> None:
    x = MILLIONTH[shape](torch.randn(4096, 16, generator=torch.Generator().manual_seed(0)))
    expected, moments = by_numpy(x), Moments.from_activations(x)
    for metric in METRICS:
        assert_close(getattr(moments, metric)(), expected[metric], expected[metric], 1e-6)


def test_a_large_mean_costs_no_digits() -> None:
    x = 1e3 + 1e-2 * torch.randn(4096, 16, generator=torch.Generator().manual_seed(0))
    spread = by_numpy(x)["std"]
    assert_close(
        merged([Moments.from_activations(part) for part in x.split(512)], random.Random(0)).std(), spread, spread, 1e-6
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_reduced_in_float32(dtype: torch.dtype) -> None:
    x = (100 * torch.randn(1500, 8, generator=torch.Generator().manual_seed(0)) + 30).to(dtype)
    assert x.abs().double().sum(0).min() > torch.finfo(torch.float16).max  # a float16 sum would overflow
    assert_is(Moments.from_activations(x), x)


@pytest.mark.parametrize("size", [1e-42, 1e-30, 1e-25, 1e-19, 1e-15, 1e15, 1e19, 1e20, 1e30])
@pytest.mark.parametrize("shape", ["normal", "relu"])
def test_values_whose_squares_float32_cannot_represent_are_reduced_exactly(size: float, shape: str) -> None:
    x = SHAPES[shape](torch.randn(1500, 8, generator=torch.Generator().manual_seed(0))) * size
    expected, moments = by_numpy(x), Moments.from_activations(x)
    for metric in METRICS:
        assert_close(getattr(moments, metric)(), expected[metric], expected[metric], 1e-6)


def test_neurons_of_very_different_sizes_do_not_influence_each_other() -> None:
    x = torch.randn(700, 9, generator=torch.Generator().manual_seed(0)) * torch.logspace(-30, 30, 9)
    x[:, 4] = 1e30  # a constant: its deviations are rounding errors of its mean
    expected, moments = by_numpy(x), Moments.from_activations(x)
    for metric in METRICS:
        scale = expected["rms" if metric == "std" else metric]
        assert_close(getattr(moments, metric)(), expected[metric], scale, 1e-6)


@pytest.mark.parametrize("batch", [7, 4096])
def test_float64_is_reduced_in_float64(batch: int) -> None:
    x = 1e6 + 1e-3 * torch.randn(4096, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moments = merged([Moments.from_activations(part) for part in x.split(batch)], random.Random(0))
    expected = by_numpy(x)
    for metric in METRICS:  # float32 has one value for all of these activations
        assert_close(getattr(moments, metric)(), expected[metric], expected[metric], 1e-8)


def test_one_token_has_no_spread() -> None:
    moments = Moments.from_activations(torch.tensor([[-2.0, 0.0, 3.0]]))
    assert moments.std().tolist() == [0, 0, 0]
    assert moments.freq().tolist() == [0, 0, 1]
    assert moments.rms().tolist() == [2, 0, 3]


@st.composite
def histogram_input(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Activations of which many lie on an edge or outside, edges, and some of the neurons in any order."""
    number = st.integers(-40, 40).map(lambda i: i / 8)
    edges = sorted(draw(st.sets(number, min_size=2, max_size=7)))
    size = draw(st.integers(1, 20)), draw(st.integers(1, 4))
    values = st.lists(st.sampled_from(edges) | number, min_size=size[0] * size[1], max_size=size[0] * size[1])
    neurons = draw(st.permutations(range(size[1])))[: draw(st.integers(1, size[1]))]
    return torch.tensor(draw(values)).view(size), torch.tensor(edges), torch.tensor(neurons)


@quick
@given(histogram_input())
@example((torch.tensor([[0.0], [0.5], [1.0], [2.0], [2.1], [-0.1]]), torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0])))
def test_histograms_are_those_of_numpy(given_: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    x, edges, neurons = given_
    histogram = Histogram.from_activations(x, edges, neurons)
    for row, neuron in enumerate(neurons.tolist()):
        values = x[:, neuron].double().numpy()
        np.testing.assert_array_equal(histogram.counts[row], np.histogram(values, edges.double().numpy())[0])
        assert histogram.outside[row].tolist() == [(values < float(edges[0])).sum(), (values > float(edges[-1])).sum()]


@quick
@given(histogram_input(), st.data())
def test_merged_histograms_equal_the_histogram_of_all_activations(
    given_: tuple[torch.Tensor, torch.Tensor, torch.Tensor], data: st.DataObject
) -> None:
    x, edges, neurons = given_
    cut = data.draw(st.integers(0, len(x)))
    of = partial(Histogram.from_activations, edges=edges, neurons=neurons)
    both, whole = of(x[:cut]).merge(of(x[cut:])), of(x)
    assert torch.equal(both.counts, whole.counts)
    assert torch.equal(both.outside, whole.outside)
    assert int(both.counts.sum() + both.outside.sum()) == len(x) * len(neurons)


def test_histograms_with_different_edges_or_neurons_cannot_be_merged() -> None:
    x, edges, neurons = torch.randn(5, 3), torch.linspace(-1, 1, 4), torch.arange(3)
    histogram, moments = Histogram.from_activations(x, edges, neurons), Moments.from_activations(x)
    for other in (Histogram.from_activations(x, edges * 2, neurons), Histogram.from_activations(x, edges, neurons[:2])):
        with pytest.raises(SpLensError, match="edges or neurons"):
            histogram.merge(other)
    with pytest.raises(SpLensError, match="with and without"):
        moments.merge(moments.with_histogram(histogram))
    with pytest.raises(SpLensError, match="with and without"):
        moments.with_histogram(histogram).merge(moments)


@pytest.mark.parametrize("histogram", [False, True])
def test_moments_are_restored_from_their_tensors(histogram: bool) -> None:
    x, edges, neurons = torch.randn(9, 3), torch.linspace(-1, 1, 4), torch.tensor([2, 0])
    moments = Moments.from_activations(x)
    if histogram:
        moments = moments.with_histogram(Histogram.from_activations(x, edges, neurons))
    back = Moments.from_tensors(9, moments.tensors())
    assert back.count == 9
    assert back.tensors().keys() == moments.tensors().keys()
    assert all(torch.equal(back.tensors()[name], tensor) for name, tensor in moments.tensors().items())
    assert_is(back, x)
    assert_is(back.merge(back), torch.cat([x, x]))
