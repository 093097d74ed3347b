"""Importance scatter: positions, the threshold and eps lines, thinning of points, error bars, and rejected input."""

from typing import Any

import numpy as np
import pytest
import torch
from plot_factories import megabytes, stats_of, stats_with_folds, traces, varied

import sp_lens as sp
from sp_lens.neurons.layout import Layout, NeuronGroup
from sp_lens.statistics.moments import Moments

pytestmark = pytest.mark.libraries

plots: Any = sp.plots  # without types, because some calls pass the wrong type


def stats_of_7b(seed: int) -> sp.ActivationStats:
    """Log-normal importances of 32 layers of 16384 neurons."""
    layout = Layout(tuple(NeuronGroup("mlp", layer, 16384) for layer in range(32)))
    generator = torch.Generator().manual_seed(seed)
    moments = {}
    for name in layout.names:
        z = torch.exp(torch.randn(16384, generator=generator, dtype=torch.float64) * 1.5 - 3)
        moments[name] = Moments(1, (z > 0.05).long(), z, z, 0 * z, z, z, 0 * z)
    return sp.ActivationStats(layout, moments)


def test_every_neuron_is_at_its_importances_and_the_pruned_ones_are_those_of_the_mask() -> None:
    z_forget, z_retain = [varied(seed=1), varied(seed=2)], [varied(seed=3), varied(seed=4)]
    forget, retain = stats_of(*z_forget, model="tiny"), stats_of(*z_retain, model="tiny")
    figure: Any = sp.plots.importance_scatter(forget, retain, fraction=0.1)
    others, pruned = traces(figure)[:2]
    assert [len(others.x), len(pruned.x)] == [54, 6]
    assert pruned.type == "scattergl"
    mask = sp.score(forget, retain).top(0.1, site="mlp")
    for trace, is_pruned in ((others, False), (pruned, True)):
        for x, y, (layer, neuron, score, f, r) in zip(trace.x, trace.y, trace.customdata, strict=True):
            expected = [z[int(layer)][:, int(neuron)].double().abs().mean().item() for z in (z_forget, z_retain)]
            assert [y, x] == pytest.approx(expected, rel=1e-5)
            assert [f, r, score] == pytest.approx([*expected, expected[0] / (expected[1] + 1e-3)], rel=1e-5)
            assert bool(mask[f"blocks.{int(layer)}.mlp.hook_post"][int(neuron)]) == is_pruned
    assert pruned.hovertemplate.startswith("<b>layer %{customdata[0]}, neuron %{customdata[1]}</b>")
    assert [figure.layout.xaxis.type, figure.layout.yaxis.type] == ["log", "log"]
    assert figure.layout.xaxis.title.text == "importance on retain data:<br>mean |z| (activation), log scale"


def test_the_lines_are_the_pruning_threshold_and_eps() -> None:
    figure: Any = sp.plots.importance_scatter(
        stats_of(varied(seed=6) * 0.01), stats_of(varied(seed=5) * 0.01), fraction=0.1
    )
    _, pruned, threshold, eps = traces(figure)
    assert list(eps.x) == [1e-3, 1e-3]
    lowest_score = pruned.customdata[:, 2].min()
    assert np.asarray(threshold.y) / (np.asarray(threshold.x) + 1e-3) == pytest.approx(lowest_score, rel=1e-5)
    (low, high), (bottom, top) = 10 ** np.array(figure.layout.xaxis.range), 10 ** np.array(figure.layout.yaxis.range)
    assert low < 1e-3 < high
    assert low < min(threshold.x) * 1.001 < max(threshold.x) < high * 1.001
    assert bottom < min(threshold.y) * 1.001 < max(threshold.y) < top * 1.001
    far: Any = sp.plots.importance_scatter(stats_of(varied() + 9), stats_of(varied() + 9))
    assert len(traces(far)) == 3
    assert "eps 0.001, far below all retain importances" in far.layout.title.subtitle.text


def test_neurons_with_importance_0_are_drawn_at_the_edge_and_counted() -> None:
    z = varied().abs()
    z[:, 3] = 0
    figure: Any = sp.plots.importance_scatter(stats_of(z), stats_of(varied(seed=1)), fraction=0.1)
    points = np.concatenate(
        [np.column_stack([t.customdata[:, 1], t.y, t.customdata[:, 3]]) for t in traces(figure)[:2]]
    )
    (dead,) = points[points[:, 0] == 3]
    others = points[points[:, 0] != 3]
    assert dead[1:] == pytest.approx([others[:, 1].min() / 2, 0])
    subtitle = figure.layout.title.subtitle.text.replace("<br>", " ")
    assert "importance 0, drawn at the edges: 1 on forget data, 0 on retain data" in subtitle


