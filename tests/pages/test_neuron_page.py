"""The page of one neuron: its numbers, its text, and that nobody's text becomes a script."""

import html
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from page_reader import read
from plot_factories import HOSTILE, MLP, examples_of, run_of, scores_of
from plot_factories import scaled_stats as stats_of

import sp_lens as sp
from sp_lens.neurons.layout import Layout, NeuronGroup

pytestmark = pytest.mark.libraries


def card(stats: Any = None, *, neuron: int = 3, **given: Any) -> sp.Page:
    stats = {"code": stats_of(1), "prose": stats_of(0.5)} if stats is None else stats
    return sp.neuron_page(stats, site="mlp", layer=0, neuron=neuron, **given)


def test_only_statistics_make_a_card() -> None:
    reader = read(card({"code": stats_of(1, histograms=False)}))
    assert reader.headings == [(1, "Neuron 3 of layer 0, MLP"), (2, "On each corpus")]
    # z is 2, -2, 4, 0: mean |z| 2, rms sqrt(6), std sqrt(5), positive half of the time.
    assert reader.rows()["code"] == ["4", "2", "2.45", "2.24", "0.5", "-2", "4"]
    assert "Model tiny." in reader.text


def test_the_numbers_of_each_corpus_with_effects() -> None:
    effects = {"code": torch.full((20,), torch.nan), "held-out": torch.full((20,), torch.nan)}
    effects["code"][3] = 0.0125
    values = {
        label: sp.NeuronValues(Layout((MLP,)), {MLP.name: one}, {"metric": "ablation effect", "mode": "zero"})
        for label, one in effects.items()
    }
    rows = read(card(effects=values)).rows()
    assert rows["code"] == ["4", "2", "2.45", "2.24", "0.5", "-2", "4", "+0.013"]
    assert rows["prose"] == ["4", "1", "1.22", "1.12", "0.5", "-1", "2", "not measured"]
    assert rows["held-out"] == ["not measured"] * 8


@pytest.mark.parametrize(("neuron", "rank"), [(0, 2), (1, 1), (2, 3), (3, 5), (4, 6)])
def test_rank_is_the_order_in_which_top_takes_them(neuron: int, rank: int) -> None:
    scores = scores_of({MLP.name: [5, 9, 5], "blocks.1.mlp.hook_post": [5]})
    rows = read(card(neuron=neuron, scores=scores)).rows()
    assert rows["rank"] == [f"{rank} of all 40 MLP neurons"]
    taken = scores.top(rank / 40, site="mlp")
    assert taken[MLP.name][neuron]
    assert rank == 1 or not scores.top((rank - 1) / 40, site="mlp")[MLP.name][neuron]


def test_pruned_when_never_and_not_asked() -> None:
    run = run_of((0.5, 0.4, 0.1), (0.5, 0.5, 0.4))
    run.pruned_at[MLP.name][3] = 2
    assert read(card(run=run)).rows()["pruned"] == ["at step 2 of 2"]
    assert read(card(run=run, neuron=4)).rows()["pruned"] == ["in none of 2 steps"]
    attn = sp.neuron_page({"code": stats_of(1)}, site="attn", layer=0, neuron=3, run=run)
    reader = read(attn)
    assert reader.rows()["pruned"] == ["no: the run was of the mlp site"]
    assert reader.headings[0] == (1, "Neuron 3 of layer 0, attention pre-out (head 1, unit 1)")


def test_densities_are_of_the_corpora_that_have_a_histogram() -> None:
    page = card({"code": stats_of(1), "prose": stats_of(1, histograms=False)})
    reader = read(page)
    assert (2, "Activation densities") in reader.headings
    (plot,) = [script for script in reader.scripts if re.search(r'Plotly\.newPlot\(\s*"', script)]
    assert '"name":"code: ' in plot
    assert '"name":"prose: ' not in plot
    labels = [given.get("aria-label") or "" for tag, given in reader.attributes if given.get("role") == "img"]
    assert labels
    assert all(label in reader.text for label in labels)  # what is said of a figure is its caption


