"""Figures with intervals: what is drawn is what statistics by blocks and hits by document say."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from factories import hits_of
from page_reader import read
from plot_factories import normal, run_of, stats_with_histograms

import sp_lens as sp
from sp_lens.evaluation.bootstrap import DocumentHits

pytestmark = pytest.mark.libraries


def stats_by_folds(seed: int, neurons: int = 40, **options: Any) -> sp.ActivationStats:
    """Statistics with histograms of 6 folds."""
    spread = 1 + torch.rand(neurons, generator=torch.Generator().manual_seed(seed))
    parts = [normal(40, neurons, seed=10 * seed + place) * spread for place in range(6)]
    whole = stats_with_histograms(torch.cat(parts), model="tiny", **options)
    folds = tuple(stats_with_histograms(z, **options) for z in parts)
    return sp.ActivationStats(whole.layout, whole.moments, whole.about, folds)


def with_nats(hits: DocumentHits) -> DocumentHits:
    """Losses of 2 nats a prediction before, and of 3 on forget and 2.5 on retain data after, not alike by document."""
    nats: dict[str, torch.Tensor] = {}
    for side, after in (("forget", 3.0), ("retain", 2.5)):
        counts = hits.tensors[f"{side}_counts"].double()
        wiggle = torch.linspace(0.8, 1.2, len(counts), dtype=torch.float64)
        nats |= {f"{side}_nats_before": 2 * counts, f"{side}_nats_after": after * counts * wiggle}
    return DocumentHits({**hits.tensors, **nats})


def run_and_hits(documents: int = 0, **settings: Any) -> tuple[sp.PruneRun, DocumentHits]:
    """A run of two steps, of which the first is what the hits are of."""
    hits = with_nats(hits_of(documents))
    drops = [hits.drop(side).value for side in ("forget", "retain")]
    perplexity = ([7.4, 20, 60], [7.4, 12, 50])
    run = run_of([0.5, 0.5 - drops[0], 0.1], [0.5, 0.5 - drops[1], 0.05], perplexity=perplexity, **settings)
    return run, hits


def test_drops_and_perplexities_of_hits_are_those_of_their_sums() -> None:
    hits = with_nats(hits_of(1))
    found = {name: tensor.double().numpy() for name, tensor in hits.tensors.items()}
    for side in ("forget", "retain"):
        counts = found[f"{side}_counts"]
        drop, perplexity = hits.drop(side), hits.perplexity(side)
        assert drop.value == pytest.approx((found[f"{side}_before"] - found[f"{side}_after"]).sum() / counts.sum())
        assert perplexity.value == pytest.approx(np.exp(found[f"{side}_nats_after"].sum() / counts.sum()))
        assert drop.low < drop.value < drop.high
        assert perplexity.low < perplexity.value < perplexity.high
    assert hits.selectivity == pytest.approx(hits.drop("forget").value - hits.drop("retain").value)


def test_runs_have_bars_at_the_step_that_the_hits_are_of() -> None:
    run, hits = run_and_hits()
    for figure, x, y in (
        (
            sp.plots.tradeoff({"a": run}, hits={"a": hits}),
            *([100 * e for e in hits.drop(s)] for s in ("retain", "forget")),
        ),
        (sp.plots.perplexity({"a": run}, hits={"a": hits}), *(hits.perplexity(s) for s in ("retain", "forget"))),
    ):
        dots: Any = figure.data[1]
        for bars, values, (_, low, high) in ((dots.error_x, dots.x, x), (dots.error_y, dots.y, y)):
            assert np.isnan([bars.array[0], bars.array[2], bars.arrayminus[0], bars.arrayminus[2]]).all()
            assert values[1] + bars.array[1] == pytest.approx(max(high, values[1]))
            assert values[1] - bars.arrayminus[1] == pytest.approx(min(low, values[1]))
        for axis, (_, low, high) in ((figure["layout"]["xaxis"], x), (figure["layout"]["yaxis"], y)):
            ends = np.array(axis["range"] if axis["type"] != "log" else 10.0 ** np.array(axis["range"]))
            assert ends[0] < low < high < ends[1]
        assert "95 % intervals over held-out documents" in figure["layout"]["title"]["subtitle"]["text"]
    plain: Any = sp.plots.tradeoff({"a": run})
    assert plain.data[1].error_x.array is None
    assert "95 %" not in plain.layout.title.subtitle.text
    with pytest.raises(sp.SpLensError, match="hits of 'b', which is no run: there are 'a'"):
        sp.plots.tradeoff({"a": run}, hits={"b": hits})


def test_a_caption_says_nothing_of_bars_that_too_few_documents_have_not() -> None:
    hits = hits_of(0, documents=3)
    drops = [hits.drop(side).value for side in ("forget", "retain")]
    run = run_of([0.5, 0.5 - drops[0]], [0.5, 0.5 - drops[1]])
    figure = sp.plots.tradeoff({"abs": run}, hits={"abs": hits})
    assert "bars" not in figure.layout.title.subtitle.text


def test_a_bar_of_selectivity_has_the_interval_of_the_mean_of_its_runs() -> None:
    pairs = {f"run {seed}": run_and_hits(seed, metric="random", seed=seed) for seed in range(2)}
    runs, hits = ({label: pair[place] for label, pair in pairs.items()} for place in range(2))
    figure: Any = sp.plots.selectivity(runs, hits=hits)  # type: ignore[arg-type]
    (bar,) = figure.data
    low, high = np.percentile(100 * np.mean([one.draws() for one in hits.values()], axis=0), [2.5, 97.5])  # type: ignore[union-attr]
    assert bar.y[0] + bar.error_y.array[0] == pytest.approx(high)
    assert bar.y[0] - bar.error_y.arrayminus[0] == pytest.approx(low)
    assert "error bars: 95 % intervals over held-out documents" in figure.layout.title.subtitle.text
    with pytest.raises(sp.SpLensError, match="give hits of each run"):
        sp.plots.selectivity(runs, hits={"run 0": hits["run 0"]})  # type: ignore[arg-type]


def test_the_scatter_has_the_intervals_of_scores_and_bars_of_the_highest() -> None:
    forget, retain = stats_by_folds(1, site="mlp"), stats_by_folds(2, site="mlp")
    figure: Any = sp.plots.importance_scatter(forget, retain, fraction=0.1)
    others, taken = figure.data[:2]
    assert others.error_x.array is None or np.isnan(others.error_x.array).all()
    expected = sp.uncertainty(forget, retain).frame().set_index("neuron")
    own = sp.uncertainty(forget).frame().set_index("neuron")
    for place, row in enumerate(taken.customdata):
        neuron = int(row[1])
        np.testing.assert_allclose(row[-2:], expected.loc[neuron, ["low", "high"]].to_numpy(float), rtol=1e-5)
        assert taken.y[place] + taken.error_y.array[place] == pytest.approx(own.loc[neuron, "high"], rel=1e-5)
        assert taken.y[place] - taken.error_y.arrayminus[place] == pytest.approx(own.loc[neuron, "low"], rel=1e-5)
    assert "bars: 95 % intervals" in figure.layout.title.subtitle.text
    assert "[%{customdata[5]" in taken.hovertemplate
    whole = sp.ActivationStats(retain.layout, retain.moments, retain.about)
    plain: Any = sp.plots.importance_scatter(forget, whole, fraction=0.1)
    assert plain.data[1].error_x.array is None
    assert plain.data[1].customdata.shape[1] == 5


def test_densities_say_how_well_the_mean_is_known() -> None:
    stats = stats_by_folds(1, 6, first_layer=2)
    figure: Any = sp.plots.density({"code": stats}, layer=2, neurons=range(6))
    sure = sp.uncertainty(stats).frame().set_index("neuron")
    assert f"mean |z| {sure.loc[0, 'value']:.3g} [{sure.loc[0, 'low']:.3g}, " in figure.data[0].hovertemplate
    half = np.sqrt((sure["high"] / sure["low"]).median()) - 1
    assert f"mean |z| ±{half:.0%}" in figure.layout.annotations[0].text
    assert "95 % interval over documents" in figure.layout.title.subtitle.text
    plain: Any = sp.plots.density({"code": stats_with_histograms(normal())}, layer=0, neurons=range(6))
    assert "±" not in plain.layout.annotations[0].text
    assert "mean |z|" not in plain.data[0].hovertemplate


def test_a_card_has_the_intervals_of_importances_and_score() -> None:
    forget, retain = stats_by_folds(1, site="mlp"), stats_by_folds(2, site="mlp")
    sure = sp.uncertainty(forget, retain)
    page = sp.neuron_page({"code": forget, "prose": retain}, site="mlp", layer=0, neuron=3, scores=sure)
    rows = read(page).rows()
    own = sp.uncertainty(forget, metric="std").frame().loc[3]
    assert rows["code"][3] == f"{own['value']:.3g} [{own['low']:.3g}, {own['high']:.3g}]"
    score = sure.frame().loc[3]
    assert rows["score"][0] == f"{score['value']:.3g} [{score['low']:.3g}, {score['high']:.3g}], 95 % over documents"
    assert rows["rank"][0].startswith(str(1 + int((sure.frame()["value"] > score["value"]).sum())))


def test_stability_is_drawn_as_medians_between_percentiles() -> None:
    table = pd.DataFrame(
        {
            "order": [0, 0, 1, 1, 2, 2],
            "folds": [1, 2] * 3,
            "tokens": [100.0, 220.0, 120.0, 220.0, 110.0, 220.0],
            "with_all": [0.2, 1.0, 0.4, 1.0, 0.3, 1.0],
            "with_others": [0.1, np.nan, 0.3, np.nan, 0.2, np.nan],
        }
    )
    figure: Any = sp.plots.rank_stability(table)
    band, line, _, others = figure.data
    assert list(line.x) == [110, 220]
    assert list(line.y) == pytest.approx([30, 100])
    assert list(band.y) == pytest.approx([22, 100, 100, 38])
    assert list(others.y) == pytest.approx([20])
    with pytest.raises(sp.SpLensError, match=r"expected the table of sp.rank_stability\(\), got 6 rows"):
        sp.plots.rank_stability(table.drop(columns="tokens"))