def test_the_hover_of_attention_neurons_names_the_head() -> None:
    stats = [stats_of(varied(8, seed=seed), site="attn") for seed in (0, 1)]
    pruned = traces(sp.plots.importance_scatter(*stats, site="attn", metric="std", fraction=1))[1]
    assert pruned.customdata[:, 5].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert "(head %{customdata[5]})" in pruned.hovertemplate


def test_a_7b_model_makes_a_small_figure_that_keeps_the_extremes() -> None:
    forget, retain = stats_of_7b(0), stats_of_7b(1)
    figure: Any = sp.plots.importance_scatter(forget, retain)
    drawn = np.concatenate([trace.customdata for trace in traces(figure)[:2]])
    assert 10_000 < len(drawn) <= 20_000
    assert len(np.unique(drawn[:, :2], axis=0)) == len(drawn)
    scores = sp.score(forget, retain).stack("mlp").numpy().ravel()
    assert np.sort(drawn[:, 2])[-1000:] == pytest.approx(np.sort(scores)[-1000:], rel=1e-5)
    for column, stats in ((3, forget), (4, retain)):
        importance = stats.importance("abs").stack("mlp")
        extremes = [float(importance.min()), float(importance.max())]
        assert [drawn[:, column].min(), drawn[:, column].max()] == pytest.approx(extremes, rel=1e-5)
    assert f"524,288 neurons, {len(drawn):,} drawn" in figure.layout.title.subtitle.text
    assert megabytes(figure) < 2


def test_neurons_with_equal_importances_have_axes_around_them() -> None:
    equal = stats_of(torch.ones(5, 4))
    figure: Any = sp.plots.importance_scatter(equal, equal, fraction=0.25)
    assert {*traces(figure)[0].x, *traces(figure)[0].y} == {1}
    for axis in (figure.layout.xaxis, figure.layout.yaxis):
        assert 10 ** axis.range[0] < 1 < 10 ** axis.range[1]


def test_error_bars_are_the_confidence_intervals_of_the_importances() -> None:
    forget, retain = stats_with_folds(1, site="mlp"), stats_with_folds(2, site="mlp")
    figure: Any = sp.plots.importance_scatter(forget, retain, fraction=0.1)
    others, pruned = figure.data[:2]
    assert others.error_x.array is None or np.isnan(others.error_x.array).all()
    scores = sp.uncertainty(forget, retain).frame().set_index("neuron")
    importances = sp.uncertainty(forget).frame().set_index("neuron")
    for index, row in enumerate(pruned.customdata):
        neuron = int(row[1])
        np.testing.assert_allclose(row[-2:], scores.loc[neuron, ["low", "high"]].to_numpy(float), rtol=1e-5)
        high = pruned.y[index] + pruned.error_y.array[index]
        low = pruned.y[index] - pruned.error_y.arrayminus[index]
        assert [low, high] == pytest.approx(importances.loc[neuron, ["low", "high"]].tolist(), rel=1e-5)
    assert "error bars: 95 % confidence intervals" in figure.layout.title.subtitle.text
    assert "[%{customdata[5]" in pruned.hovertemplate


def test_without_folds_of_both_corpora_there_are_no_error_bars() -> None:
    forget, retain = stats_with_folds(1, site="mlp"), stats_with_folds(2, site="mlp")
    without_folds = sp.ActivationStats(retain.layout, retain.moments, retain.about)
    figure: Any = sp.plots.importance_scatter(forget, without_folds, fraction=0.1)
    assert figure.data[1].error_x.array is None
    assert figure.data[1].customdata.shape[1] == 5


@pytest.mark.parametrize(
    ("forget", "retain", "options", "message"),
    [
        (stats_of(varied()), 3, {}, "retain has type int: expected ActivationStats"),
        (stats_of(varied(), model="a"), stats_of(varied(), model="b"), {}, "different models"),
        (stats_of(varied()), stats_of(varied()), {"site": "attn"}, "no neurons at site 'attn'"),
        (stats_of(varied()), stats_of(varied()), {"fraction": 2}, "fraction 2: expected"),
        (stats_of(varied()), stats_of(varied()), {"metric": "x"}, "unknown metric 'x'"),
        (
            stats_of(varied()),
            stats_of(torch.zeros(5, 30)),
            {},
            "the abs of all 30 mlp neurons on the retain corpus",
        ),
        (*[sp.ActivationStats(Layout(()), {})] * 2, {}, "no neurons at site 'mlp'"),
    ],
)
def test_invalid_arguments_are_rejected(forget: Any, retain: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(sp.SpLensError, match=message):
        plots.importance_scatter(forget, retain, **options)
