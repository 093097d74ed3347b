"""Figure 3 (perplexity): logarithmic axes, the reference line, omitted steps, and rejected arguments."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from plot_factories import run_of, traces_with_mode

import sp_lens as sp

pytestmark = pytest.mark.libraries


def test_forget_is_drawn_against_retain_on_logarithmic_axes() -> None:
    figure: Any = sp.plots.perplexity(run_of(perplexity=([10, 40, 1000], [20, 22, 30])))
    (points,), (curve,) = traces_with_mode(figure, "markers"), traces_with_mode(figure, "lines")
    assert list(points.x) == [20, 22, 30]
    assert list(points.y) == [10, 40, 1000]
    assert [figure.layout.xaxis.type, figure.layout.yaxis.type] == ["log", "log"]
    assert figure.layout.xaxis.title.text == "perplexity on retain data (log scale)"
    assert figure.layout.yaxis.title.text == "perplexity on forget data (log scale)"
    # The curve is a geometric mean and keeps both ends.
    assert curve.y == pytest.approx([10, (10 * 40 * 1000) ** (1 / 3), 1000])
    assert points.customdata == pytest.approx(np.array([[0, 0, 0.5, 0.5], [1, 0.05, 0.3, 0.4], [2, 0.1, 0.1, 0.4]]))
    assert "<b>abs</b><br>step %{customdata[0]}" in points.hovertemplate
    for axis, values in ((figure.layout.xaxis, points.x), (figure.layout.yaxis, points.y)):
        low, high = 10 ** np.array(axis.range)
        assert low < min(values) <= max(values) < high
    assert figure.layout.yaxis.ticktext == ("10", "20", "50", "100", "200", "500", "1,000")


def test_the_reference_line_is_drawn_if_all_runs_start_at_the_same_point() -> None:
    figure: Any = sp.plots.perplexity([run_of(), run_of(metric="std")])
    (line,) = figure.layout.shapes
    assert (line.x0, line.y0, line.x1, line.y1) == pytest.approx((20, 10, 30, 15))
    elsewhere: Any = sp.plots.perplexity([run_of(), run_of(perplexity=([9, 9, 9], [8, 8, 8]), model="other")])
    assert not elsewhere.layout.shapes


def test_runs_have_the_same_styles_as_in_tradeoff() -> None:
    runs = [run_of(metric="random", seed=seed) for seed in range(9)]
    ours, theirs = (
        traces_with_mode(figure, "markers") for figure in (sp.plots.perplexity(runs), sp.plots.tradeoff(runs))
    )
    assert ours[8].name == "random, seed 8"
    styles = [[(trace.name, trace.marker.color, trace.marker.symbol) for trace in points] for points in (ours, theirs)]
    assert styles[0] == styles[1]


def test_steps_with_infinite_perplexity_are_omitted_and_counted() -> None:
    figure: Any = sp.plots.perplexity(run_of(perplexity=([10, 40, math.inf], [20, 22, 30])))
    assert list(traces_with_mode(figure, "markers")[0].y) == [10, 40]
    subtitle = figure.layout.title.subtitle.text.replace("<br>", " ")
    assert subtitle.endswith("; steps with infinite perplexity, not drawn: 1")


def test_a_constant_perplexity_has_axes_around_it() -> None:
    figure: Any = sp.plots.perplexity(run_of([0.5], [0.5], perplexity=([10], [20])))
    low, high = 10 ** np.array(figure.layout.xaxis.range)
    assert 15 < low < 20 < high < 25


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([], "there are no runs to draw"),
        ([3], "has type int: expected a PruneRun"),
        ([run_of(perplexity=([math.inf] * 3, [1, 1, 1]))], "run 'abs' has no step with finite perplexity"),
        (
            [replace(run_of(), records=[{"step": 0, "share": 0, "forget_top1": 0.5, "retain_top1": 0.5}])],
            "run 'abs' has no retain_perplexity in its records",
        ),
    ],
)
def test_invalid_runs_are_rejected(runs: Any, message: str) -> None:
    with pytest.raises(sp.SpLensError, match=message):
        sp.plots.perplexity(runs)
