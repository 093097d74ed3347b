"""Density of one neuron: curves against numpy's histograms, the legend, and rejected arguments."""

from typing import Any

import numpy as np
import pytest
import torch
from plot_factories import EDGES, bin_densities, drawn_densities, normal, stats_with_histograms, traces

import sp_lens as sp

pytestmark = pytest.mark.libraries

plots: Any = sp.plots  # without types, because some calls pass the wrong type


def test_each_corpus_has_a_curve_on_the_same_axes() -> None:
    z = {"code": normal().relu(), "prose": normal(300, seed=1)}
    stats = {label: stats_with_histograms(activations, model="tiny") for label, activations in z.items()}
    figure: Any = sp.plots.neuron_density(stats, site="attn", layer=0, neuron=4)
    for trace, activations in zip(traces(figure), z.values(), strict=True):
        assert drawn_densities(trace) == pytest.approx(bin_densities(activations[:, 4]), rel=1e-5)
        assert trace.fillcolor.endswith(", 0.2)")
        assert trace.xaxis in (None, "x")
    above = [float((activations[:, 4] > 0).double().mean()) for activations in z.values()]
    assert [trace.name for trace in traces(figure)] == [
        f"code: 500 tokens, z = 0 on {1 - above[0]:.1%}",  # never negative
        f"prose: 300 tokens, z > 0 on {above[1]:.1%}",
    ]
    assert [trace.line.color for trace in traces(figure)] == ["rgba(0, 114, 178, 1)", "rgba(213, 94, 0, 1)"]
    assert figure.layout.showlegend
    assert figure.layout.yaxis.type == "log"
    floor, top = 10 ** np.array(figure.layout.yaxis.range)
    densities = np.concatenate([bin_densities(activations[:, 4]) for activations in z.values()])
    assert [floor, top] == pytest.approx([densities[densities > 0].min() / 2, densities.max() * 1.5], rel=1e-5)
    assert figure.layout.title.text == "Activation density: tiny, layer 0, attention pre-out, neuron 4 (head 1)"
    assert figure.layout.xaxis.title.text == "activation of the neuron (z)"


def test_a_neuron_that_never_fires_has_all_tokens_at_zero() -> None:
    stats = stats_with_histograms(torch.zeros(50, 3), site="mlp")
    (trace,) = traces(sp.plots.neuron_density({"code": stats}, site="mlp", layer=0, neuron=2))
    assert trace.name == "code: 50 tokens, z = 0 on 100.0%"
    assert drawn_densities(trace) == pytest.approx([0] * 5 + [5] + [0] * 4)


STATS = stats_with_histograms(normal())


@pytest.mark.parametrize(
    ("stats", "options", "message"),
    [
        ({"a": STATS}, {"layer": 7}, "no layer 7 at site 'attn'"),
        ({"a": STATS}, {"site": "mlp"}, "no neurons at site 'mlp'"),
        ({"a": STATS}, {"neuron": -1}, r"no histogram of neurons \[-1\]"),
        (STATS, {}, r"got ActivationStats: write neuron_density\(\{'code': stats\}\)"),
        (dict.fromkeys("abcdefgh", STATS), {}, "given 8 corpora, but only has 7 distinguishable colours"),
        (
            {"a": STATS, "b": stats_with_histograms(normal(), edges=EDGES * 2)},
            {},
            r"'a' and 'b' have different edges: collect both corpora with the same edges, as collect_histograms\(",
        ),
        ({"a": stats_with_histograms(normal() + 9)}, {}, "lie outside the bin edges -1 to 1"),
        (
            {"a": sp.ActivationStats.from_cache({"blocks.0.mlp.hook_post": torch.ones(1, 4, 3)})},
            {"site": "mlp"},
            r"no histogram of blocks.0.mlp.hook_post was collected: collect_histograms\(",
        ),
    ],
)
def test_invalid_arguments_are_rejected(stats: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(sp.SpLensError, match=message):
        plots.neuron_density(stats, **{"site": "attn", "layer": 0, "neuron": 0, **options})
