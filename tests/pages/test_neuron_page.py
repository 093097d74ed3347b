"""The page of one neuron: its sections and numbers, and that text from a corpus never becomes markup."""

import html
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from page_reader import read
from plot_factories import HOSTILE, MLP, examples_of, run_of, scores_of, stats_with_folds
from plot_factories import scaled_stats as stats_of

import sp_lens as sp
from sp_lens.neurons.layout import Layout, NeuronGroup
from sp_lens.pages.contexts import context_parts
from sp_lens.pages.page import Section, render_page
from sp_lens.plots.themes import PALETTE

pytestmark = pytest.mark.libraries


def make_page(stats: Any = None, *, neuron: int = 3, **results: Any) -> sp.Page:
    stats = {"code": stats_of(1), "prose": stats_of(0.5)} if stats is None else stats
    return sp.neuron_page(stats, site="mlp", layer=0, neuron=neuron, **results)


def test_statistics_alone_make_a_page() -> None:
    reader = read(make_page({"code": stats_of(1, histograms=False)}))
    assert reader.headings == [(1, "Neuron 3 of layer 0, MLP"), (2, "Importance on each corpus")]
    # z is 2, -2, 4, 0: mean |z| 2, rms sqrt(6), std sqrt(5), positive half of the time.
    assert reader.rows()["code"] == ["4", "2", "2.45", "2.24", "0.5", "-2", "4"]
    assert "Model tiny." in reader.text


def test_importance_and_ablation_effect_are_listed_by_corpus() -> None:
    effects = {"code": torch.full((20,), torch.nan), "held-out": torch.full((20,), torch.nan)}
    effects["code"][3] = 0.0125
    values = {
        label: sp.NeuronValues(Layout((MLP,)), {MLP.name: tensor}, {"metric": "ablation effect", "mode": "zero"})
        for label, tensor in effects.items()
    }
    rows = read(make_page(effects=values)).rows()
    assert rows["code"] == ["4", "2", "2.45", "2.24", "0.5", "-2", "4", "+0.013"]
    assert rows["prose"] == ["4", "1", "1.22", "1.12", "0.5", "-1", "2", "not measured"]
    assert rows["held-out"] == ["not measured"] * 8


@pytest.mark.parametrize(("neuron", "rank"), [(0, 2), (1, 1), (2, 3), (3, 5), (4, 6)])
def test_rank_follows_the_order_of_top(neuron: int, rank: int) -> None:
    scores = scores_of({MLP.name: [5, 9, 5], "blocks.1.mlp.hook_post": [5]})
    rows = read(make_page(neuron=neuron, scores=scores)).rows()
    assert rows["rank"] == [f"{rank} of 40 MLP neurons"]
    assert scores.top(rank / 40, site="mlp")[MLP.name][neuron]
    assert rank == 1 or not scores.top((rank - 1) / 40, site="mlp")[MLP.name][neuron]


def test_the_step_of_pruning_is_shown() -> None:
    run = run_of((0.5, 0.4, 0.1), (0.5, 0.5, 0.4))
    run.pruned_at[MLP.name][3] = 2
    assert read(make_page(run=run)).rows()["pruned"] == ["at step 2 of 2"]
    assert read(make_page(run=run, neuron=4)).rows()["pruned"] == ["not within 2 steps"]
    attn = sp.neuron_page({"code": stats_of(1)}, site="attn", layer=0, neuron=3, run=run)
    reader = read(attn)
    assert reader.rows()["pruned"] == ["no: the run pruned neurons of site mlp"]
    assert reader.headings[0] == (1, "Neuron 3 of layer 0, attention pre-out (head 1, unit 1)")


def test_densities_are_drawn_for_corpora_with_a_histogram() -> None:
    page = make_page({"code": stats_of(1), "prose": stats_of(1, histograms=False)})
    reader = read(page)
    assert (2, "Activation densities") in reader.headings
    (plot,) = [script for script in reader.scripts if re.search(r'Plotly\.newPlot\(\s*"', script)]
    assert '"name":"code: ' in plot
    assert '"name":"prose: ' not in plot
    labels = [attributes["aria-label"] or "" for _, attributes in reader.attributes if attributes.get("role") == "img"]
    assert labels
    assert all(label in reader.text for label in labels)  # the accessible name of a figure is its caption


