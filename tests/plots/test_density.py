"""The densities of highlighted neurons, of one neuron, of chosen ones; and how their histograms are collected."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from factories import random_rows
from plot_factories import EDGES, normal, traces
from plot_factories import stats_with_histograms as stats_of

import sp_lens as sp
from sp_lens.neurons.layout import Layout, NeuronGroup

pytestmark = pytest.mark.libraries

plots: Any = sp.plots  # for calls that the type checker would refuse as well
GREY = "rgba(128, 128, 128, 0.6)"


def expected(z: torch.Tensor) -> np.ndarray:
    """The density of activations [token] in each bin: share of all tokens per unit of activation."""
    return np.histogram(z.double().numpy(), EDGES.double().numpy())[0] / len(z) / 0.2


def drawn(trace: Any) -> np.ndarray:
    """The density in each bin that a trace says in its hover."""
    heights = np.zeros(10)
    heights[np.round((trace.customdata[:, 0] + 0.9) / 0.2).astype(int)] = trace.customdata[:, 1]
    return heights


# density(highlight=...)


def test_highlighted_neurons_are_coloured_named_and_drawn_last() -> None:
    z = {"code": normal(), "prose": normal(seed=1)}
    stats = {label: stats_of(one) for label, one in z.items()}
    figure = sp.plots.density(stats, layer=0, neurons=range(5), highlight=[5, 1])
    first, second = traces(figure)[:6], traces(figure)[6:]
    for panel, label in ((first, "code"), (second, "prose")):
        assert [trace.name for trace in panel] == [f"neuron {n} (head {n // 3})" for n in (0, 2, 3, 4, 1, 5)]
        for trace, neuron in zip(panel, (0, 2, 3, 4, 1, 5), strict=True):
            assert drawn(trace) == pytest.approx(expected(z[label][:, neuron]), rel=1e-5)
        assert [trace.line.color for trace in panel[:4]] == [GREY] * 4
        assert [trace.line.color for trace in panel[4:]] == ["rgba(0, 114, 178, 1)", "rgba(213, 94, 0, 1)"]
    assert figure.layout.showlegend
    assert [trace.name for trace in traces(figure) if trace.showlegend] == ["neuron 1 (head 0)", "neuron 5 (head 1)"]
    assert first[4].legendgroup == second[4].legendgroup


def test_a_highlighted_neuron_is_never_part_of_a_mean() -> None:
    z = normal(50, 1000)
    figure = sp.plots.density({"a": stats_of(z)}, layer=0, neurons=range(1000), highlight=[7])
    assert len(traces(figure)) == 201
    assert traces(figure)[-1].name == "neuron 7 (head 0)"
    assert drawn(traces(figure)[-1]) == pytest.approx(expected(z[:, 7]), rel=1e-5)
    assert "200 curves, each the mean of neighbouring neurons" in figure.layout.title.subtitle.text
    # 999 others in 200 curves, the first of them of 0 to 4.
    assert drawn(traces(figure)[0]) == pytest.approx(np.mean([expected(z[:, n]) for n in range(5)], axis=0), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"highlight": [9]}, r"no histogram of neurons \[9\]"),
        ({"neurons": range(10), "highlight": range(8)}, "8 neurons to highlight: there are colours for 7"),
    ],
)
def test_highlight_refuses(options: dict[str, Any], message: str) -> None:
    width = 10 if "neurons" in options else 6
    with pytest.raises(sp.SpLensError, match=message):
        sp.plots.density({"a": stats_of(normal(neurons=width))}, layer=0, **{"neurons": range(6), **options})


def test_two_hundred_corpora_are_refused() -> None:
    stats = stats_of(normal())
    with pytest.raises(sp.SpLensError, match="200 corpora: at most 12 panels"):
        sp.plots.density({f"corpus {i}": stats for i in range(200)}, layer=0, neurons=[0])


# neuron_density


def test_one_neuron_on_several_corpora_is_a_curve_each_on_one_pair_of_axes() -> None:
    z = {"code": normal().relu(), "prose": normal(300, seed=1)}
    figure = sp.plots.neuron_density(
        {label: stats_of(one, model="tiny") for label, one in z.items()}, site="attn", layer=0, neuron=4
    )
    for trace, one in zip(traces(figure), z.values(), strict=True):
        assert drawn(trace) == pytest.approx(expected(one[:, 4]), rel=1e-5)
        assert trace.fillcolor.endswith(", 0.2)")
        assert trace.xaxis in (None, "x")
    above = [float((one[:, 4] > 0).double().mean()) for one in z.values()]
    assert [trace.name for trace in traces(figure)] == [
        f"code: 500 tokens, {1 - above[0]:.1%} at exactly 0",  # never below 0
        f"prose: 300 tokens, {above[1]:.1%} above 0",
    ]
    assert [trace.line.color for trace in traces(figure)] == ["rgba(0, 114, 178, 1)", "rgba(213, 94, 0, 1)"]
    assert figure.layout.showlegend
    assert figure.layout.yaxis.type == "log"
    floor, top = 10 ** np.array(figure.layout.yaxis.range)
    every = np.concatenate([expected(one[:, 4]) for one in z.values()])
    assert [floor, top] == pytest.approx([every[every > 0].min() / 2, every.max() * 1.5], rel=1e-5)
    assert figure.layout.title.text == "Activation density: tiny, layer 0, attention pre-out, neuron 4 (head 1)"
    assert figure.layout.xaxis.title.text == "activation of the neuron (z)"


def test_a_neuron_that_never_fires_is_all_at_zero() -> None:
    stats = stats_of(torch.zeros(50, 3), site="mlp")
    (trace,) = traces(sp.plots.neuron_density({"code": stats}, site="mlp", layer=0, neuron=2))
    assert trace.name == "code: 50 tokens, 100.0% at exactly 0"
    assert drawn(trace) == pytest.approx([0] * 5 + [5] + [0] * 4)


# ridgeline


def test_a_ridgeline_has_a_row_for_each_neuron_and_a_curve_for_each_corpus() -> None:
    z = {"code": (normal(), normal(seed=1)), "prose": (normal(300, seed=2), normal(300, seed=3))}
    stats = {label: stats_of(*layers, model="tiny") for label, layers in z.items()}
    rows = [(1, 5), (0, 2), (1, 0)]
    figure = sp.plots.ridgeline(stats, site="attn", neurons=rows)
    assert figure.layout.yaxis.ticktext == ("layer 1, neuron 5", "layer 0, neuron 2", "layer 1, neuron 0")
    assert list(figure.layout.yaxis.tickvals) == [0, 1, 2]
    every = np.concatenate([expected(layers[layer][:, n]) for layers in z.values() for layer, n in rows])
    floor, top = every[every > 0].min() / 2, every.max() * 1.5
    drawn_rows = iter(traces(figure))
    for place, (layer, neuron) in enumerate(rows):
        for label, layers in z.items():
            trace = next(drawn_rows)
            assert drawn(trace) == pytest.approx(expected(layers[layer][:, neuron]), rel=1e-5)
            assert trace.legendgroup == trace.name == label
            assert trace.showlegend == (place == 0)
            assert f"layer {layer}, neuron {neuron}" in trace.hovertemplate
            # From the row's line at `place` up, by the logarithm, at most 0.92 of a row.
            heights = np.maximum(trace.customdata[1:-1, 1], floor)
            assert trace.y[1:-1] == pytest.approx(
                place - 0.92 * np.log(heights / floor) / np.log(top / floor), abs=1e-4
            )
            assert [trace.y[0], trace.y[-1]] == pytest.approx([place, place])
    said = re.search(r"density from (\S+) to (\S+) \(share of tokens", figure.layout.title.subtitle.text)
    assert said
    assert [float(said[1]), float(said[2])] == pytest.approx([floor, top], rel=0.05)
    bottom, upper = figure.layout.yaxis.range
    assert bottom > 2
    assert upper < -0.92


def test_a_mask_gives_its_neurons_in_the_order_of_layers() -> None:
    stats = stats_of(normal(), normal(seed=1))
    mask = sp.NeuronMask.from_neurons(stats.layout, {stats.layout.names[1]: [0, 4], stats.layout.names[0]: [3]})
    figure = sp.plots.ridgeline({"a": stats}, site="attn", neurons=mask)
    assert figure.layout.yaxis.ticktext == ("layer 0, neuron 3", "layer 1, neuron 0", "layer 1, neuron 4")


def test_a_row_outside_the_edges_is_flat_and_leaves_the_others() -> None:
    z = normal()
    z[:, 2] = 7
    figure = sp.plots.ridgeline({"a": stats_of(z, z)}, site="attn", neurons=[(0, 2), (1, 3)])
    assert set(traces(figure)[0].y) == {0}
    left, right = figure.layout.xaxis.range
    assert -1.1 < left < right < 1.1


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda s: plots.neuron_density(s, site="attn", layer=7, neuron=0), "no layer 7 at site 'attn'"),
        (lambda s: plots.neuron_density(s, site="mlp", layer=0, neuron=0), "no neurons at site 'mlp'"),
        (lambda s: plots.neuron_density(s, site="attn", layer=0, neuron=-1), r"no histogram of neurons \[-1\]"),
        (
            lambda s: plots.neuron_density(s["a"], site="attn", layer=0, neuron=0),
            r"got ActivationStats: say neuron_density\(\{'code': stats\}\)",
        ),
        (
            lambda s: plots.neuron_density(dict.fromkeys("abcdefgh", s["a"]), site="attn", layer=0, neuron=0),
            "8 can't be told apart: give at most 7",
        ),
        (
            lambda s: plots.neuron_density(
                s | {"b": stats_of(normal(), edges=EDGES * 2)}, site="attn", layer=0, neuron=0
            ),
            r"'a' and 'b' have different edges: collect both corpora with the same, as collect_histograms\(",
        ),
        (
            lambda _: plots.neuron_density({"a": stats_of(normal() + 9)}, site="attn", layer=0, neuron=0),
            "lie outside the edges -1 to 1",
        ),
        (lambda s: plots.ridgeline(s, site="attn", neurons=[]), "0 neurons at site 'attn'"),
        (lambda s: plots.ridgeline(s, site="attn", neurons=[(0, i) for i in range(41)]), "1 to 40"),
        (lambda s: plots.ridgeline(s, site="attn", neurons=[3]), r"neuron 3: expected a pair \(layer, neuron\)"),
        (lambda s: plots.ridgeline(s, site="attn", neurons=[(3, 0)]), "no layer 3 at site 'attn'"),
        (lambda s: plots.ridgeline(s, site="attn", neurons=[(0, 6)]), r"no histogram of neurons \[6\]"),
        (lambda s: plots.ridgeline(list(s), site="attn", neurons=[(0, 0)]), "got list: say ridgeline"),
        (lambda _: plots.ridgeline({"a": 3}, site="attn", neurons=[(0, 0)]), "'a' is a int"),
        (
            lambda _: plots.neuron_density(
                {"a": sp.ActivationStats.from_cache({"blocks.0.mlp.hook_post": torch.ones(1, 4, 3)})},
                site="mlp",
                layer=0,
                neuron=0,
            ),
            r"no histogram of blocks.0.mlp.hook_post was collected: collect_histograms\(",
        ),
    ],
)
def test_figures_of_densities_refuse(draw: Any, message: str) -> None:
    with pytest.raises(sp.SpLensError, match=message):
        draw({"a": stats_of(normal())})


# collect_histograms


@pytest.mark.model
def test_histograms_of_all_corpora_have_the_same_edges_that_hold_everything(opt: Any) -> None:
    corpora = {"first": random_rows(6), "second": random_rows(9, seed=1)}
    stats = sp.collect_histograms(opt, corpora, site="attn", layer=1, bins=20, progress=False)
    name = "blocks.1.attn.hook_z"
    plain = {label: sp.collect(opt, rows, progress=False) for label, rows in corpora.items()}
    low, high = (
        float(end([end(getattr(one[name], end.__name__).tolist()) for one in plain.values()])) for end in (min, max)
    )
    for label, one in stats.items():
        assert [key for key in one if one[key].histogram] == [name]
        histogram: Any = one[name].histogram
        assert histogram.edges.numpy() == pytest.approx(np.linspace(low, high, 21), rel=1e-5, abs=1e-6)
        assert histogram.neurons.tolist() == list(range(one.layout.group(name).width))
        assert not histogram.outside.any()
        assert (histogram.counts.sum(dim=1) == one.count).all()
        assert one.frame().equals(plain[label].frame())


@pytest.mark.model
def test_histograms_of_chosen_neurons_reach_as_far_as_these(opt: Any) -> None:
    rows = random_rows(6)
    plain = sp.collect(opt, rows, progress=False)
    chosen = plain.importance("abs").top(0.05, site="mlp")  # a mask of one site
    (stats,) = sp.collect_histograms(opt, {"a": rows}, site="mlp", neurons=chosen, bins=5, progress=False).values()
    marked = {name: mask.nonzero().flatten().tolist() for name, mask in chosen.items() if mask.any()}
    histograms: dict[str, Any] = {name: stats[name].histogram for name in stats if stats[name].histogram}
    assert {name: histogram.neurons.tolist() for name, histogram in histograms.items()} == marked
    high = max(float(plain[name].max[indices].max()) for name, indices in marked.items())
    assert all(float(histogram.edges[-1]) == pytest.approx(high) for histogram in histograms.values())


@pytest.mark.model
@pytest.mark.parametrize(
    ("corpora", "options", "message"),
    [
        ({}, {}, "expected {label: corpus}, one or more"),
        (["text"], {}, "got list"),
        ({"a": iter(["text"])}, {}, "corpus 'a' can be read once only"),
        ({"a": random_rows(2)}, {"layer": 9}, "no layer 9 at site 'mlp': there are layers 0 to 1"),
        ({"a": random_rows(2)}, {"bins": 0}, "bins 0: expected 1 or more"),
    ],
)
def test_collecting_histograms_refuses(opt: Any, corpora: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(sp.SpLensError, match=message):
        sp.collect_histograms(opt, corpora, site="mlp", progress=False, **options)


@pytest.mark.model
def test_collecting_histograms_refuses_masks_of_nothing_and_of_other_models(opt: Any) -> None:
    layout = sp.layout_of(opt)
    nothing = sp.NeuronMask.from_neurons(layout, {})
    other = sp.NeuronMask.from_neurons(Layout((NeuronGroup("mlp", 0, 3),)), {})
    for mask, message in ((nothing, "the mask has no neuron at site 'mlp'"), (other, "belongs to another model")):
        with pytest.raises(sp.SpLensError, match=message):
            sp.collect_histograms(opt, {"a": random_rows(2)}, site="mlp", neurons=mask, progress=False)
