"""Figures of very many runs, of one step, and of runs that all came to the same."""

import time
from typing import Any

import numpy as np
import pytest
from plot_factories import MLP_LAYOUT, megabytes, pruned_at_steps, run_of

import sp_lens as sp

RUNS: Any = (sp.plots.tradeoff, sp.plots.perplexity, sp.plots.selectivity)
MANY = 200
plots: Any = sp.plots


@pytest.mark.parametrize("draw", RUNS, ids=lambda draw: draw.__name__)
def test_two_hundred_runs_of_fifty_steps_are_a_light_figure(draw: Any) -> None:
    ramp = np.linspace(0.5, 0.1, 51).tolist()
    rising = np.linspace(10, 1000, 51).tolist()
    runs = [run_of(ramp, ramp, perplexity=(rising, rising), metric="random", seed=seed) for seed in range(MANY)]
    start = time.process_time()
    figure = draw(runs)
    assert time.process_time() - start < 20
    assert megabytes(figure) < 5
    assert figure.layout.height < 700
    shown = sum(len(trace.x) for trace in figure.data)
    assert shown == (1 if draw is sp.plots.selectivity else MANY * 51 * 2)  # seeds are one bar


def test_two_hundred_runs_are_no_run_whose_layers_to_draw() -> None:
    runs: Any = [run_of(seed=seed) for seed in range(MANY)]
    with pytest.raises(sp.SpLensError, match="is a list: expected a PruneRun"):
        sp.plots.pruned_by_layer(runs)


@pytest.mark.parametrize("draw", RUNS[:2], ids=lambda draw: draw.__name__)
@pytest.mark.parametrize("lost", [0.0, 0.2])
def test_a_run_of_one_step_is_two_dots_and_a_line(draw: Any, lost: float) -> None:
    figure = draw(run_of([0.5, 0.5 - lost], [0.5, 0.5 - lost], perplexity=([10, 10 + 50 * lost], [20, 20 + 50 * lost])))
    curve, dots = figure.data
    assert len(dots.x) == len(curve.x) == 2
    assert np.asarray(curve.x) == pytest.approx(np.asarray(dots.x))
    for axis, values in ((figure.layout.xaxis, dots.x), (figure.layout.yaxis, dots.y)):
        ends = np.array(axis.range)
        low, high = 10**ends if axis.type == "log" else ends
        assert low < min(values) <= max(values) < high


def test_a_run_of_one_step_has_a_selectivity_and_layers() -> None:
    run = run_of([0.5, 0.3], [0.5, 0.4], pruned_at={name: pruned_at_steps(*[0, 1] * 10) for name in MLP_LAYOUT.names})
    bar: Any = sp.plots.selectivity(run).data[0]
    assert bar.y == pytest.approx([10])
    traces: Any = sp.plots.pruned_by_layer(run).data
    assert [list(trace.y) for trace in traces if trace.mode == "lines"] == [[0, 50]] * 3


def test_runs_that_are_not_selective_say_so_on_a_scale() -> None:
    figure: Any = sp.plots.selectivity([run_of([0.5, 0.4], [0.5, 0.3]), run_of([0.5, 0.4], [0.5, 0.3], site="attn")])
    assert [list(bar.y) for bar in figure.data] == [[0], [0]]
    assert figure.layout.yaxis.rangemode == "tozero"
    assert "; no run lost more on forget than on retain data; " in figure.layout.title.subtitle.text
    assert "no run lost" not in plots.selectivity(run_of()).layout.title.subtitle.text
