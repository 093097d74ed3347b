"""What the figures hold: values, axes, names, and what they refuse to draw."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import plotly.io as pio
import pytest
import torch
from factories import random_rows
from plot_factories import EDGES, normal, run_of, stats_with_histograms, traces, traces_with_mode

import sp_lens as sp

pytestmark = pytest.mark.libraries

DENSITY = "density (share of tokens<br>per unit of activation, log)"


def curves(figure: go.Figure, panel: int = 1) -> list[Any]:
    """The density curves of a panel; the trace of the colour bar is none."""
    axis = "x" if panel == 1 else f"x{panel}"
    return [trace for trace in traces(figure) if trace.fill == "toself" and trace.xaxis in (axis, None)]


def area(trace: Any) -> float:
    """Under the steps of a curve, without the bins that are drawn at the floor because they are empty."""
    widths, heights = np.diff(trace.x)[1:], trace.customdata[1:-1, 1]
    return float((widths * heights).sum())


def stats_of(z: torch.Tensor, **options: Any) -> sp.ActivationStats:
    return stats_with_histograms(z, first_layer=2, **options)


def dots(figure: go.Figure) -> list[Any]:
    return traces_with_mode(figure, "markers")


def lines(figure: go.Figure) -> list[Any]:
    return traces_with_mode(figure, "lines")


# Figure 5: density


@pytest.mark.model
def test_density_is_the_histogram_of_the_activations(opt: Any) -> None:
    rows = random_rows(12)
    edges = sp.collect(opt, rows, progress=False).edges("attn", bins=20)
    stats = sp.collect(opt, rows, edges={"attn": edges}, progress=False)
    figure = sp.plots.density({"random": stats}, layer=1, neurons=range(32))
    z = torch.cat([opt.run_with_cache(row[None])[1]["blocks.1.attn.hook_z"][0, 1:].flatten(1) for row in rows])
    for neuron, trace in enumerate(curves(figure)):
        expected, _ = np.histogram(z[:, neuron].numpy(), edges.numpy(), density=True)
        middles = (edges[1:] + edges[:-1]).numpy() / 2
        drawn = dict(zip(np.round(trace.customdata[:, 0], 5), trace.customdata[:, 1], strict=True))
        for middle, height in zip(np.round(middles, 5), expected, strict=True):
            assert drawn.get(middle, 0) == pytest.approx(height, rel=1e-4)
        assert area(trace) == pytest.approx(1, rel=1e-4)


def test_density_of_a_known_histogram_step_by_step() -> None:
    z = torch.tensor([[-0.5], [-0.5], [0.5], [3.0]])  # two tokens in [-0.6, -0.4), one in [0.4, 0.6), one outside
    figure = sp.plots.density({"four": stats_of(z, heads=1)}, neurons=[0])
    (trace,) = curves(figure)
    low = 1.25 / 2  # half of the lower of the two densities
    assert trace.x == pytest.approx([-0.6, -0.6, -0.4, -0.2, 0, 0.2, 0.4, 0.6], abs=1e-6)
    assert trace.y == pytest.approx([low, 2.5, low, low, low, low, 1.25, low])
    assert trace.customdata[:, 1] == pytest.approx([2.5, 2.5, 0, 0, 0, 0, 1.25, 1.25])
    assert trace.line.shape == "hv"
    assert area(trace) == pytest.approx(3 / 4)
    assert "4 tokens, 25.00% outside the bins" in figure.layout.annotations[0].text


def test_area_is_the_share_of_tokens_between_uneven_edges() -> None:
    z, edges = normal(), torch.tensor([-0.4, -0.3, 0.0, 0.05, 0.5])
    figure = sp.plots.density({"normal": stats_of(z, edges=edges)}, neurons=range(6))
    for neuron, trace in enumerate(curves(figure)):
        inside = (z[:, neuron] >= -0.4) & (z[:, neuron] <= 0.5)
        assert area(trace) == pytest.approx(float(inside.double().mean()), rel=1e-5)


def test_a_panel_for_each_corpus_on_the_same_axes() -> None:
    corpora = {"pile": normal(seed=0), "pile with github": normal(300, seed=1) * 2, "code": normal(2000, seed=2) / 2}
    figure = sp.plots.density({label: stats_of(z) for label, z in corpora.items()}, neurons=range(6))
    assert [note.text.split("<br>")[0] for note in figure.layout.annotations] == list(corpora)
    assert ["500 tokens" in note.text for note in figure.layout.annotations] == [True, False, False]
    assert "300 tokens" in figure.layout.annotations[1].text
    assert "2,000 tokens" in figure.layout.annotations[2].text
    assert [len(curves(figure, panel)) for panel in (1, 2, 3)] == [6, 6, 6]
    x_axes, y_axes = list(figure.select_xaxes()), list(figure.select_yaxes())
    assert len(x_axes) == len(y_axes) == 3
    assert {(axis.type, axis.range) for axis in y_axes} == {("log", y_axes[0].range)}
    assert {axis.range for axis in x_axes} == {x_axes[0].range}
    assert [axis.matches for axis in y_axes] == [None, "y", "y"]
    assert [axis.matches for axis in x_axes] == [None, "x", "x"]
    assert {axis.title.text for axis in x_axes} == {"activation of the neuron (z)"}
    assert [axis.title.text for axis in y_axes] == [
        "density (share of tokens<br>per unit of activation, log)",
        None,
        None,
    ]
    assert [axis.showticklabels for axis in y_axes] == [True, False, False]
    floor, top = 10 ** np.array(y_axes[0].range)
    drawn = np.concatenate([trace.y for panel in (1, 2, 3) for trace in curves(figure, panel)])
    assert drawn.min() == pytest.approx(floor)
    assert floor < drawn[drawn > floor * 1.01].min() == pytest.approx(2 * floor)
    assert drawn.max() < top
    left, right = x_axes[0].range
    assert all(left < trace.x.min() and trace.x.max() < right for panel in (1, 2, 3) for trace in curves(figure, panel))


def test_every_curve_starts_and_ends_at_the_floor_of_all_panels() -> None:
    figure = sp.plots.density({"a": stats_of(normal()), "b": stats_of(normal(50, seed=1))}, neurons=range(6))
    floor = 10 ** figure.layout.yaxis.range[0]
    for trace in [*curves(figure, 1), *curves(figure, 2)]:
        assert [trace.y[0], trace.y[-1]] == pytest.approx([floor, floor])
        assert np.isfinite(np.log10(trace.y)).all()


def test_the_x_axis_holds_the_bins_in_use_only() -> None:
    z = torch.full((10, 2), 0.1)
    figure = sp.plots.density({"narrow": stats_of(z, edges=torch.linspace(-100, 100, 2001))}, neurons=[0, 1])
    left, right = figure.layout.xaxis.range
    assert -0.2 < left < 0.1 < right < 0.3


def test_a_neuron_keeps_its_colour_in_each_panel_and_the_bar_explains_it() -> None:
    figure = sp.plots.density({"a": stats_of(normal()), "b": stats_of(normal(seed=1))}, neurons=[5, 0, 3])
    colours = [[trace.line.color for trace in curves(figure, panel)] for panel in (1, 2)]
    assert colours[0] == colours[1]
    assert len(set(colours[0])) == 3
    assert all(trace.fillcolor.startswith("rgba(") for trace in curves(figure))
    (bar,) = dots(figure)
    assert bar.x == (None,)
    assert bar.marker.colorbar.title.text == "neuron"
    assert bar.marker.colorbar.ticktext == ("0", "3", "5")
    assert not figure.layout.showlegend


def test_hover_names_neuron_head_and_density() -> None:
    attention = sp.plots.density({"a": stats_of(normal())}, neurons=[2, 3])
    assert [trace.name for trace in curves(attention)] == ["neuron 2 (head 0)", "neuron 3 (head 1)"]
    trace = curves(attention)[1]
    assert trace.hovertemplate.startswith("<b>neuron 3 (head 1)</b>")
    assert "density %{customdata[1]" in trace.hovertemplate
    assert trace.hoveron == "points"
    mlp = stats_with_histograms(normal().relu(), site="mlp")
    assert curves(sp.plots.density({"a": mlp}, site="mlp", layer=0, neurons=[2]))[0].name == "neuron 2"


@pytest.mark.parametrize(
    ("neurons", "which"), [(range(6), "neurons 0 to 5"), ([4], "neuron 4"), ([1, 3, 5], "3 neurons of 1 to 5")]
)
def test_title_says_what_is_shown(neurons: Any, which: str) -> None:
    figure = sp.plots.density({"a": stats_of(normal(), model="opt-125m")}, neurons=neurons)
    assert figure.layout.title.text == f"Activation densities: opt-125m, layer 2, attention pre-out, {which}"
    subtitle = figure.layout.title.subtitle.text
    assert subtitle == f"{len(neurons)} of the 6 neurons, one curve a neuron; 10 bins from -1 to 1"


def test_a_neuron_that_never_fires_is_one_bin_at_zero() -> None:
    z = normal().relu()
    z[:, 2] = 0
    stats = stats_of(z, site="mlp", edges=torch.linspace(0, 1, 11))
    dead = curves(sp.plots.density({"a": stats}, site="mlp", neurons=range(6)))[2]
    assert dead.x == pytest.approx([0, 0, 0.1], abs=1e-6)
    assert dead.y[1] == pytest.approx(10)  # all tokens in a bin of 0.1
    assert area(dead) == pytest.approx(1)


def test_a_neuron_wholly_outside_the_edges_is_flat_on_the_floor() -> None:
    z = normal()
    z[:, 2] = 7
    trace = curves(sp.plots.density({"a": stats_of(z)}, neurons=range(6)))[2]
    assert set(trace.customdata[:, 1]) == {0}
    assert len(set(trace.y)) == 1


def test_a_whole_layer_is_drawn_as_means_of_neighbours_and_stays_light() -> None:
    z = normal(200, 3072)
    stats = stats_of(z, heads=3, edges=torch.linspace(-1.5, 1.5, 101))
    figure = sp.plots.density({"a": stats, "b": stats, "c": stats}, neurons=range(3072))
    first = curves(figure)
    assert len(first) == 200
    assert first[0].name == "mean of 16 neurons, 0 to 15 (head 0)"
    assert [area(trace) for trace in first] == pytest.approx([1] * 200, rel=1e-4)
    mean = stats.histogram_frame("attn", 2, range(16)).groupby("left")["density"].mean().to_numpy()
    assert first[0].customdata[1:-1, 1] == pytest.approx(np.trim_zeros(mean), rel=1e-5)
    assert "3072 of the 3072 neurons, 200 curves, each the mean" in figure.layout.title.subtitle.text
    assert len(str(figure.to_json())) < 5e6


def test_many_corpora_take_another_row() -> None:
    figure = sp.plots.density({f"corpus {i}": stats_of(normal(seed=i)) for i in range(4)}, neurons=range(6))
    assert len(curves(figure, 4)) == 6
    assert figure.layout.yaxis4.showticklabels
    assert figure.layout.yaxis4.domain[1] < figure.layout.yaxis.domain[0]
    assert figure.layout.height > sp.plots.density({"a": stats_of(normal())}, neurons=[0]).layout.height


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (dict, {}, "no corpus to draw"),
        (lambda: stats_of(normal()), {}, r"got ActivationStats: say density\(\{'code': stats\}\)"),
        (lambda: [stats_of(normal())], {}, "got list"),
        (lambda: {"a": 3}, {}, "'a' is a int: expected ActivationStats"),
        (lambda: {"a": stats_of(normal())}, {"neurons": []}, "neurons is empty"),
        (lambda: {"a": stats_of(normal())}, {"neurons": [2, 6]}, r"no histogram of neurons \[6\]"),
        (lambda: {"a": stats_of(normal())}, {"layer": 3, "neurons": [0]}, "no layer 3 at site 'attn'"),
        (lambda: {"a": stats_of(normal())}, {"site": "mlp", "neurons": [0]}, "no neurons at site 'mlp'"),
        (lambda: {"a": stats_of(normal() + 9)}, {"neurons": [0]}, "neurons lie outside the edges -1 to 1"),
        (
            lambda: {"a": stats_of(normal()), "b": stats_of(normal(), edges=EDGES * 2)},
            {"neurons": [0]},
            "histograms of 'a' and 'b' have different edges",
        ),
        (
            lambda: {"a": stats_of(normal(), model="one"), "b": stats_of(normal(), model="other")},
            {"neurons": [0]},
            "different models",
        ),
    ],
)
def test_density_refuses(make: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(sp.SpLensError, match=message):
        sp.plots.density(make(), **options)


# Figure 2: tradeoff


def test_tradeoff_draws_percentage_points() -> None:
    run = run_of([0.5, 0.4, 0.1], [0.6, 0.59, 0.5])
    figure = sp.plots.tradeoff(run)
    (dot,) = dots(figure)
    assert dot.x == pytest.approx([0, 1, 10])
    assert dot.y == pytest.approx([0, 10, 40])
    assert figure.layout.xaxis.title.text == "drop in retain top-1 accuracy (percentage points)"
    assert figure.layout.yaxis.title.text == "drop in forget top-1 accuracy (percentage points)"
    # Step, share pruned, and both accuracies.
    assert dot.customdata == pytest.approx(np.array([[0, 0, 0.5, 0.6], [1, 0.05, 0.4, 0.59], [2, 0.1, 0.1, 0.5]]))
    for part in (
        "<b>abs</b>",
        "step %{customdata[0]}",
        "%{customdata[1]:.1%} pruned",
        "drop %{y:.1f}",
        "drop %{x:.1f}",
    ):
        assert part in dot.hovertemplate


def test_the_curve_is_a_moving_mean_that_keeps_both_ends() -> None:
    forget, retain = [0.9, 0.7, 0.8, 0.3, 0.4, 0.1], [0.9, 0.9, 0.8, 0.85, 0.7, 0.6]
    (line,) = lines(sp.plots.tradeoff(run_of(forget, retain)))
    drops = 100 * (0.9 - np.array(forget))
    expected = [drops[0], drops[:3].mean(), drops[:5].mean(), drops[1:].mean(), drops[3:].mean(), drops[5]]
    assert line.y == pytest.approx(expected)
    assert [line.x[0], line.x[-1]] == pytest.approx([0, 30])
    assert line.line.shape == "spline"
    assert line.hoverinfo == "skip"


@pytest.mark.parametrize(
    ("forget", "retain"), [([0.5, 0.1], [0.5, 0.49]), ([0.5, 0.49], [0.5, 0.1]), ([0.5, 0.4], [0.5, 0.6])]
)
def test_the_diagonal_lies_within_axes_that_hold_everything(forget: list[float], retain: list[float]) -> None:
    figure = sp.plots.tradeoff(run_of(forget, retain))
    (diagonal,) = figure.layout.shapes
    assert (diagonal.x0, diagonal.x1) == (diagonal.y0, diagonal.y1)
    assert diagonal.label.text == "no selectivity"
    spans = []
    for axis, values, ends in (
        (figure.layout.xaxis, dots(figure)[0].x, (diagonal.x0, diagonal.x1)),
        (figure.layout.yaxis, dots(figure)[0].y, (diagonal.y0, diagonal.y1)),
    ):
        low, high = axis.range
        assert low < min(values) <= max(values) < high
        assert low <= ends[0] <= 0 < ends[1] < high
        spans.append(high - low)
    assert 1 / 4.1 < spans[0] / spans[1] < 4.1  # so the diagonal is neither flat nor upright


def test_one_line_and_colour_a_run_linked_to_its_dots() -> None:
    figure = sp.plots.tradeoff({"ours": run_of(), "random": run_of([0.5, 0.3], [0.5, 0.3])})
    assert [trace.name for trace in dots(figure)] == ["ours", "random"]
    assert [trace.showlegend for trace in traces(figure)] == [False, True, False, True]
    for line, dot in zip(lines(figure), dots(figure), strict=True):
        assert line.legendgroup == dot.legendgroup == dot.name
        assert line.line.color == dot.marker.color
    assert len({trace.marker.color for trace in dots(figure)}) == 2


@pytest.mark.parametrize("steps", [0, 1])
def test_where_nothing_was_lost_there_still_is_a_figure(steps: int) -> None:
    figure = sp.plots.tradeoff(run_of([0.5] * (steps + 1), [0.5] * (steps + 1)))
    assert list(dots(figure)[0].x) == list(dots(figure)[0].y) == [0] * (steps + 1)
    for axis in (figure.layout.xaxis, figure.layout.yaxis):
        assert axis.range[0] < 0
        assert axis.range[1] > 1
    assert figure.layout.shapes[0].x1 > 0.9


def test_more_runs_than_colours_differ_in_symbol_and_very_many_have_no_legend() -> None:
    some = sp.plots.tradeoff([run_of(metric="random", seed=seed) for seed in range(21)])
    assert len({(trace.marker.color, trace.marker.symbol) for trace in dots(some)}) == 21
    assert all(trace.showlegend for trace in dots(some))
    many = sp.plots.tradeoff([run_of(metric="random", seed=seed) for seed in range(200)])
    assert len(traces(many)) == 400
    assert not any(trace.showlegend for trace in traces(many))
    assert dots(many)[199].name == "random, seed 199"
    assert many.layout.title.subtitle.text.startswith("200 runs, named on hover; ")
    assert many.layout.height <= some.layout.height


@pytest.mark.parametrize(
    ("settings", "labels"),
    [
        ([{}], ["abs"]),
        ([{"metric": "abs"}, {"metric": "std"}], ["abs", "std"]),
        ([{"site": "mlp"}, {"site": "attn", "metric": "rms"}], ["abs, mlp", "rms, attn"]),
        (
            [{}, {"metric": "random", "seed": 1}, {"metric": "random", "seed": 2}],
            ["abs", "random, seed 1", "random, seed 2"],
        ),
        ([{"unit": "neuron"}, {"unit": "head"}], ["abs, by neuron", "abs, by head"]),
        ([{"fraction": 0.02}, {"fraction": 0.05}], ["abs, 2 % a step", "abs, 5 % a step"]),
        ([{"recollect": True}, {"recollect": False}], ["abs, collected each step", "abs, collected once"]),
        ([{"eps": {"mlp": 0.1, "attn": 0.2}}, {"eps": 0.3}], ["abs, eps 0.1 (mlp), 0.2 (attn)", "abs, eps 0.3"]),
        ([{}, {"protected": {"neurons": 17}}], ["abs", "abs, 17 neurons protected"]),
        ([{"protected": {"neurons": 0}}], ["abs"]),
        ([{}, {}], ["abs (1)", "abs (2)"]),
    ],
)
def test_runs_are_called_after_what_they_differ_in(settings: list[dict[str, Any]], labels: list[str]) -> None:
    runs = [run_of(**one) for one in settings]
    assert [trace.name for trace in dots(sp.plots.tradeoff(runs))] == labels
    assert [trace.name for trace in dots(sp.plots.tradeoff(iter(runs)))] == labels


def test_runs_on_other_corpora_are_called_after_those_and_share_the_rest() -> None:
    corpora = [{"forget": {"source": f}, "retain": {"source": r}} for f, r in (("code", "prose"), ("prose", "code"))]
    runs = [run_of(corpora=one, unit="neuron") for one in corpora]
    figure = sp.plots.tradeoff(runs)
    assert [trace.name for trace in dots(figure)] == [
        "abs, forget code, retain prose",
        "abs, forget prose, retain code",
    ]
    subtitle = figure.layout.title.subtitle.text
    assert subtitle == "dots are steps, curves their moving mean; tiny, abs, mlp, by neuron, 5 % a step"


def test_text_that_stands_in_for_a_corpus_is_told() -> None:
    read: dict[str, dict[str, Any]] = {"forget": {"source": "toxic", "offline": True}, "retain": {"source": "civil"}}
    run = run_of(corpora=read)
    score = sp.score(*(stats_of(normal(), corpora=[about]) for about in read.values()))
    for figure in (sp.plots.tradeoff(run), sp.plots.score_map(score, site="attn")):
        assert "forget toxic (offline), retain civil" in figure.layout.title.subtitle.text.replace("<br>", " ")


def test_a_run_without_known_settings_is_drawn() -> None:
    run = run_of()
    bare = sp.PruneRun(run.layout, run.pruned_at, run.records, {})
    assert dots(sp.plots.tradeoff(bare))[0].name == "run"


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([], "no runs to draw"),
        ({}, "no runs to draw"),
        (3, "is a int: expected a PruneRun"),
        ({"mine": "a run"}, "run 'mine' is a str: expected a PruneRun"),
        ([run_of([], [])], "run 'abs' has no records"),
    ],
)
def test_tradeoff_refuses(runs: Any, message: str) -> None:
    with pytest.raises(sp.SpLensError, match=message):
        sp.plots.tradeoff(runs)


# The look, and the walls of the house


def figures() -> list[go.Figure]:
    return [
        sp.plots.density({"a": stats_of(normal())}, neurons=range(6)),
        sp.plots.tradeoff(run_of()),
    ]


def test_figures_look_the_same_whatever_the_users_default_and_leave_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = [figure.to_json() for figure in figures()]
    monkeypatch.setattr(pio.templates, "default", "plotly_dark")
    known = set(pio.templates)
    assert [figure.to_json() for figure in figures()] == before
    assert pio.templates.default == "plotly_dark"
    assert set(pio.templates) == known


def test_a_figure_owns_its_template() -> None:
    changed = figures()[0]
    changed.layout.template.layout.width = 400
    assert [figure.layout.template.layout.width for figure in figures()] == [900, 900]


def test_plots_import_no_torch_and_no_model() -> None:
    package = str(Path(sp.__file__).parent)
    code = f"""
import sys, types
sys.modules["sp_lens"] = types.ModuleType("sp_lens")  # the package without its __init__, which imports all of it
sys.modules["sp_lens"].__path__ = [{package!r}]
import sp_lens.plots
print(sorted({{"torch", "transformers", "transformer_lens"}} & set(sys.modules)))
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
