"""What the trade-off, perplexity and selectivity figures share: many runs, runs of one step, and error bars."""

import time
from typing import Any

import numpy as np
import pytest
import torch
from factories import hits_of
from plot_factories import megabytes, run_of, traces, traces_with_mode

import sp_lens as sp
from sp_lens.evaluation.bootstrap import DocumentHits

pytestmark = pytest.mark.libraries

RUN_FIGURES: Any = (sp.plots.tradeoff, sp.plots.perplexity, sp.plots.selectivity)


def add_losses(hits: DocumentHits) -> DocumentHits:
    """Add losses of 2 nats per prediction before, and of about 3 on forget and 2.5 on retain data after."""
    nats: dict[str, torch.Tensor] = {}
    for side, after in (("forget", 3.0), ("retain", 2.5)):
        counts = hits.tensors[f"{side}_counts"].double()
        variation = torch.linspace(0.8, 1.2, len(counts), dtype=torch.float64)  # between documents
        nats |= {f"{side}_nats_before": 2 * counts, f"{side}_nats_after": after * counts * variation}
    return DocumentHits({**hits.tensors, **nats})


def run_and_hits(documents_seed: int = 0, **settings: Any) -> tuple[sp.PruneRun, DocumentHits]:
    """A run of two steps, and the hits of the model after its first step."""
    hits = add_losses(hits_of(documents_seed))
    drops = [hits.drop(side).value for side in ("forget", "retain")]
    perplexity = ([7.4, 20, 60], [7.4, 12, 50])
    run = run_of([0.5, 0.5 - drops[0], 0.1], [0.5, 0.5 - drops[1], 0.05], perplexity=perplexity, **settings)
    return run, hits


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


def test_error_bars_are_drawn_at_the_step_of_the_hits() -> None:
    run, hits = run_and_hits()
    drops = [[100 * end for end in hits.drop(side)] for side in ("retain", "forget")]
    perplexities = [hits.perplexity(side) for side in ("retain", "forget")]
    for draw, intervals in ((sp.plots.tradeoff, drops), (sp.plots.perplexity, perplexities)):
        figure: Any = draw({"a": run}, hits={"a": hits})
        points = figure.data[1]
        x, y = intervals
        for bars, values, (_, low, high) in ((points.error_x, points.x, x), (points.error_y, points.y, y)):
            assert np.isnan([bars.array[0], bars.array[2], bars.arrayminus[0], bars.arrayminus[2]]).all()
            assert values[1] + bars.array[1] == pytest.approx(max(high, values[1]))
            assert values[1] - bars.arrayminus[1] == pytest.approx(min(low, values[1]))
        for axis, (_, low, high) in ((figure.layout.xaxis, x), (figure.layout.yaxis, y)):
            ends = np.array(axis.range if axis.type != "log" else 10.0 ** np.array(axis.range))
            assert ends[0] < low < high < ends[1]
        assert "95 % confidence intervals over held-out documents" in figure.layout.title.subtitle.text
    without_hits: Any = sp.plots.tradeoff({"a": run})
    assert without_hits.data[1].error_x.array is None
    assert "95 %" not in without_hits.layout.title.subtitle.text


def test_hits_of_an_unknown_run_are_rejected() -> None:
    run, hits = run_and_hits()
    with pytest.raises(sp.SpLensError, match="there are hits for 'b', but the runs are 'a'"):
        sp.plots.tradeoff({"a": run}, hits={"b": hits})


def test_the_subtitle_does_not_mention_error_bars_if_there_are_too_few_documents() -> None:
    hits = hits_of(0, documents=3)
    drops = [hits.drop(side).value for side in ("forget", "retain")]
    run = run_of([0.5, 0.5 - drops[0]], [0.5, 0.5 - drops[1]])
    figure: Any = sp.plots.tradeoff({"abs": run}, hits={"abs": hits})
    assert "bars" not in figure.layout.title.subtitle.text


def test_error_bars_of_selectivity_are_the_interval_of_the_mean_over_seeds() -> None:
    pairs = {f"run {seed}": run_and_hits(seed, metric="random", seed=seed) for seed in range(2)}
    runs = {label: run for label, (run, _) in pairs.items()}
    hits = {label: run_hits for label, (_, run_hits) in pairs.items()}
    figure: Any = sp.plots.selectivity(runs, hits=hits)
    (bar,) = figure.data
    low, high = np.percentile(100 * np.mean([run_hits.draws() for run_hits in hits.values()], axis=0), [2.5, 97.5])
    assert bar.y[0] + bar.error_y.array[0] == pytest.approx(high)
    assert bar.y[0] - bar.error_y.arrayminus[0] == pytest.approx(low)
    subtitle = figure.layout.title.subtitle.text.replace("<br>", " ")
    assert "error bars: 95 % confidence intervals over held-out documents" in subtitle
    with pytest.raises(sp.SpLensError, match="pass hits of each"):
        sp.plots.selectivity(runs, hits={"run 0": hits["run 0"]})


def test_drops_and_perplexities_of_hits_are_computed_from_their_sums() -> None:
    hits = add_losses(hits_of(1))
    sums = {name: float(tensor.double().sum()) for name, tensor in hits.tensors.items()}
    for side in ("forget", "retain"):
        count = sums[f"{side}_counts"]
        drop, perplexity = hits.drop(side), hits.perplexity(side)
        assert drop.value == pytest.approx((sums[f"{side}_before"] - sums[f"{side}_after"]) / count)
        assert perplexity.value == pytest.approx(np.exp(sums[f"{side}_nats_after"] / count))
        assert drop.low < drop.value < drop.high
        assert perplexity.low < perplexity.value < perplexity.high
    assert hits.selectivity == pytest.approx(hits.drop("forget").value - hits.drop("retain").value)
