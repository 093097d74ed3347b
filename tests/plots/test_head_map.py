"""Head map: colour scales of effects, importances and scores, annotations, and rejected values."""

import math
from typing import Any

import numpy as np
import pytest
from plot_factories import head_values, neuron_values, traces

import sp_lens as sp

pytestmark = pytest.mark.libraries

plots: Any = sp.plots  # without types, because some calls pass the wrong type


def test_ablation_effects_diverge_around_0_and_are_annotated() -> None:
    heads = head_values([0.25, -0.05], [0.0, math.nan], metric="ablation effect", mode="zero", model="tiny")
    figure: Any = sp.plots.head_map(heads)
    (cells,) = traces(figure)
    assert cells.z == pytest.approx(np.array([[0.25, -0.05], [0, math.nan]]), nan_ok=True)
    assert (cells.zmin, cells.zmax) == (-0.25, 0.25)
    assert cells.text == (["0.250", "-0.050"], ["0.000", ""])
    assert cells.texttemplate == "%{text}"
    assert cells.colorbar.title.text == "increase in loss (nats per token)"
    assert cells.hovertemplate.startswith("layer %{y}, head %{x}<br>increase in loss (nats per token)")
    assert figure.layout.title.text == "Importance of attention heads by ablation"
    assert figure.layout.title.subtitle.text == "tiny, zero ablation"
    assert [figure.layout.xaxis.title.text, figure.layout.yaxis.title.text] == ["head", "layer"]
    assert figure.layout.yaxis.autorange == "reversed"


def test_estimated_effects_are_labelled_as_estimates() -> None:
    figure = sp.plots.head_map(head_values([1], metric="estimated ablation effect", mode="zero"))
    assert traces(figure)[0].colorbar.title.text == "estimated increase in loss (nats per<br>token)"


def test_importances_are_coloured_from_0_and_scores_around_1() -> None:
    values = neuron_values([1, 3, 5, 7], [0, 0, 2, 2], site="attn", heads=2, metric="abs")
    (cells,) = traces(sp.plots.head_map(values.heads("mean")))
    assert cells.z.tolist() == [[2, 6], [0, 2]]
    assert (cells.zmin, cells.zmax) == (0, 6)
    figure: Any = sp.plots.head_map(head_values([10, 0.1], eps={}))
    (scores,) = traces(figure)
    assert scores.z.tolist() == [[1, -1]]
    assert scores.customdata[:, :, 0] == pytest.approx(np.array([[10, 0.1]]))
    assert scores.colorbar.title.text == "score (log scale)"
    assert figure.layout.title.text == "Scores of attention heads by activation"


def test_many_heads_are_not_annotated() -> None:
    (cells,) = traces(sp.plots.head_map(head_values(*[[1.0] * 40] * 80)))
    assert cells.text is None
    assert cells.z.shape == (80, 40)


@pytest.mark.parametrize("value", [0.0, 1.0, 1e9])
@pytest.mark.parametrize("about", [{}, {"eps": {}}], ids=["importances", "scores"])
def test_equal_values_have_a_colour_scale(value: float, about: dict[str, Any]) -> None:
    (cells,) = traces(sp.plots.head_map(head_values([value] * 3, **about)))
    assert cells.zmin < cells.zmax
    assert (cells.zmin <= cells.z).all()
    assert (cells.z <= cells.zmax).all()


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (
            lambda: plots.head_map(neuron_values([1])),
            "expects HeadValues, got NeuronValues: compute them with scores.heads",
        ),
        (lambda: plots.head_map(head_values()), "none of the 0 values is finite"),
        (lambda: plots.head_map(head_values([math.nan])), "none of the 1 values is finite"),
    ],
)
def test_invalid_values_are_rejected(draw: Any, message: str) -> None:
    with pytest.raises(sp.SpLensError, match=message):
        draw()
