"""Figure 5 (density): curves against numpy's histograms, panels, highlighted neurons, and rejected arguments."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from factories import random_rows
from plot_factories import (
    EDGES,
    bin_densities,
    drawn_densities,
    normal,
    stats_with_folds,
    stats_with_histograms,
    traces,
    traces_with_mode,
)

import sp_lens as sp

pytestmark = pytest.mark.libraries

GREY = "rgba(128, 128, 128, 0.6)"


def stats_of(z: torch.Tensor, **options: Any) -> sp.ActivationStats:
    """Statistics with histograms of layer 2, the layer of Figure 5."""
    return stats_with_histograms(z, first_layer=2, **options)


def curves(figure: go.Figure, panel: int = 1) -> list[Any]:
    """The density curves of a panel, without the trace of the colour bar."""
    axis = "x" if panel == 1 else f"x{panel}"
    return [trace for trace in traces(figure) if trace.fill == "toself" and trace.xaxis in (axis, None)]


def area(trace: Any) -> float:
    """Area under the steps of a curve, without the empty bins that are drawn at the lower end of the axis."""
    widths, heights = np.diff(trace.x)[1:], trace.customdata[1:-1, 1]
    return float((widths * heights).sum())


@pytest.mark.model
def test_curves_are_the_histograms_of_the_activations_of_a_model(opt: Any) -> None:
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


def test_a_curve_follows_a_known_histogram_step_by_step() -> None:
    z = torch.tensor([[-0.5], [-0.5], [0.5], [3.0]])  # two tokens in [-0.6, -0.4), one in [0.4, 0.6), one outside
    figure: Any = sp.plots.density({"four": stats_of(z, heads=1)}, neurons=[0])
    (trace,) = curves(figure)
    low = 1.25 / 2  # half of the lower of the two densities
    assert trace.x == pytest.approx([-0.6, -0.6, -0.4, -0.2, 0, 0.2, 0.4, 0.6], abs=1e-6)
    assert trace.y == pytest.approx([low, 2.5, low, low, low, low, 1.25, low])
    assert trace.customdata[:, 1] == pytest.approx([2.5, 2.5, 0, 0, 0, 0, 1.25, 1.25])
    assert trace.line.shape == "hv"
    assert area(trace) == pytest.approx(3 / 4)
    assert "4 tokens, 25.00% outside the bins" in figure.layout.annotations[0].text


def test_the_area_is_the_share_of_tokens_between_uneven_edges() -> None:
    z, edges = normal(), torch.tensor([-0.4, -0.3, 0.0, 0.05, 0.5])
    figure = sp.plots.density({"normal": stats_of(z, edges=edges)}, neurons=range(6))
    for neuron, trace in enumerate(curves(figure)):
        inside = (z[:, neuron] >= -0.4) & (z[:, neuron] <= 0.5)
        assert area(trace) == pytest.approx(float(inside.double().mean()), rel=1e-5)


def test_each_corpus_has_a_panel_and_all_panels_have_the_same_axes() -> None:
    corpora = {"pile": normal(seed=0), "pile with github": normal(300, seed=1) * 2, "code": normal(2000, seed=2) / 2}
    figure: Any = sp.plots.density({label: stats_of(z) for label, z in corpora.items()}, neurons=range(6))
    notes = [note.text for note in figure.layout.annotations]
    assert [note.split("<br>")[0] for note in notes] == list(corpora)
    assert all(tokens in note for tokens, note in zip(("500 tokens", "300 tokens", "2,000 tokens"), notes, strict=True))
    assert [len(curves(figure, panel)) for panel in (1, 2, 3)] == [6, 6, 6]
    x_axes, y_axes = list(figure.select_xaxes()), list(figure.select_yaxes())
    assert len(x_axes) == len(y_axes) == 3
    assert {(axis.type, axis.range) for axis in y_axes} == {("log", y_axes[0].range)}
    assert {axis.range for axis in x_axes} == {x_axes[0].range}
    assert [axis.matches for axis in y_axes] == [None, "y", "y"]
    assert [axis.matches for axis in x_axes] == [None, "x", "x"]
    assert {axis.title.text for axis in x_axes} == {"activation of the neuron (z)"}
    title = "density (share of tokens<br>per unit of activation, log scale)"
    assert [axis.title.text for axis in y_axes] == [title, None, None]
    assert [axis.showticklabels for axis in y_axes] == [True, False, False]
    floor, top = 10 ** np.array(y_axes[0].range)
    drawn = np.concatenate([trace.y for panel in (1, 2, 3) for trace in curves(figure, panel)])
    assert drawn.min() == pytest.approx(floor)
    assert floor < drawn[drawn > floor * 1.01].min() == pytest.approx(2 * floor)
    assert drawn.max() < top
    left, right = x_axes[0].range
    assert all(left < trace.x.min() and trace.x.max() < right for panel in (1, 2, 3) for trace in curves(figure, panel))


def test_every_curve_starts_and_ends_at_the_lower_end_of_the_axis() -> None:
    figure: Any = sp.plots.density({"a": stats_of(normal()), "b": stats_of(normal(50, seed=1))}, neurons=range(6))
    floor = 10 ** figure.layout.yaxis.range[0]
    for trace in [*curves(figure, 1), *curves(figure, 2)]:
        assert [trace.y[0], trace.y[-1]] == pytest.approx([floor, floor])
        assert np.isfinite(np.log10(trace.y)).all()


def test_the_x_axis_covers_only_the_bins_with_tokens() -> None:
    z = torch.full((10, 2), 0.1)
    figure: Any = sp.plots.density({"narrow": stats_of(z, edges=torch.linspace(-100, 100, 2001))}, neurons=[0, 1])
    left, right = figure.layout.xaxis.range
    assert -0.2 < left < 0.1 < right < 0.3


def test_a_neuron_has_the_same_colour_in_each_panel_and_on_the_colour_bar() -> None:
    figure: Any = sp.plots.density({"a": stats_of(normal()), "b": stats_of(normal(seed=1))}, neurons=[5, 0, 3])
    colours = [[trace.line.color for trace in curves(figure, panel)] for panel in (1, 2)]
    assert colours[0] == colours[1]
    assert len(set(colours[0])) == 3
    assert all(trace.fillcolor.startswith("rgba(") for trace in curves(figure))
    (bar,) = traces_with_mode(figure, "markers")
    assert bar.x == (None,)
    assert bar.marker.colorbar.title.text == "neuron"
    assert bar.marker.colorbar.ticktext == ("0", "3", "5")
    assert not figure.layout.showlegend


def test_the_hover_names_neuron_head_and_density() -> None:
    attention = sp.plots.density({"a": stats_of(normal())}, neurons=[2, 3])
    assert [trace.name for trace in curves(attention)] == ["neuron 2 (head 0)", "neuron 3 (head 1)"]
    trace = curves(attention)[1]
    assert trace.hovertemplate.startswith("<b>neuron 3 (head 1)</b>")
    assert "density %{customdata[1]" in trace.hovertemplate
    assert trace.hoveron == "points"
    mlp = stats_of(normal().relu(), site="mlp")
    assert curves(sp.plots.density({"a": mlp}, site="mlp", neurons=[2]))[0].name == "neuron 2"


@pytest.mark.parametrize(
    ("neurons", "description"),
    [(range(6), "neurons 0 to 5"), ([4], "neuron 4"), ([1, 3, 5], "3 neurons from 1 to 5")],
)
def test_the_title_describes_the_neurons(neurons: Any, description: str) -> None:
    figure: Any = sp.plots.density({"a": stats_of(normal(), model="opt-125m")}, neurons=neurons)
    assert figure.layout.title.text == f"Activation densities: opt-125m, layer 2, attention pre-out, {description}"
    subtitle = figure.layout.title.subtitle.text
    assert subtitle == f"{len(neurons)} of the 6 neurons, one curve per neuron; 10 bins from -1 to 1"


def test_a_neuron_that_never_fires_has_all_tokens_in_the_bin_at_zero() -> None:
    z = normal().relu()
    z[:, 2] = 0
    stats = stats_of(z, site="mlp", edges=torch.linspace(0, 1, 11))
    dead = curves(sp.plots.density({"a": stats}, site="mlp", neurons=range(6)))[2]
    assert dead.x == pytest.approx([0, 0, 0.1], abs=1e-6)
    assert dead.y[1] == pytest.approx(10)  # all tokens in a bin of width 0.1
    assert area(dead) == pytest.approx(1)


def test_a_neuron_entirely_outside_the_edges_is_flat() -> None:
    z = normal()
    z[:, 2] = 7
    trace = curves(sp.plots.density({"a": stats_of(z)}, neurons=range(6)))[2]
    assert set(trace.customdata[:, 1]) == {0}
    assert len(set(trace.y)) == 1


def test_a_whole_layer_is_drawn_as_means_of_consecutive_neurons() -> None:
    stats = stats_of(normal(200, 3072), heads=3, edges=torch.linspace(-1.5, 1.5, 101))
    figure: Any = sp.plots.density({"a": stats, "b": stats, "c": stats}, neurons=range(3072))
    first = curves(figure)
    assert len(first) == 200
    assert first[0].name == "mean of 16 neurons, 0 to 15 (head 0)"
    assert [area(trace) for trace in first] == pytest.approx([1] * 200, rel=1e-4)
    frame: Any = stats.histogram_frame("attn", 2, range(16))
    mean = frame.groupby("left")["density"].mean().to_numpy()
    assert first[0].customdata[1:-1, 1] == pytest.approx(np.trim_zeros(mean), rel=1e-5)
    assert "3072 of the 3072 neurons, 200 curves, each the mean" in figure.layout.title.subtitle.text
    assert len(str(figure.to_json())) < 5e6


def test_four_corpora_need_a_second_row() -> None:
    figure: Any = sp.plots.density({f"corpus {i}": stats_of(normal(seed=i)) for i in range(4)}, neurons=range(6))
    one_row: Any = sp.plots.density({"a": stats_of(normal())}, neurons=[0])
    assert len(curves(figure, 4)) == 6
    assert figure.layout.yaxis4.showticklabels
    assert figure.layout.yaxis4.domain[1] < figure.layout.yaxis.domain[0]
    assert figure.layout.height > one_row.layout.height


def test_highlighted_neurons_are_coloured_named_and_drawn_last() -> None:
    z = {"code": normal(), "prose": normal(seed=1)}
    stats = {label: stats_of(activations) for label, activations in z.items()}
    figure: Any = sp.plots.density(stats, neurons=range(5), highlight=[5, 1])
    first, second = traces(figure)[:6], traces(figure)[6:]
    for panel, label in ((first, "code"), (second, "prose")):
        assert [trace.name for trace in panel] == [f"neuron {n} (head {n // 3})" for n in (0, 2, 3, 4, 1, 5)]
        for trace, neuron in zip(panel, (0, 2, 3, 4, 1, 5), strict=True):
            assert drawn_densities(trace) == pytest.approx(bin_densities(z[label][:, neuron]), rel=1e-5)
        assert [trace.line.color for trace in panel[:4]] == [GREY] * 4
        assert [trace.line.color for trace in panel[4:]] == ["rgba(0, 114, 178, 1)", "rgba(213, 94, 0, 1)"]
    assert figure.layout.showlegend
    assert [trace.name for trace in traces(figure) if trace.showlegend] == ["neuron 1 (head 0)", "neuron 5 (head 1)"]
    assert first[4].legendgroup == second[4].legendgroup


def test_a_highlighted_neuron_is_never_part_of_a_mean() -> None:
    z = normal(50, 1000)
    figure: Any = sp.plots.density({"a": stats_of(z)}, neurons=range(1000), highlight=[7])
    assert len(traces(figure)) == 201
    assert traces(figure)[-1].name == "neuron 7 (head 0)"
    assert drawn_densities(traces(figure)[-1]) == pytest.approx(bin_densities(z[:, 7]), rel=1e-5)
    assert "200 curves, each the mean of consecutive neurons" in figure.layout.title.subtitle.text
    # The 999 other neurons are divided into 200 curves, the first of which is the mean of neurons 0 to 4.
    mean = np.mean([bin_densities(z[:, neuron]) for neuron in range(5)], axis=0)
    assert drawn_densities(traces(figure)[0]) == pytest.approx(mean, rel=1e-5)


def test_statistics_with_folds_show_confidence_intervals() -> None:
    stats = stats_with_folds(1, neurons=6, first_layer=2)
    figure: Any = sp.plots.density({"code": stats}, neurons=range(6))
    intervals = sp.uncertainty(stats).frame().set_index("neuron")
    value, low, high = intervals.loc[0, ["value", "low", "high"]]
    assert f"mean |z| {value:.3g} [{low:.3g}, {high:.3g}]" in figure.data[0].hovertemplate
    half_width = np.sqrt((intervals["high"] / intervals["low"]).median()) - 1
    assert f"mean |z| ±{half_width:.0%}" in figure.layout.annotations[0].text
    assert "95 % confidence interval over documents" in figure.layout.title.subtitle.text.replace("<br>", " ")
    without_folds: Any = sp.plots.density({"code": stats_of(normal())}, neurons=range(6))
    assert "±" not in without_folds.layout.annotations[0].text
    assert "mean |z|" not in without_folds.data[0].hovertemplate


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (dict, {}, "there is no corpus to draw"),
        (lambda: stats_of(normal()), {}, r"got ActivationStats: write density\(\{'code': stats\}\)"),
        (lambda: [stats_of(normal())], {}, "got list"),
        (lambda: {"a": 3}, {}, "'a' has type int: expected ActivationStats"),
        (lambda: {"a": stats_of(normal())}, {"neurons": []}, "neurons is empty"),
        (lambda: {"a": stats_of(normal())}, {"neurons": [2, 6]}, r"no histogram of neurons \[6\]"),
        (lambda: {"a": stats_of(normal())}, {"layer": 3, "neurons": [0]}, "no layer 3 at site 'attn'"),
        (lambda: {"a": stats_of(normal())}, {"site": "mlp", "neurons": [0]}, "no neurons at site 'mlp'"),
        (lambda: {"a": stats_of(normal() + 9)}, {"neurons": [0]}, "lie outside the bin edges -1 to 1"),
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
        (lambda: {"a": stats_of(normal())}, {"neurons": range(6), "highlight": [9]}, r"no histogram of neurons \[9\]"),
        (
            lambda: {"a": stats_of(normal(neurons=10))},
            {"neurons": range(10), "highlight": range(8)},
            "8 neurons to highlight: pass at most 7",
        ),
        (
            lambda: dict.fromkeys(map(str, range(200)), stats_of(normal())),
            {"neurons": [0]},
            "200 corpora: pass at most 12",
        ),
    ],
)
def test_invalid_arguments_are_rejected(make: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(sp.SpLensError, match=message):
        sp.plots.density(make(), **options)
