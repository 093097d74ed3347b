"""What the trade-off, perplexity and selectivity figures share: many runs, runs of one step, and error bars."""

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from plot_factories import megabytes, run_of, traces, traces_with_mode

import sp_lens as sp
from sp_lens.evaluation.document_hits import mean_hits
from sp_lens.evaluation.evaluate import DocumentSums
from sp_lens.typing import SIDES

pytestmark = pytest.mark.libraries

RUN_FIGURES: Any = (sp.plots.tradeoff, sp.plots.perplexity, sp.plots.selectivity)


def sums(drop: float, nats: float, seed: int, documents: int) -> DocumentSums:
    """Return sums over random documents whose mean accuracy is near 0.5 - drop, and whose mean loss is near `nats`."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(20, 60, (documents,), generator=torch.Generator().manual_seed(0)).double()
    variation = 0.8 + 0.4 * torch.rand(documents, generator=generator, dtype=torch.float64)
    return DocumentSums(counts, (counts * (0.5 - drop * variation)).floor(), counts * nats * variation)


def run_with_documents(documents_seed: int = 0, documents: int = 20, **settings: Any) -> sp.PruneRun:
    """Return a run of two steps that records its documents, whose step 1 is the best on any half of them."""
    steps: list[Any] = [
        {
            "forget": sums(forget, loss, documents_seed, documents),
            "retain": sums(retain, loss, documents_seed + 1, documents),
        }
        for forget, retain, loss in ((0.0, 0.0, 2.0), (0.3, 0.1, 3.0), (0.4, 0.4, 4.0))
    ]
    accuracies = [[step[side].accuracy for step in steps] for side in SIDES]
    perplexities = [
        [float((step[side].nats.sum() / step[side].counts.sum()).exp()) for step in steps] for side in SIDES
    ]
    run = run_of(*accuracies, perplexity=(perplexities[0], perplexities[1]), **settings)
    return replace(run, documents=steps)


@pytest.mark.parametrize("draw", RUN_FIGURES, ids=lambda draw: draw.__name__)
def test_two_hundred_runs_of_fifty_steps_make_a_small_figure(draw: Any) -> None:
    ramp = np.linspace(0.5, 0.1, 51).tolist()
    rising = np.linspace(10, 1000, 51).tolist()
    runs = [run_of(ramp, ramp, perplexity=(rising, rising), metric="random", seed=seed) for seed in range(200)]
    start = time.process_time()
    figure = draw(runs)
    assert time.process_time() - start < 20
    assert megabytes(figure) < 5
    assert figure.layout.height < 700
    drawn = sum(len(trace.x) for trace in figure.data)
    assert drawn == (1 if draw is sp.plots.selectivity else 200 * 51 * 2)  # selectivity combines seeds into one bar


@pytest.mark.parametrize("draw", RUN_FIGURES[:2], ids=lambda draw: draw.__name__)
def test_more_runs_than_colours_differ_in_symbol_and_very_many_have_no_legend(draw: Any) -> None:
    some = draw([run_of(metric="random", seed=seed) for seed in range(21)])
    points = traces_with_mode(some, "markers")
    assert len({(trace.marker.color, trace.marker.symbol) for trace in points}) == 21
    assert all(trace.showlegend for trace in points)
    many = draw([run_of(metric="random", seed=seed) for seed in range(200)])
    assert len(traces(many)) == 400
    assert not any(trace.showlegend for trace in traces(many))
    assert traces_with_mode(many, "markers")[199].name == "random, seed 199"
    assert many.layout.title.subtitle.text.startswith("200 runs, named on hover; ")
    assert many.layout.height <= some.layout.height


@pytest.mark.parametrize("draw", RUN_FIGURES[:2], ids=lambda draw: draw.__name__)
@pytest.mark.parametrize("drop", [0.0, 0.2])
def test_a_run_of_one_step_has_two_points_and_a_line(draw: Any, drop: float) -> None:
    perplexity = ([10, 10 + 50 * drop], [20, 20 + 50 * drop])
    figure = draw(run_of([0.5, 0.5 - drop], [0.5, 0.5 - drop], perplexity=perplexity))
    curve, points = figure.data
    assert len(points.x) == len(curve.x) == 2
    assert np.asarray(curve.x) == pytest.approx(np.asarray(points.x))
    for axis, values in ((figure.layout.xaxis, points.x), (figure.layout.yaxis, points.y)):
        ends = np.array(axis.range)
        low, high = 10**ends if axis.type == "log" else ends
        assert low < min(values) <= max(values) < high


def test_error_bars_are_drawn_at_the_best_step() -> None:
    run = run_with_documents()
    assert run.best_step == 1
    hits = run.hits_at(1)
    drops = [[100 * end for end in hits.drop(side)] for side in ("retain", "forget")]
    perplexities = [hits.perplexity(side) for side in ("retain", "forget")]
    for draw, intervals in ((sp.plots.tradeoff, drops), (sp.plots.perplexity, perplexities)):
        figure: Any = draw({"a": run})
        points = figure.data[1]
        x, y = intervals
        for bars, values, (_, low, high) in ((points.error_x, points.x, x), (points.error_y, points.y, y)):
            assert np.isnan([bars.array[0], bars.array[2], bars.arrayminus[0], bars.arrayminus[2]]).all()
            assert values[1] + bars.array[1] == pytest.approx(high)
            assert values[1] - bars.arrayminus[1] == pytest.approx(low)
        for axis, (_, low, high) in ((figure.layout.xaxis, x), (figure.layout.yaxis, y)):
            ends = np.array(axis.range if axis.type != "log" else 10.0 ** np.array(axis.range))
            assert ends[0] < low < high < ends[1]
        assert "95 % confidence intervals over held-out documents" in figure.layout.title.subtitle.text.replace(
            "<br>", " "
        )
    without_documents: Any = sp.plots.tradeoff({"a": replace(run, documents=())})
    assert without_documents.data[1].error_x.array is None
    assert "95 %" not in without_documents.layout.title.subtitle.text


def test_the_subtitle_does_not_mention_error_bars_if_there_are_too_few_documents() -> None:
    for draw in RUN_FIGURES:
        figure: Any = draw(run_with_documents(documents=7))
        assert "bars" not in figure.layout.title.subtitle.text


def test_error_bars_of_selectivity_are_the_interval_of_the_mean_over_seeds() -> None:
    runs = {f"run {seed}": run_with_documents(seed, metric="random", seed=seed) for seed in range(2)}
    figure: Any = sp.plots.selectivity(runs)
    (bar,) = figure.data
    value, low, high = mean_hits([run.best_hits() for run in runs.values()]).interval()
    assert bar.y[0] == pytest.approx(100 * value) == 100 * np.mean([run.selectivity for run in runs.values()])
    assert bar.y[0] + bar.error_y.array[0] == pytest.approx(100 * high)
    assert bar.y[0] - bar.error_y.arrayminus[0] == pytest.approx(100 * low)
    subtitle = figure.layout.title.subtitle.text.replace("<br>", " ")
    assert "error bars: 95 % confidence intervals over held-out documents" in subtitle
    mixed: Any = sp.plots.selectivity({**runs, "old": replace(runs["run 0"], documents=())})
    assert "error bars: standard deviation over seeds" in mixed.layout.title.subtitle.text.replace("<br>", " ")