def test_tokens_are_coloured_by_activation() -> None:
    reader = read(make_page(examples={"code": examples_of()}))
    assert (3, "code") in reader.headings
    assert "z = -2 · book, token 9" in reader.text
    tokens = [(tag, attributes) for tag, attributes in reader.attributes if "title" in attributes]
    assert tokens == [
        ("span", {"class": "positive", "style": "--share: 0.25", "title": "z = 0.5"}),  # a quarter of the largest |z|
        ("mark", {"class": "negative", "style": "--share: 1.00", "title": "z = -2"}),
    ]


def test_the_spaces_of_a_context_are_those_of_its_tokens() -> None:
    page = make_page(examples={"code": examples_of(("</s>", "a", " b", "\n"))})
    (context,) = re.findall(r'<span class="context" dir="auto">(.*?)</span></li>', page.html, re.DOTALL)
    assert html.unescape(re.sub(r"<[^>]*>", "", context)) == "</s>a b↵"


@pytest.mark.model
@pytest.mark.parametrize("text", ["שלום עולם", "مرحبا بالعالم", "你好", "नमस्ते", "👩‍🔬 ok"])
def test_characters_that_are_split_among_tokens_are_shown_with_their_bytes(demo: Any, text: str) -> None:
    mask = sp.NeuronMask.from_neurons(sp.layout_of(demo), {"blocks.1.attn.hook_z": [7]})
    examples = sp.top_examples(demo, [text], mask, k=1, context=99, progress=False)
    (example,) = examples["blocks.1.attn.hook_z"][7]
    assert "".join(example.texts) == f"</s>{text}"
    frame = examples.frame()
    assert "".join(frame["text"]) == f"</s>{text}"
    assert frame["token"].tolist() == list(example.tokens)

    parts = context_parts({"code": [example]}, "examples")
    page = render_page("Contexts", "", [part for part in parts if isinstance(part, Section)])
    (context,) = re.findall(r'<span class="context" dir="auto">(.*?)</span></li>', page.html, re.DOTALL)
    assert html.unescape(re.sub(r"<[^>]*>", "", context)) == f"</s>{text}"
    assert context.startswith('<span dir="ltr">&lt;/s&gt;</span>')  # so that dir="auto" depends on the text alone
    assert context.count("<mark") == 1
    # Every token is coloured by its own activation, as a stripe of its character.
    counted = [z for z in example.activations if not math.isnan(z)]
    shares = re.findall(r"(?:--share: |\.7 \* )([\d.]+)", context)
    assert [float(share) for share in shares if float(share)] == pytest.approx(
        [abs(z / example.value) for z in counted if abs(z / example.value) >= 0.005], abs=0.006
    )
    titles = html.unescape(" ".join(re.findall(r'title="([^"]*)"', context)))
    assert re.findall(r"((?:\\x[0-9a-f]{2})+): ", titles) == [
        token for token in example.tokens if token.startswith("\\x")
    ]


def test_the_colours_of_tokens_are_those_of_the_figures() -> None:
    style = make_page().html.split("<style>")[1].split("</style>")[0]
    for name, colour in zip(("positive", "negative"), (PALETTE[1], PALETTE[0]), strict=True):
        assert f"--{name}: {' '.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))};" in style


def test_contexts_after_the_fifth_are_hidden_at_first() -> None:
    reader = read(make_page(examples={"code": examples_of(count=7), "prose": examples_of(count=0)}))
    assert reader.text.count("z = -2 · book") == 7
    assert "2 more" in reader.text
    assert "This corpus has no token that is counted." in reader.text
    assert [attributes["start"] for tag, attributes in reader.attributes if tag == "ol"] == ["1", "6"]


