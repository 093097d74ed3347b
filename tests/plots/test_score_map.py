"""Score map: sorted rows, cells of several neurons, colour scales, and rejected values."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from plot_factories import head_values, megabytes, neuron_values, traces

import sp_lens as sp
from sp_lens.neurons.layout import Layout, NeuronGroup

pytestmark = pytest.mark.libraries

plots: Any = sp.plots  # without types, because some calls pass the wrong type


def test_each_layer_is_sorted_and_the_hover_names_the_neuron() -> None:
    scores = neuron_values([1, 100, 0], [0.1, 0.1, 10], eps={"mlp": 0.001}, metric="abs", model="tiny")
    figure: Any = sp.plots.score_map(scores)
    (cells,) = traces(figure)
    assert list(cells.y) == ["0", "1"]
    assert cells.z == pytest.approx(np.array([[2, 0, -2], [1, -1, -1]]))  # a score of 0 is at the end of the scale
    assert (cells.zmin, cells.zmax) == (-2, 2)
    assert cells.colorbar.ticktext == ("0.01", "0.1", "1", "10", "100")
    assert list(cells.colorbar.tickvals) == pytest.approx([-2, -1, 0, 1, 2])
    assert (cells.x0, cells.dx) == (1, 1)
    # customdata: mean, first and last rank, highest value and its neuron. Equal scores are ordered by neuron.
    assert cells.customdata[:, :, 0] == pytest.approx(np.array([[100, 1, 0], [10, 0.1, 0.1]]))
    assert cells.customdata[:, :, 4].tolist() == [[1, 0, 2], [2, 0, 1]]
    assert cells.hovertemplate.startswith("layer %{y}, rank %{customdata[1]}<br>neuron %{customdata[4]}: score")
    assert figure.layout.yaxis.title.text == "layer"
    assert figure.layout.xaxis.title.text == "rank within the layer (highest score first)"
    assert figure.layout.title.text == "All MLP neurons by layer: score (log scale)"
    subtitle = figure.layout.title.subtitle.text
    assert "6 neurons, one cell per neuron; red: more important on the forget corpus" in subtitle


def test_the_hover_of_attention_neurons_names_the_head() -> None:
    (cells,) = traces(sp.plots.score_map(neuron_values([1, 2, 3, 4], site="attn", heads=2, eps={}), site="attn"))
    assert cells.customdata[0, :, 4:].tolist() == [[3, 1], [2, 1], [1, 0], [0, 0]]
    assert "(head %{customdata[5]})" in cells.hovertemplate


def test_a_wide_layer_is_binned_and_a_narrower_layer_ends_in_missing_cells() -> None:
    wide = np.random.default_rng(0).lognormal(size=1201)
    (cells,) = traces(sp.plots.score_map(neuron_values(wide.tolist(), wide[:500].tolist(), eps={})))
    assert cells.z.shape == (2, 401)
    assert (cells.x0, cells.dx) == (2, 3)
    expected = -np.sort(-wide)
    assert cells.customdata[0, :400, 0] == pytest.approx(expected[:1200].reshape(400, 3).mean(axis=1), rel=1e-6)
    assert cells.customdata[0, 400, :3] == pytest.approx([expected[-1], 1201, 1201], rel=1e-6)
    assert cells.customdata[0, :, 4].tolist() == np.argsort(-wide)[::3].tolist()
    assert np.isnan(cells.z[1]).sum() == 401 - 167
    assert not cells.hoverongaps


def test_values_that_are_not_scores_are_coloured_linearly() -> None:
    (effects,) = traces(sp.plots.score_map(neuron_values([0.5, -0.2, math.nan], metric="ablation effect")))
    assert (effects.zmin, effects.zmax) == (-0.5, 0.5)
    assert effects.z[0] == pytest.approx([0.5, -0.2, math.nan], nan_ok=True)
    (importances,) = traces(sp.plots.score_map(neuron_values([0.5, 0.2, 0], metric="abs")))
    assert (importances.zmin, importances.zmax) == (0, 0.5)
    assert importances.colorbar.title.text == "mean |z| (activation)"


def test_a_7b_model_makes_a_small_figure() -> None:
    generator = torch.Generator().manual_seed(0)
    layout = Layout(tuple(NeuronGroup("mlp", layer, 16384) for layer in range(32)))
    scores = sp.NeuronValues(layout, {name: torch.rand(16384, generator=generator) for name in layout.names})
    assert megabytes(sp.plots.score_map(scores)) < 1


@pytest.mark.parametrize("value", [0.0, 1.0, 1e9])
def test_equal_values_have_a_colour_scale(value: float) -> None:
    (cells,) = traces(sp.plots.score_map(neuron_values([value] * 3, eps={})))
    assert cells.zmin < cells.zmax
    assert (cells.zmin <= cells.z).all()
    assert (cells.z <= cells.zmax).all()


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.score_map(head_values([1])), "expects NeuronValues, got HeadValues: compute them with score"),
        (lambda: plots.score_map(neuron_values([1]), site="attn"), "no neurons at site 'attn'"),
        (lambda: plots.score_map(neuron_values([math.nan] * 2)), "none of the 2 values is finite"),
    ],
)
def test_invalid_values_are_rejected(draw: Any, message: str) -> None:
    with pytest.raises(sp.SpLensError, match=message):
        draw()
