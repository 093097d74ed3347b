"""What the figures other than 2 and 5 hold: values against numpy and pandas, axes, hover, sizes, refusals."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
import pytest
import torch
from plot_factories import (
    MLP_LAYOUT,
    head_values,
    megabytes,
    neuron_values,
    pruned_at_steps,
    run_of,
    stats_of,
    traces,
    traces_with_mode,
    varied,
)

import sp_lens as sp
from sp_lens.neurons.layout import Layout, NeuronGroup
from sp_lens.statistics.moments import Moments

pytestmark = pytest.mark.libraries

plots: Any = sp.plots  # for calls that the type checker would refuse as well
# Figure 3: perplexity


def test_perplexity_draws_forget_against_retain_on_logarithmic_axes() -> None:
    figure = sp.plots.perplexity(run_of(perplexity=([10, 40, 1000], [20, 22, 30])))
    (dot,), (curve,) = traces_with_mode(figure, "markers"), traces_with_mode(figure, "lines")
    assert list(dot.x) == [20, 22, 30]
    assert list(dot.y) == [10, 40, 1000]
    assert [figure.layout.xaxis.type, figure.layout.yaxis.type] == ["log", "log"]
    assert figure.layout.xaxis.title.text == "perplexity on retain data (log)"
    assert figure.layout.yaxis.title.text == "perplexity on forget data (log)"
    # Smoothed as it is drawn: in logarithms; both ends are kept.
    assert curve.y == pytest.approx([10, (10 * 40 * 1000) ** (1 / 3), 1000])
    assert dot.customdata == pytest.approx(np.array([[0, 0, 0.5, 0.5], [1, 0.05, 0.3, 0.4], [2, 0.1, 0.1, 0.4]]))
    assert "<b>abs</b><br>step %{customdata[0]}" in dot.hovertemplate
    for axis, values in ((figure.layout.xaxis, dot.x), (figure.layout.yaxis, dot.y)):
        low, high = 10 ** np.array(axis.range)
        assert low < min(values) <= max(values) < high
    assert figure.layout.yaxis.ticktext == ("10", "20", "50", "100", "200", "500", "1,000")


def test_perplexity_rises_alike_on_the_line_from_the_common_start() -> None:
    (line,) = sp.plots.perplexity([run_of(), run_of(metric="std")]).layout.shapes
    assert (line.x0, line.y0, line.x1, line.y1) == pytest.approx((20, 10, 30, 15))
    elsewhere = run_of(perplexity=([9, 9, 9], [8, 8, 8]), model="other")
    assert not sp.plots.perplexity([run_of(), elsewhere]).layout.shapes


def test_perplexity_styles_runs_as_tradeoff_does() -> None:
    runs = [run_of(metric="random", seed=seed) for seed in range(9)]
    figures = [sp.plots.perplexity(runs), sp.plots.tradeoff(runs)]
    assert [t.name for t in traces_with_mode(figures[0], "markers")][8] == "random, seed 8"
    styles = [
        [(t.name, t.marker.color, t.marker.symbol) for t in traces_with_mode(figure, "markers")] for figure in figures
    ]
    assert styles[0] == styles[1]


def test_perplexity_leaves_infinite_steps_out_and_says_so() -> None:
    figure = sp.plots.perplexity(run_of(perplexity=([10, 40, math.inf], [20, 22, 30])))
    assert list(traces_with_mode(figure, "markers")[0].y) == [10, 40]
    assert figure.layout.title.subtitle.text.endswith("; left out, steps of infinite perplexity: 1")


def test_perplexity_of_runs_that_lost_nothing_and_of_very_many() -> None:
    still = sp.plots.perplexity(run_of([0.5], [0.5], perplexity=([10], [20])))
    low, high = 10 ** np.array(still.layout.xaxis.range)
    assert 15 < low < 20 < high < 25
    many = sp.plots.perplexity([run_of(metric="random", seed=seed) for seed in range(200)])
    assert not any(trace.showlegend for trace in traces(many))
    assert many.layout.title.subtitle.text.startswith("200 runs, named on hover; ")
    assert megabytes(many) < 5


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([], "no runs to draw"),
        ([3], "is a int: expected a PruneRun"),
        ([run_of(perplexity=([math.inf] * 3, [1, 1, 1]))], "run 'abs' has no step of finite perplexity"),
        (
            [replace(run_of(), records=[{"step": 0, "share": 0, "forget_top1": 0.5, "retain_top1": 0.5}])],
            "run 'abs' has no retain_perplexity in its records",
        ),
    ],
)
def test_perplexity_refuses(runs: Any, message: str) -> None:
    with pytest.raises(sp.SpLensError, match=message):
        sp.plots.perplexity(runs)


# Figure 4: selectivity


def test_selectivity_is_the_largest_difference_of_drops_in_points() -> None:
    runs = [run_of([0.5, 0.3, 0.1], [0.5, 0.45, 0.2]), run_of([0.5, 0.4], [0.5, 0.5], site="attn", metric="freq")]
    figure = sp.plots.selectivity(runs)
    mlp, attn = traces(figure)
    assert [list(mlp.x), list(attn.x)] == [["abs"], ["freq"]]
    assert [*mlp.y, *attn.y] == pytest.approx([15, 10])  # 20 - 5 beats 40 - 30
    assert [mlp.name, attn.name] == ["MLP neurons", "attention pre-out neurons"]
    assert mlp.marker.color != attn.marker.color
    assert figure.layout.xaxis.categoryarray == ("freq", "abs")
    assert figure.layout.yaxis.title.text == "selectivity (percentage points)"
    assert figure.layout.title.subtitle.text == "the largest over 1 to 2 steps; tiny, 5 % a step"


def test_runs_that_differ_in_seed_alone_are_one_bar_with_their_standard_deviation() -> None:
    lost = [0.1, 0.2, 0.4]
    seeds = [run_of([0.5, 0.5 - x], [0.5, 0.5], metric="random", seed=seed) for seed, x in enumerate(lost)]
    figure = sp.plots.selectivity([*seeds, run_of()])
    (bar,) = traces(figure)
    assert list(bar.x) == ["random", "abs"]
    assert bar.y == pytest.approx([np.mean(lost) * 100, 30])
    assert bar.error_y.array == pytest.approx([np.std(lost, ddof=1) * 100, math.nan], nan_ok=True)
    assert bar.customdata == pytest.approx(np.array([[3, 10, 40], [1, 30, 30]]))
    assert "mean of %{customdata[0]} runs" in bar.hovertemplate
    assert "error bars: standard deviation over seeds" in figure.layout.title.subtitle.text
    assert "error bars" not in sp.plots.selectivity(run_of()).layout.title.subtitle.text


def test_models_get_a_panel_each_on_one_scale() -> None:
    runs = [run_of(model=model, site=site) for model in ("A", "B", "C") for site in ("attn", "mlp")]
    figure = sp.plots.selectivity(runs)
    assert [note.text for note in figure.layout.annotations] == ["A", "B", "C"]
    assert len(traces(figure)) == 6
    assert [trace.name for trace in traces(figure) if trace.showlegend] == ["MLP neurons", "attention pre-out neurons"]
    assert [axis.matches for axis in figure.select_yaxes()] == [None, "y", "y", "y"]  # two rows of two


def test_panels_are_called_after_what_was_recorded() -> None:
    runs = [run_of(site="attn", unit="head", aggregate="mean"), run_of(site="attn", unit="neuron"), run_of(model=None)]
    figure = sp.plots.selectivity(runs)
    names = ["tiny, by head, mean of its neurons", "tiny, by neuron", "not recorded"]
    assert [note.text for note in figure.layout.annotations] == names


def test_what_is_protected_at_one_site_alone_makes_no_panel() -> None:
    """Attention sinks are neurons of the MLP: runs of the attention have none to protect."""
    spared = [run_of(site="mlp", metric=metric, protected={"neurons": 22}) for metric in ("abs", "rms")]
    runs = [run_of(site="attn"), *spared]
    figure = sp.plots.selectivity(runs)
    assert not [note.text for note in figure.layout.annotations if note.text]
    assert [(trace.name, trace.showlegend) for trace in traces(figure)] == [
        ("MLP neurons", True),
        ("attention pre-out neurons", True),
    ]
    assert figure.layout.title.subtitle.text.endswith(", 22 neurons protected (mlp)")
    apart = sp.plots.selectivity([*runs, run_of(site="mlp", metric="rms")])
    assert [note.text for note in apart.layout.annotations] == ["not recorded", "22 neurons protected"]
    assert [trace.name for trace in traces(apart) if trace.showlegend] == ["MLP neurons", "attention pre-out neurons"]


def test_two_hundred_seeds_are_one_bar_and_two_hundred_settings_refused() -> None:
    (bar,) = traces(sp.plots.selectivity([run_of(metric="random", seed=seed) for seed in range(200)]))
    assert bar.customdata[0][0] == 200
    with pytest.raises(sp.SpLensError, match=r"need 200 panels \('m0', 'm1', ...\), at most 12 are drawn"):
        sp.plots.selectivity([run_of(model=f"m{i}") for i in range(200)])


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([], "no runs to draw"),
        ("run", "is a str: expected a PruneRun"),
        (run_of([0.5], [0.5]), "run 'abs' has step 0 alone"),
        (run_of(site="head"), "run 'abs' has metric 'abs' and site 'head' in its settings"),
        (run_of(metric=None), "run 'run' has metric None and site 'mlp'"),
    ],
)
def test_selectivity_refuses(runs: Any, message: str) -> None:
    with pytest.raises(sp.SpLensError, match=message):
        sp.plots.selectivity(runs)


# Ours: score_map, head_map


def test_score_map_sorts_each_layer_and_its_hover_finds_the_neuron() -> None:
    scores = neuron_values([1, 100, 0], [0.1, 0.1, 10], eps={"mlp": 0.001}, metric="abs", model="tiny")
    figure = sp.plots.score_map(scores)
    (cells,) = traces(figure)
    assert list(cells.y) == ["0", "1"]
    assert cells.z == pytest.approx(np.array([[2, 0, -2], [1, -1, -1]]))  # of 0, the floor
    assert (cells.zmin, cells.zmax) == (-2, 2)
    assert cells.colorbar.ticktext == ("0.01", "0.1", "1", "10", "100")
    assert list(cells.colorbar.tickvals) == pytest.approx([-2, -1, 0, 1, 2])
    assert (cells.x0, cells.dx) == (1, 1)
    # Value; first and last rank; highest value and its neuron; ties in the order of neurons.
    assert cells.customdata[:, :, 0] == pytest.approx(np.array([[100, 1, 0], [10, 0.1, 0.1]]))
    assert cells.customdata[:, :, 4].tolist() == [[1, 0, 2], [2, 0, 1]]
    assert cells.hovertemplate.startswith("layer %{y}, rank %{customdata[1]}<br>neuron %{customdata[4]}: score")
    assert figure.layout.yaxis.title.text == "layer"
    assert figure.layout.xaxis.title.text == "rank of the neuron within its layer, highest score first"
    assert figure.layout.title.text == "Every MLP neuron, layer by layer: score (log)"
    assert "6 neurons, a cell is a neuron; red: more for the forget corpus" in figure.layout.title.subtitle.text


def test_score_map_of_attention_names_the_head() -> None:
    (cells,) = traces(sp.plots.score_map(neuron_values([1, 2, 3, 4], site="attn", heads=2, eps={}), site="attn"))
    assert cells.customdata[0, :, 4:].tolist() == [[3, 1], [2, 1], [1, 0], [0, 0]]
    assert "(head %{customdata[5]})" in cells.hovertemplate


def test_score_map_bins_a_wide_layer_and_takes_layers_of_other_widths() -> None:
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


def test_values_that_are_no_scores_are_coloured_linearly() -> None:
    (effects,) = traces(sp.plots.score_map(neuron_values([0.5, -0.2, math.nan], metric="ablation effect")))
    assert (effects.zmin, effects.zmax) == (-0.5, 0.5)
    assert effects.z[0] == pytest.approx([0.5, -0.2, math.nan], nan_ok=True)
    (importances,) = traces(sp.plots.score_map(neuron_values([0.5, 0.2, 0], metric="abs")))
    assert (importances.zmin, importances.zmax) == (0, 0.5)
    assert importances.colorbar.title.text == "mean |z| (activation)"


def test_score_map_of_7b_is_light() -> None:
    generator = torch.Generator().manual_seed(0)
    layout = Layout(tuple(NeuronGroup("mlp", layer, 16384) for layer in range(32)))
    scores = sp.NeuronValues(layout, {name: torch.rand(16384, generator=generator) for name in layout.names})
    assert megabytes(sp.plots.score_map(scores)) < 1


@pytest.mark.parametrize("value", [0.0, 1.0, 1e9])
def test_maps_of_equal_values_have_a_scale(value: float) -> None:
    for figure in (
        sp.plots.score_map(neuron_values([value] * 3, eps={})),
        sp.plots.head_map(head_values([value] * 3)),
        sp.plots.head_map(head_values([value] * 3, eps={})),
    ):
        (cells,) = traces(figure)
        assert cells.zmin < cells.zmax
        assert (cells.zmin <= cells.z).all()
        assert (cells.z <= cells.zmax).all()


def test_head_map_of_ablation_effects_diverges_around_0_and_is_annotated() -> None:
    heads = head_values([0.25, -0.05], [0.0, math.nan], metric="ablation effect", mode="zero", model="tiny")
    figure = sp.plots.head_map(heads)
    (cells,) = traces(figure)
    assert cells.z == pytest.approx(np.array([[0.25, -0.05], [0, math.nan]]), nan_ok=True)
    assert (cells.zmin, cells.zmax) == (-0.25, 0.25)
    assert cells.text == (["0.250", "-0.050"], ["0.000", ""])
    assert cells.texttemplate == "%{text}"
    assert cells.colorbar.title.text == "rise in loss (nats per token)"
    assert cells.hovertemplate.startswith("layer %{y}, head %{x}<br>rise in loss (nats per token)")
    assert figure.layout.title.text == "Importance of attention heads by ablation"
    assert figure.layout.title.subtitle.text == "tiny, zero ablation"
    assert [figure.layout.xaxis.title.text, figure.layout.yaxis.title.text] == ["head", "layer"]
    assert figure.layout.yaxis.autorange == "reversed"


def test_head_map_by_activation_is_sequential_and_of_scores_around_1() -> None:
    values = neuron_values([1, 3, 5, 7], [0, 0, 2, 2], site="attn", heads=2, metric="abs")
    (cells,) = traces(sp.plots.head_map(values.heads("mean")))
    assert cells.z.tolist() == [[2, 6], [0, 2]]
    assert (cells.zmin, cells.zmax) == (0, 6)
    (scores,) = traces(sp.plots.head_map(head_values([10, 0.1], eps={})))
    assert scores.z.tolist() == [[1, -1]]
    assert scores.customdata[:, :, 0] == pytest.approx(np.array([[10, 0.1]]))


def test_many_heads_are_not_annotated() -> None:
    (cells,) = traces(sp.plots.head_map(head_values(*[[1.0] * 40] * 80)))
    assert cells.text is None
    assert cells.z.shape == (80, 40)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.score_map(head_values([1])), "draws NeuronValues, got HeadValues: make them with score"),
        (lambda: plots.score_map(neuron_values([1]), site="attn"), "no neurons at site 'attn'"),
        (lambda: plots.score_map(neuron_values([math.nan] * 2)), "none of the 2 values is finite"),
        (lambda: plots.head_map(neuron_values([1])), "draws HeadValues, got NeuronValues: make them with scores.heads"),
        (lambda: plots.head_map(head_values()), "none of the 0 values is finite"),
        (lambda: plots.head_map(head_values([math.nan])), "none of the 1 values is finite"),
    ],
)
def test_maps_refuse(draw: Any, message: str) -> None:
    with pytest.raises(sp.SpLensError, match=message):
        draw()


# Ours: pruned_by_layer


def test_pruned_by_layer_counts_the_mask_of_each_step() -> None:
    layout = Layout((NeuronGroup("mlp", 1, 4), NeuronGroup("mlp", 3, 5)))
    steps = dict(zip(layout.names, [pruned_at_steps(1, 1, 0, 2), pruned_at_steps(0, 0, 2, 0, 0)], strict=True))
    run = run_of(layout=layout, pruned_at=steps)
    figure = sp.plots.pruned_by_layer(run)
    first, second, whole, _bar = traces(figure)
    assert [first.name, second.name, whole.name] == ["layer 1", "layer 3", "all layers"]
    for line, name in ((first, layout.names[0]), (second, layout.names[1])):
        assert list(line.x) == [0, 1, 2]
        shares = [float(run.mask_at(step)[name].double().mean()) * 100 for step in range(3)]
        assert line.y == pytest.approx(shares)
    assert whole.y == pytest.approx([run.mask_at(step).share() * 100 for step in range(3)])
    assert whole.customdata.tolist() == [0, 2, 4]
    assert "%{y:.1f} % pruned<br>%{customdata:,} of 9 neurons" in whole.hovertemplate
    assert whole.line.dash == "dash"
    assert first.line.color != second.line.color
    assert figure.layout.xaxis.title.text == "pruning step"
    assert figure.layout.yaxis.title.text == "pruned share of the layer's neurons (%)"


def test_pruned_by_layer_has_a_panel_for_each_site_and_takes_one_step() -> None:
    layout = Layout((NeuronGroup("attn", 0, 4, heads=2), NeuronGroup("mlp", 0, 2)))
    steps = dict(zip(layout.names, [pruned_at_steps(0, 0, 0, 1), pruned_at_steps(1, 0)], strict=True))
    figure = sp.plots.pruned_by_layer(run_of([0.5, 0.4], [0.5, 0.4], layout=layout, pruned_at=steps, site="both"))
    assert [note.text for note in figure.layout.annotations] == ["attention pre-out neurons", "MLP neurons"]
    assert [list(line.y) for line in traces(figure)] == [[0, 25]] * 2 + [[0, 50]] * 2
    assert [line.xaxis for line in traces(figure)] == ["x", "x", "x2", "x2"]


def test_pruned_by_layer_of_80_layers_is_light() -> None:
    layout = Layout(tuple(NeuronGroup("mlp", layer, 16384) for layer in range(80)))
    steps = {name: torch.arange(16384, dtype=torch.int32) % 60 for name in layout.names}
    steps = {name: torch.where(step > 50, 0, step) for name, step in steps.items()}
    run = run_of([0.5] * 51, [0.5] * 51, layout=layout, pruned_at=steps, perplexity=([10.0] * 51, [10.0] * 51))
    assert megabytes(sp.plots.pruned_by_layer(run)) < 1


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (run_of(), "the run pruned nothing in 2 steps"),
        (run_of([0.5], [0.5]), "the run pruned nothing in 0 steps"),
        ([run_of()], "is a list: expected a PruneRun"),
        (run_of().mask, "is a NeuronMask: expected a PruneRun"),
    ],
)
def test_pruned_by_layer_refuses(run: Any, message: str) -> None:
    with pytest.raises(sp.SpLensError, match=message):
        sp.plots.pruned_by_layer(run)


# Ours: importance_scatter, metric_agreement


def seven_b(seed: int) -> sp.ActivationStats:
    """Log-normal importances of 32 layers of 16384 neurons."""
    layout = Layout(tuple(NeuronGroup("mlp", layer, 16384) for layer in range(32)))
    generator = torch.Generator().manual_seed(seed)
    moments = {}
    for name in layout.names:
        z = torch.exp(torch.randn(16384, generator=generator, dtype=torch.float64) * 1.5 - 3)
        moments[name] = Moments(1, (z > 0.05).long(), z, z, 0 * z, z, z, 0 * z)
    return sp.ActivationStats(layout, moments)


def test_scatter_puts_every_neuron_at_its_importances_and_parts_them_at_the_mask() -> None:
    z = (
        [varied(seed=1), varied(seed=2)],
        [varied(seed=3), varied(seed=4)],
    )
    forget, retain = stats_of(*z[0], model="tiny"), stats_of(*z[1], model="tiny")
    figure = sp.plots.importance_scatter(forget, retain, fraction=0.1)
    others, taken = traces(figure)[:2]
    assert [len(others.x), len(taken.x)] == [54, 6]
    assert taken.type == "scattergl"
    mask = sp.score(forget, retain).top(0.1, site="mlp")
    for trace, wanted in ((others, False), (taken, True)):
        for x, y, (layer, neuron, score, f, r) in zip(trace.x, trace.y, trace.customdata, strict=True):
            column = [side[int(layer)][:, int(neuron)].double().abs().mean().item() for side in z]
            assert [y, x] == pytest.approx(column, rel=1e-5)
            assert [f, r, score] == pytest.approx([*column, column[0] / (column[1] + 1e-3)], rel=1e-5)
            assert bool(mask[f"blocks.{int(layer)}.mlp.hook_post"][int(neuron)]) == wanted
    assert taken.hovertemplate.startswith("<b>layer %{customdata[0]}, neuron %{customdata[1]}</b>")
    assert [figure.layout.xaxis.type, figure.layout.yaxis.type] == ["log", "log"]
    assert figure.layout.xaxis.title.text == "importance on retain data:<br>mean |z| (activation), log"


def test_scatter_draws_the_cut_and_the_eps() -> None:
    small = stats_of(varied(seed=5) * 0.01)
    figure = sp.plots.importance_scatter(stats_of(varied(seed=6) * 0.01), small, fraction=0.1)
    _, taken, cut, eps = traces(figure)
    assert list(eps.x) == [1e-3, 1e-3]
    assert np.asarray(cut.y) / (np.asarray(cut.x) + 1e-3) == pytest.approx(taken.customdata[:, 2].min(), rel=1e-5)
    (low, high), (bottom, top) = 10 ** np.array(figure.layout.xaxis.range), 10 ** np.array(figure.layout.yaxis.range)
    assert low < 1e-3 < high
    assert low < min(cut.x) * 1.001 < max(cut.x) < high * 1.001
    assert bottom < min(cut.y) * 1.001 < max(cut.y) < top * 1.001
    far = sp.plots.importance_scatter(stats_of(varied() + 9), stats_of(varied() + 9))
    assert len(traces(far)) == 3
    assert "eps 0.001, far below all retain importances" in far.layout.title.subtitle.text


def test_neurons_that_never_fire_are_drawn_at_the_edge_and_counted() -> None:
    z = varied().abs()
    z[:, 3] = 0
    figure = sp.plots.importance_scatter(stats_of(z), stats_of(varied(seed=1)), fraction=0.1)
    points = np.concatenate(
        [np.column_stack([t.customdata[:, 1], t.y, t.customdata[:, 3]]) for t in traces(figure)[:2]]
    )
    (dead,) = points[points[:, 0] == 3]
    others = points[points[:, 0] != 3]
    assert dead[1:] == pytest.approx([others[:, 1].min() / 2, 0])
    assert "importance 0: 1 on forget, 0 on retain" in figure.layout.title.subtitle.text


def test_scatter_of_attention_names_the_head() -> None:
    stats = [stats_of(varied(8, seed=seed), site="attn", heads=2) for seed in (0, 1)]
    taken = traces(sp.plots.importance_scatter(*stats, site="attn", metric="std", fraction=1))[1]
    assert taken.customdata[:, 5].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert "(head %{customdata[5]})" in taken.hovertemplate


def test_scatter_of_7b_keeps_the_extremes_and_is_light() -> None:
    forget, retain = seven_b(0), seven_b(1)
    figure = sp.plots.importance_scatter(forget, retain)
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


def test_scatter_of_equal_neurons_is_one_place() -> None:
    same = stats_of(torch.ones(5, 4))
    figure = sp.plots.importance_scatter(same, same, fraction=0.25)
    assert {*traces(figure)[0].x, *traces(figure)[0].y} == {1}
    for axis in (figure.layout.xaxis, figure.layout.yaxis):
        assert 10 ** axis.range[0] < 1 < 10 ** axis.range[1]


def test_metric_agreement_is_spearmans() -> None:
    forget, retain = (
        stats_of(varied(seed=1), varied(seed=2)),
        stats_of(varied(seed=3), varied(seed=4)),
    )
    figure = sp.plots.metric_agreement(forget, retain)
    (cells,) = traces(figure)
    metrics: tuple[Any, ...] = ("freq", "abs", "rms", "std")
    assert cells.x == cells.y == metrics
    frame = pd.DataFrame({m: sp.score(forget, retain, metric=m).frame()["value"] for m in metrics})
    assert cells.z == pytest.approx(frame.corr(method="spearman").to_numpy(), rel=1e-5)
    # Without ties: 1 - 6 sum d^2 / n (n^2 - 1).
    d = np.argsort(np.argsort(frame["abs"].to_numpy())) - np.argsort(np.argsort(frame["std"].to_numpy()))
    assert cells.z[1, 3] == pytest.approx(1 - 6 * (d**2).sum() / (60 * (60**2 - 1)), rel=1e-5)
    assert cells.text[0][0] == "1.00"
    assert (cells.zmin, cells.zmax) == (-1 if (cells.z < 0).any() else 0, 1)
    assert figure.layout.xaxis.title.text == figure.layout.yaxis.title.text == "score by"


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (
            lambda: plots.importance_scatter(stats_of(varied()), 3),
            "retain is a int: expected ActivationStats",
        ),
        (
            lambda: plots.importance_scatter(stats_of(varied(), model="a"), stats_of(varied(), model="b")),
            "different models",
        ),
        (
            lambda: plots.importance_scatter(*[stats_of(varied())] * 2, site="attn"),
            "no neurons at site 'attn'",
        ),
        (
            lambda: plots.importance_scatter(*[stats_of(varied())] * 2, fraction=2),
            "fraction 2: expected a share",
        ),
        (lambda: plots.importance_scatter(*[stats_of(varied())] * 2, metric="x"), "unknown metric 'x'"),
        (
            lambda: plots.importance_scatter(stats_of(varied()), stats_of(torch.zeros(5, 30))),
            "the abs of all 30 mlp neurons on the retain corpus is 0",
        ),
        (lambda: plots.importance_scatter(*[sp.ActivationStats(Layout(()), {})] * 2), "no neurons at site 'mlp'"),
        (lambda: plots.metric_agreement({}, {}), "forget is a dict: expected ActivationStats"),
        (
            lambda: plots.metric_agreement(*[stats_of(torch.ones(5, 4))] * 2),
            "all 4 mlp neurons have the same score by 'freq'",
        ),
        (
            lambda: plots.metric_agreement(*[stats_of(varied())] * 2, site="attn"),
            "no neurons at site 'attn'",
        ),
    ],
)
def test_comparisons_of_statistics_refuse(draw: Any, message: str) -> None:
    with pytest.raises(sp.SpLensError, match=message):
        draw()


# The look


def figures() -> list[go.Figure]:
    scores = sp.score(stats_of(varied(seed=1)), stats_of(varied(seed=2)))
    pruned = {name: pruned_at_steps(*[0, 1] * 10) for name in MLP_LAYOUT.names}
    return [
        sp.plots.perplexity(run_of()),
        sp.plots.selectivity(run_of()),
        sp.plots.score_map(scores),
        sp.plots.head_map(head_values([1, 2])),
        sp.plots.pruned_by_layer(run_of(pruned_at=pruned)),
        sp.plots.importance_scatter(stats_of(varied(seed=1)), stats_of(varied(seed=2)), fraction=0.1),
        sp.plots.metric_agreement(stats_of(varied(seed=1)), stats_of(varied(seed=2))),
    ]


def test_every_figure_has_titles_and_the_house_template(monkeypatch: pytest.MonkeyPatch) -> None:
    before = [figure.to_json() for figure in figures()]
    monkeypatch.setattr(pio.templates, "default", "plotly_dark")
    assert [figure.to_json() for figure in figures()] == before
    for figure in figures():
        assert figure.layout.title.text
        assert all(axis.title.text for axis in (figure.layout.xaxis, figure.layout.yaxis))
        assert figure.layout.template.layout.colorway[0] == "#0072B2"
