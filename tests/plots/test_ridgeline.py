"""Ridgeline: rows of neurons, heights on one scale, masks as input, and rejected arguments."""

import re
from typing import Any

import numpy as np
import pytest
from plot_factories import bin_densities, drawn_densities, normal, stats_with_histograms, traces

import sp_lens as sp

pytestmark = pytest.mark.libraries

plots: Any = sp.plots  # without types, because some calls pass the wrong type


def test_each_neuron_has_a_row_and_each_corpus_a_curve() -> None:
    z = {"code": (normal(), normal(seed=1)), "prose": (normal(300, seed=2), normal(300, seed=3))}
    stats = {label: stats_with_histograms(*layers, model="tiny") for label, layers in z.items()}
    neurons = [(1, 5), (0, 2), (1, 0)]
    figure: Any = sp.plots.ridgeline(stats, site="attn", neurons=neurons)
    assert figure.layout.yaxis.ticktext == ("layer 1, neuron 5", "layer 0, neuron 2", "layer 1, neuron 0")
    assert list(figure.layout.yaxis.tickvals) == [0, 1, 2]
    densities = np.concatenate([bin_densities(layers[layer][:, n]) for layers in z.values() for layer, n in neurons])
    floor, top = densities[densities > 0].min() / 2, densities.max() * 1.5
    curves = iter(traces(figure))
    for row, (layer, neuron) in enumerate(neurons):
        for label, layers in z.items():
            trace = next(curves)
            assert drawn_densities(trace) == pytest.approx(bin_densities(layers[layer][:, neuron]), rel=1e-5)
            assert trace.legendgroup == trace.name == label
            assert trace.showlegend == (row == 0)
            assert f"layer {layer}, neuron {neuron}" in trace.hovertemplate
            # A curve rises from the base line of its row in proportion to the logarithm, by at most 0.92 of a row.
            heights = np.log(np.maximum(trace.customdata[1:-1, 1], floor) / floor) / np.log(top / floor)
            assert trace.y[1:-1] == pytest.approx(row - 0.92 * heights, abs=1e-4)
            assert [trace.y[0], trace.y[-1]] == pytest.approx([row, row])
    scale = re.search(r"density from (\S+) to (\S+) \(share of tokens", figure.layout.title.subtitle.text)
    assert scale
    assert [float(scale[1]), float(scale[2])] == pytest.approx([floor, top], rel=0.05)
    bottom, upper = figure.layout.yaxis.range
    assert bottom > 2
    assert upper < -0.92


def test_the_neurons_of_a_mask_are_ordered_by_layer() -> None:
    stats = stats_with_histograms(normal(), normal(seed=1))
    mask = sp.NeuronMask.from_neurons(stats.layout, {stats.layout.names[1]: [0, 4], stats.layout.names[0]: [3]})
    figure: Any = sp.plots.ridgeline({"a": stats}, site="attn", neurons=mask)
    assert figure.layout.yaxis.ticktext == ("layer 0, neuron 3", "layer 1, neuron 0", "layer 1, neuron 4")


def test_a_neuron_outside_the_edges_is_flat_and_does_not_change_the_x_axis() -> None:
    z = normal()
    z[:, 2] = 7
    figure: Any = sp.plots.ridgeline({"a": stats_with_histograms(z, z)}, site="attn", neurons=[(0, 2), (1, 3)])
    assert set(traces(figure)[0].y) == {0}
    left, right = figure.layout.xaxis.range
    assert -1.1 < left < right < 1.1


STATS = stats_with_histograms(normal())


@pytest.mark.parametrize(
    ("stats", "neurons", "message"),
    [
        ({"a": STATS}, [], "0 neurons at site 'attn'"),
        ({"a": STATS}, [(0, i) for i in range(41)], "1 to 40"),
        ({"a": STATS}, [3], r"neuron 3: expected a pair \(layer, neuron\)"),
        ({"a": STATS}, [(3, 0)], "no layer 3 at site 'attn'"),
        ({"a": STATS}, [(0, 6)], r"no histogram of neurons \[6\]"),
        (["a"], [(0, 0)], "got list: write ridgeline"),
        ({"a": 3}, [(0, 0)], "'a' has type int"),
    ],
)
def test_invalid_arguments_are_rejected(stats: Any, neurons: Any, message: str) -> None:
    with pytest.raises(sp.SpLensError, match=message):
        plots.ridgeline(stats, site="attn", neurons=neurons)