def test_hostile_text_is_shown_as_text() -> None:
    stats = {HOSTILE: stats_of(1, model=HOSTILE)}
    examples = {HOSTILE: examples_of((HOSTILE, '" onmouseover="x', "\n\t\u202e\x00"), HOSTILE)}
    page = make_page(stats, examples=examples, scores=scores_of())
    reader = read(page)  # also checks that there are no event handlers
    settings, _, plot = reader.scripts
    assert "MathJaxConfig" in settings
    assert "alert(" in plot  # the name of a curve
    assert "<" not in plot
    assert reader.text.count(HOSTILE) >= 4  # in a table, a heading, a token and the name of a document
    assert "↵⇥\\u202e\\x00" in reader.text


def test_a_notebook_shows_the_page_in_a_frame(tmp_path: Path) -> None:
    page = make_page(examples={"code": examples_of()})
    frame = page._repr_html_()
    (srcdoc,) = re.findall(r'srcdoc="([^"]*)"', frame)
    assert html.unescape(srcdoc) == page.html
    assert "<script" not in frame
    assert len(frame) < 1.25 * len(page.html)
    page.write_html(tmp_path / "new" / "page.html")
    assert (tmp_path / "new" / "page.html").read_text("utf-8") == page.html
    assert repr(page) == f"Page('Neuron 3 of layer 0, MLP', {len(page.html) / 1e6:.1f} MB)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stats": {}}, "stats_by_corpus is empty"),
        ({"stats": stats_of(1)}, "stats_by_corpus has type ActivationStats: expected a mapping"),
        ({"stats": {"code": 3}}, "expected ActivationStats"),
        ({"neuron": 20}, "there is no neuron 20 in layer 0"),
        ({"examples": examples_of()}, "examples has type TopExamples: expected a mapping"),
        ({"effects": {"code": 3}}, "expected NeuronValues"),
        ({"scores": scores_of(layout=Layout((NeuronGroup("mlp", 0, 7),)))}, "the scores belong to another model"),
    ],
)
def test_invalid_arguments_raise(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(sp.SpLensError, match=message):
        make_page(**arguments)


@pytest.mark.model
def test_the_page_of_a_neuron_of_the_bundled_model(demo: Any) -> None:
    corpus = sp.load_corpus("code", demo, tokens=2000, offline=True)
    edges = sp.collect(demo, corpus, progress=False).edges("mlp")
    stats = sp.collect(demo, corpus, edges={"mlp": edges}, progress=False)
    mask = sp.NeuronMask.from_neurons(stats.layout, {"blocks.2.mlp.hook_post": [306]})
    examples = sp.top_examples(demo, corpus, mask, progress=False)
    page = sp.neuron_page({"code": stats}, site="mlp", layer=2, neuron=306, examples={"code": examples})
    reader = read(page)
    strongest = examples["blocks.2.mlp.hook_post"][306][0]
    assert f"z = {strongest.value:.3g} · {strongest.document}, token {strongest.position}" in reader.text
    assert reader.rows()["code"][-1] == f"{strongest.value:.3g}"  # the largest activation in the statistics


def test_confidence_intervals_of_importances_and_score_are_shown() -> None:
    forget, retain = stats_with_folds(1, site="mlp"), stats_with_folds(2, site="mlp")
    scores = sp.uncertainty(forget, retain)
    page = sp.neuron_page({"code": forget, "prose": retain}, site="mlp", layer=0, neuron=3, scores=scores)
    rows = read(page).rows()
    std = sp.uncertainty(forget, metric="std").frame().loc[3]
    assert rows["code"][3] == f"{std['value']:.3g} [{std['low']:.3g}, {std['high']:.3g}]"
    score = scores.frame().loc[3]
    assert (
        rows["score"][0]
        == f"{score['value']:.3g} [{score['low']:.3g}, {score['high']:.3g}], 95 % interval over documents"
    )
    assert rows["rank"][0].startswith(str(1 + int((scores.frame()["value"] > score["value"]).sum())))
