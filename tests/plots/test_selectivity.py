"""Figure 4 (selectivity): bar heights, error bars over seeds, panels, and rejected arguments."""

import math
from typing import Any

import numpy as np
import pytest
from plot_factories import run_of, traces

import sp_lens as sp

pytestmark = pytest.mark.libraries


def draw(runs: Any) -> Any:
    return sp.plots.selectivity(runs)


def subtitle_of(figure: Any) -> str:
    return figure.layout.title.subtitle.text.replace("<br>", " ")


def test_a_bar_is_the_largest_difference_of_the_drops_in_percentage_points() -> None:
    figure = draw(
        [run_of([0.5, 0.3, 0.1], [0.5, 0.45, 0.2]), run_of([0.5, 0.4], [0.5, 0.5], site="attn", metric="freq")]
    )
    mlp, attn = traces(figure)
    assert [list(mlp.x), list(attn.x)] == [["abs"], ["freq"]]
    assert [*mlp.y, *attn.y] == pytest.approx([15, 10])  # 20 - 5 is more than 40 - 30
    assert [mlp.name, attn.name] == ["MLP neurons", "attention pre-out neurons"]
    assert mlp.marker.color != attn.marker.color
    assert figure.layout.xaxis.categoryarray == ("freq", "abs")
    assert figure.layout.yaxis.title.text == "selectivity (percentage points)"
    assert subtitle_of(figure) == (
        "difference between the drops in forget and retain top-1 accuracy at the best of 1 to 2 steps; "
        "tiny, 5 % per step"
    )


def test_runs_that_differ_only_in_their_seed_are_one_bar_with_their_standard_deviation() -> None:
    drops = [0.1, 0.2, 0.4]
    seeds = [run_of([0.5, 0.5 - drop], [0.5, 0.5], metric="random", seed=seed) for seed, drop in enumerate(drops)]
    figure = draw([*seeds, run_of()])
    (bar,) = traces(figure)
    assert list(bar.x) == ["random", "abs"]
    assert bar.y == pytest.approx([np.mean(drops) * 100, 30])
    assert bar.error_y.array == pytest.approx([np.std(drops, ddof=1) * 100, math.nan], nan_ok=True)
    assert bar.customdata == pytest.approx(np.array([[3, 10, 40], [1, 30, 30]]))
    assert "%{y:.1f} percentage points, mean of %{customdata[0]} runs" in bar.hovertemplate
    assert "error bars: standard deviation over seeds" in subtitle_of(figure)
    assert "error bars" not in subtitle_of(draw(run_of()))


def test_each_model_has_a_panel_on_the_same_scale() -> None:
    figure = draw([run_of(model=model, site=site) for model in ("A", "B", "C") for site in ("attn", "mlp")])
    assert [note.text for note in figure.layout.annotations] == ["A", "B", "C"]
    assert len(traces(figure)) == 6
    assert [trace.name for trace in traces(figure) if trace.showlegend] == ["MLP neurons", "attention pre-out neurons"]
    assert [axis.matches for axis in figure.select_yaxes()] == [None, "y", "y", "y"]  # two rows of two


def test_panels_are_named_after_the_recorded_settings() -> None:
    runs = [run_of(site="attn", unit="head", aggregate="mean"), run_of(site="attn", unit="neuron"), run_of(model=None)]
    names = ["tiny, by head, mean over the neurons of a head", "tiny, by neuron", "not recorded"]
    assert [note.text for note in draw(runs).layout.annotations] == names


def test_neurons_protected_at_one_site_only_do_not_need_a_panel() -> None:
    """Attention sinks are MLP neurons, so runs at the attention site protect none."""
    protected = [run_of(site="mlp", metric=metric, protected={"neurons": 22}) for metric in ("abs", "rms")]
    runs = [run_of(site="attn"), *protected]
    figure = draw(runs)
    assert not [note.text for note in figure.layout.annotations if note.text]
    assert [(trace.name, trace.showlegend) for trace in traces(figure)] == [
        ("MLP neurons", True),
        ("attention pre-out neurons", True),
    ]
    assert subtitle_of(figure).endswith(", 22 neurons protected (mlp)")
    mixed = draw([*runs, run_of(site="mlp", metric="rms")])
    assert [note.text for note in mixed.layout.annotations] == ["not recorded", "22 neurons protected"]
    assert [trace.name for trace in traces(mixed) if trace.showlegend] == ["MLP neurons", "attention pre-out neurons"]


def test_two_hundred_seeds_are_one_bar_and_two_hundred_models_are_rejected() -> None:
    (bar,) = traces(draw([run_of(metric="random", seed=seed) for seed in range(200)]))
    assert bar.customdata[0][0] == 200
    with pytest.raises(sp.SpLensError, match=r"need 200 panels \('m0', 'm1', ...\), but at most 12 can be drawn"):
        draw([run_of(model=f"m{i}") for i in range(200)])


def test_a_run_of_one_step_has_a_bar() -> None:
    (bar,) = traces(draw(run_of([0.5, 0.3], [0.5, 0.4])))
    assert bar.y == pytest.approx([10])


def test_the_subtitle_says_that_no_run_is_selective() -> None:
    figure = draw([run_of([0.5, 0.4], [0.5, 0.3]), run_of([0.5, 0.4], [0.5, 0.3], site="attn")])
    assert [list(bar.y) for bar in figure.data] == [[0], [0]]
    assert figure.layout.yaxis.rangemode == "tozero"
    assert "; no run has a larger drop on forget than on retain data; " in subtitle_of(figure)
    assert "no run has" not in subtitle_of(draw(run_of()))


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([], "there are no runs to draw"),
        ("run", "has type str: expected a PruneRun"),
        (run_of([0.5], [0.5]), "run 'abs' only has step 0"),
        (run_of(site="head"), "run 'abs' has metric 'abs' and site 'head' in its settings"),
        (run_of(metric=None), "run 'run' has metric None and site 'mlp'"),
    ],
)
def test_invalid_runs_are_rejected(runs: Any, message: str) -> None:
    with pytest.raises(sp.SpLensError, match=message):
        draw(runs)
