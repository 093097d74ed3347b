"""Figure 2 (trade-off): drops in percentage points, smoothed curves, the diagonal, and rejected arguments."""

from typing import Any

import numpy as np
import pytest
from plot_factories import run_of, traces, traces_with_mode

import sp_lens as sp

pytestmark = pytest.mark.libraries


def test_points_are_drops_in_percentage_points() -> None:
    figure: Any = sp.plots.tradeoff(run_of([0.5, 0.4, 0.1], [0.6, 0.59, 0.5]))
    (points,) = traces_with_mode(figure, "markers")
    assert points.x == pytest.approx([0, 1, 10])
    assert points.y == pytest.approx([0, 10, 40])
    assert figure.layout.xaxis.title.text == "drop in retain top-1 accuracy (percentage points)"
    assert figure.layout.yaxis.title.text == "drop in forget top-1 accuracy (percentage points)"
    # Step, share pruned, and both accuracies.
    assert points.customdata == pytest.approx(np.array([[0, 0, 0.5, 0.6], [1, 0.05, 0.4, 0.59], [2, 0.1, 0.1, 0.5]]))
    for part in (
        "<b>abs</b>",
        "step %{customdata[0]}",
        "%{customdata[1]:.1%} pruned",
        "forget: top-1 accuracy %{customdata[2]:.1%}, drop of %{y:.1f}",
        "retain: top-1 accuracy %{customdata[3]:.1%}, drop of %{x:.1f}",
    ):
        assert part in points.hovertemplate


def test_the_curve_is_a_moving_mean_that_keeps_both_ends() -> None:
    forget, retain = [0.9, 0.7, 0.8, 0.3, 0.4, 0.1], [0.9, 0.9, 0.8, 0.85, 0.7, 0.6]
    (curve,) = traces_with_mode(sp.plots.tradeoff(run_of(forget, retain)), "lines")
    drops = 100 * (0.9 - np.array(forget))
    expected = [drops[0], drops[:3].mean(), drops[:5].mean(), drops[1:].mean(), drops[3:].mean(), drops[5]]
    assert curve.y == pytest.approx(expected)
    assert [curve.x[0], curve.x[-1]] == pytest.approx([0, 30])
    assert curve.line.shape == "spline"
    assert curve.hoverinfo == "skip"


@pytest.mark.parametrize(
    ("forget", "retain"), [([0.5, 0.1], [0.5, 0.49]), ([0.5, 0.49], [0.5, 0.1]), ([0.5, 0.4], [0.5, 0.6])]
)
def test_the_axes_include_all_points_and_the_diagonal(forget: list[float], retain: list[float]) -> None:
    figure: Any = sp.plots.tradeoff(run_of(forget, retain))
    (points,), (diagonal,) = traces_with_mode(figure, "markers"), figure.layout.shapes
    assert (diagonal.x0, diagonal.x1) == (diagonal.y0, diagonal.y1)
    assert diagonal.label.text == "no selectivity"
    spans = []
    for axis, values, ends in (
        (figure.layout.xaxis, points.x, (diagonal.x0, diagonal.x1)),
        (figure.layout.yaxis, points.y, (diagonal.y0, diagonal.y1)),
    ):
        low, high = axis.range
        assert low < min(values) <= max(values) < high
        assert low <= ends[0] <= 0 < ends[1] < high
        spans.append(high - low)
    assert 1 / 4.1 < spans[0] / spans[1] < 4.1  # so the diagonal is neither flat nor upright


def test_each_run_has_one_colour_and_one_legend_entry() -> None:
    figure = sp.plots.tradeoff({"ours": run_of(), "random": run_of([0.5, 0.3], [0.5, 0.3])})
    points = traces_with_mode(figure, "markers")
    assert [trace.name for trace in points] == ["ours", "random"]
    assert [trace.showlegend for trace in traces(figure)] == [False, True, False, True]
    for curve, point in zip(traces_with_mode(figure, "lines"), points, strict=True):
        assert curve.legendgroup == point.legendgroup == point.name
        assert curve.line.color == point.marker.color
    assert len({trace.marker.color for trace in points}) == 2


@pytest.mark.parametrize("steps", [0, 1])
def test_a_run_without_any_drop_has_axes_of_at_least_one_point(steps: int) -> None:
    figure: Any = sp.plots.tradeoff(run_of([0.5] * (steps + 1), [0.5] * (steps + 1)))
    (points,) = traces_with_mode(figure, "markers")
    assert list(points.x) == list(points.y) == [0] * (steps + 1)
    for axis in (figure.layout.xaxis, figure.layout.yaxis):
        assert axis.range[0] < 0
        assert axis.range[1] > 1
    assert figure.layout.shapes[0].x1 > 0.9


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([], "there are no runs to draw"),
        ({}, "there are no runs to draw"),
        (3, "has type int: expected a PruneRun"),
        ({"mine": "a run"}, "run 'mine' has type str: expected a PruneRun"),
        ([run_of([], [])], "run 'abs' has no records"),
    ],
)
def test_invalid_runs_are_rejected(runs: Any, message: str) -> None:
    with pytest.raises(sp.SpLensError, match=message):
        sp.plots.tradeoff(runs)