def test_contexts_are_coloured_by_activation() -> None:
    reader = read(card(examples={"code": examples_of()}))
    assert (3, "code") in reader.headings
    assert "z = -2 · book, token 9" in reader.text
    spans = [(tag, given) for tag, given in reader.attributes if tag == "mark" or (tag == "span" and "title" in given)]
    assert spans == [
        ("span", {"style": "background:rgba(213,94,0,0.17)", "title": "z = 0.5"}),  # a quarter of the strongest
        ("mark", {"style": "background:rgba(0,114,178,0.70)", "title": "z = -2"}),
    ]


def test_more_than_five_contexts_are_folded() -> None:
    reader = read(card(examples={"code": examples_of(count=7), "prose": examples_of(count=0)}))
    assert reader.text.count("z = -2 · book") == 7
    assert "2 more" in reader.text
    assert "No token of this corpus counts." in reader.text
    assert [given["start"] for tag, given in reader.attributes if tag == "ol"] == ["1", "6"]


def test_hostile_text_stays_text() -> None:
    stats = {HOSTILE: stats_of(1, model=HOSTILE)}
    examples = {HOSTILE: examples_of((HOSTILE, '" onmouseover="x', "\n\t\u202e\x00"), HOSTILE)}
    page = card(stats, examples=examples, scores=scores_of())
    reader = read(page)  # no script more than ours, no handler
    settings, _, plot = reader.scripts
    assert "MathJaxConfig" in settings
    assert "alert(" in plot  # as the name of a curve
    assert "<" not in plot
    assert reader.text.count(HOSTILE) >= 4  # label in a table and a heading, token, document
    assert "↵⇥\\u202e\\x00" in reader.text


def test_a_notebook_shows_the_whole_page_in_a_frame(tmp_path: Path) -> None:
    page = card(examples={"code": examples_of()})
    frame = page._repr_html_()
    (srcdoc,) = re.findall(r'srcdoc="([^"]*)"', frame)
    assert html.unescape(srcdoc) == page.html
    assert "<script" not in frame
    assert len(frame) < 1.25 * len(page.html)
    page.write_html(tmp_path / "card.html")
    assert (tmp_path / "card.html").read_text("utf-8") == page.html
    assert repr(page) == f"Page('Neuron 3 of layer 0, MLP', {len(page.html) / 1e6:.1f} MB)"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"stats": {}}, "there is no corpus"),
        ({"stats": stats_of(1)}, "stats_by_corpus is a ActivationStats"),
        ({"stats": {"code": 3}}, "expected ActivationStats"),
        ({"neuron": 20}, "there is no neuron 20 in layer 0"),
        ({"examples": examples_of()}, "examples is a TopExamples: say whose"),
        ({"effects": {"code": 3}}, "expected NeuronValues"),
        ({"scores": scores_of(layout=Layout((NeuronGroup("mlp", 0, 7),)))}, "the scores are of another model"),
    ],
)
def test_bad_input(given: dict[str, Any], message: str) -> None:
    with pytest.raises(sp.SpLensError, match=message):
        card(**given)


@pytest.mark.model
def test_the_card_of_a_real_neuron(demo: Any) -> None:
    corpus = sp.load_corpus("code", demo, tokens=2000, offline=True)
    edges = sp.collect(demo, corpus, progress=False).edges("mlp")
    stats = sp.collect(demo, corpus, edges={"mlp": edges}, progress=False)
    mask = sp.NeuronMask.from_neurons(stats.layout, {"blocks.2.mlp.hook_post": [306]})
    examples = sp.top_examples(demo, corpus, mask, progress=False)
    page = sp.neuron_page({"code": stats}, site="mlp", layer=2, neuron=306, examples={"code": examples})
    reader = read(page)
    strongest = examples["blocks.2.mlp.hook_post"][306][0]
    assert f"z = {strongest.value:.3g} · {strongest.document}, token {strongest.position}" in reader.text
    assert reader.rows()["code"][-1] == f"{strongest.value:.3g}"  # the highest that collect saw
