"""What others have named (tokens, corpora, models, runs) is text in every figure and page, and never obeyed."""

import html
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import escape
from plot_factories import require_image_export

import sp_lens as sp
from sp_lens.plots._text import plain, visible
from sp_lens.statistics.histogram import Histogram
from sp_lens.statistics.moments import Moments
from sp_lens.statistics.top_examples import Example

LAYOUT = sp.Layout((sp.NeuronGroup("attn", 0, 4, heads=2), sp.NeuronGroup("mlp", 0, 6)))
EVIL = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</script><script>alert(1)</script>",
    "</title></style><svg onload=alert(1)>",
    '<a href="javascript:alert(1)">x</a>',
    "<b>bold</b><br>%{x}",
    "${title} {{title}} $$\\href{javascript:alert(1)}{x}$$",
    "&lt;script&gt; &#60;i&#62;",
    "a\nb\r\tc\x00\x1b[31m\u202e\u2028",
    "👩‍🔬 émoji",
)
ALL = " ".join(EVIL)  # in one name, for what takes long
IN_SMALL_PRINT = {"metric_agreement", "pruned_by_layer", "score_map", "head_map"}  # which name nothing in a label
OURS = {"b", "br", "span", "sup"}  # the tags of plotly's that we use


def stats_of(scale: float, model: str, source: str) -> sp.ActivationStats:
    generator, edges = torch.Generator().manual_seed(0), torch.linspace(-9, 9, 7)
    moments = {}
    for group in LAYOUT:
        x = scale * torch.randn(50, group.width, generator=generator)
        moments[group.name] = Moments.from_activations(x).with_histogram(
            Histogram.from_activations(x, edges, torch.arange(group.width))
        )
    return sp.ActivationStats(LAYOUT, moments, {"model": model, "corpora": [{"source": source}]})


def run_of(evil: str) -> sp.PruneRun:
    numbers = {"top1": 0.5, "top10": 0.7, "loss": 1.5, "perplexity": 4.5}
    sides = {f"{side}_{key}": number for side in ("forget", "retain") for key, number in numbers.items()}
    records = [
        {"step": step, "share": step / 10, **{key: one - step / 100 for key, one in sides.items()}} for step in range(3)
    ]
    about = {"source": evil, "origin": evil, "split": evil, "tokens": 9, "versions": {evil: evil}}
    settings = {
        "model": evil,
        "metric": evil,
        "site": "mlp",
        "unit": evil,
        "corpora": {"forget": about, "retain": about},
    }
    pruned_at = {group.name: torch.arange(group.width, dtype=torch.int32) % 3 for group in LAYOUT}
    return sp.PruneRun(LAYOUT, pruned_at, records, settings)


def examples_of(evil: str) -> sp.TopExamples:
    example = Example((evil, "b"), (1.0, 2.0), 1, 0, 1, evil)
    return sp.TopExamples(LAYOUT, {LAYOUT.names[1]: dict.fromkeys(range(6), (example,))}, {"model": evil})


def figures_of(evil: str) -> dict[str, go.Figure]:
    stats = {evil: stats_of(1, evil, evil), f"{evil} 2": stats_of(2, evil, evil)}
    forget, retain = stats.values()
    run, special = run_of(evil), sp.specialisation(stats)
    scores = sp.score(forget, retain)
    named = sp.NeuronValues(LAYOUT, scores.tensors, {"metric": evil, "model": evil})
    by_size = pd.DataFrame({"selectivity": [1.0], "low": [0.5], "high": [1.5], "tokens": [9], "who": [evil]})
    return {
        "density": sp.plots.density(stats, layer=0, neurons=range(4)),
        "neuron_density": sp.plots.neuron_density(stats, site="mlp", layer=0, neuron=1),
        "ridgeline": sp.plots.ridgeline(stats, site="mlp", neurons=[(0, 1)]),
        "tradeoff": sp.plots.tradeoff({evil: run}),
        "perplexity": sp.plots.perplexity({evil: run}),
        "selectivity": sp.plots.selectivity([run, run_of(f"{evil} 2")]),
        "selectivity_by": sp.plots.selectivity_by(by_size, x="tokens", series="who"),
        "pruned_by_layer": sp.plots.pruned_by_layer(run),
        "score_map": sp.plots.score_map(scores),
        "score_map of others": sp.plots.score_map(named),
        "head_map": sp.plots.head_map(named.heads()),
        "importance_scatter": sp.plots.importance_scatter(forget, retain, fraction=0.3),
        "metric_agreement": sp.plots.metric_agreement(forget, retain),
        "specialisation_by_layer": sp.plots.specialisation_by_layer(special, above=1),
        "cross_importance": sp.plots.cross_importance(special, fraction=0.5),
    }


def texts_in(part: Any) -> list[str]:
    """Every text in what is drawn."""
    if isinstance(part, dict):
        return [text for key, one in part.items() if key != "template" for text in texts_in(one)]
    if isinstance(part, list):
        return [text for one in part for text in texts_in(one)]
    return [part] if isinstance(part, str) else []


@pytest.mark.parametrize("evil", EVIL)
def test_in_a_figure_there_are_no_tags_but_ours_and_nothing_to_fill_in(evil: str) -> None:
    for name, figure in figures_of(evil).items():
        drawn = figure.to_plotly_json()
        for trace in drawn["data"]:
            trace.pop("legendgroup", None)  # which is never shown
        texts = texts_in(json.loads(go.Figure(drawn).to_json() or ""))
        tags = {tag.lower() for text in texts for tag in re.findall(r"</?([^\s>/]+)", text)}
        assert tags <= {*OURS, "extra"}, name
        for text in texts:
            filled = re.findall(r"%{([^}]*)}", text)
            assert all(re.fullmatch(r"[xy](:.*)?|customdata(\[\d\])?(:.*)?|text", one) for one in filled), name
            assert "$" not in text, name  # mathematics, where a notebook has MathJax
        if name not in IN_SMALL_PRINT:
            assert any(plain(evil) in text for text in texts), name


def test_a_figure_that_is_written_has_its_own_scripts_alone(tmp_path: Path) -> None:
    figure = sp.plots.tradeoff({ALL: run_of(ALL)})
    figure.write_html(tmp_path / "figure.html", include_plotlyjs="cdn")
    mine = sp.plots.tradeoff({"mine": run_of("mine")})
    mine.write_html(tmp_path / "mine.html", include_plotlyjs="cdn")
    written, expected = ((tmp_path / f"{name}.html").read_text("utf-8") for name in ("figure", "mine"))
    assert _Reader(written).tags == _Reader(expected).tags


class _Reader(HTMLParser):
    """A page as a browser takes it apart: its tags with the names of their attributes, and what a frame shows."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, ...]] = []
        self.frame = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, *(name for name, _ in attrs)))
        self.frame = dict(attrs).get("srcdoc") or self.frame
        assert not any((value or "").strip().lower().startswith("javascript:") for _, value in attrs)


def report_of(evil: str, folder: Path) -> sp.Page:
    stats = {evil: stats_of(1, evil, evil), f"{evil} 2": stats_of(2, evil, evil)}
    scores = sp.score(*stats.values())
    return sp.report(run_of(evil), folder / "r.html", stats=stats, scores=scores, examples={evil: examples_of(evil)})


def neuron_page_of(evil: str, _: Path) -> sp.Page:
    stats = {evil: stats_of(1, evil, evil)}
    scores = sp.score(*stats.values(), *stats.values())
    results = {"scores": scores, "run": run_of(evil), "examples": {evil: examples_of(evil)}}
    return sp.neuron_page(stats, site="mlp", layer=0, neuron=1, **results)


@pytest.mark.parametrize("make", [report_of, neuron_page_of])
def test_a_page_has_the_same_tags_whatever_the_names(make: Callable[..., sp.Page], tmp_path: Path) -> None:
    page = make(ALL, tmp_path)
    assert _Reader(page.html).tags == _Reader(make("mine", tmp_path).html).tags
    assert str(escape(visible(ALL))) in page.html
    told = re.sub(r"(?s)<script>.*?</script>", "", page.html)
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\u202a-\u202e\u2028]", told)
    shown = _Reader(page._repr_html_())
    assert [tag[0] for tag in shown.tags] == ["iframe"]
    assert shown.frame == page.html


@given(st.text())
def test_what_plotly_is_given_stands_for_the_text_itself(text: str) -> None:
    assert html.unescape(plain(text)) == visible(text)
    assert not {"<", "{", "$"} & set(plain(text))


@given(st.text())
def test_what_is_visible_can_be_printed(text: str) -> None:
    assert visible(text).isprintable()
    assert visible(visible(text)) == visible(text)


def test_plotly_itself_shows_every_name_letter_by_letter(tmp_path: Path) -> None:
    """In an SVG that it has drawn, whose text is read as XML."""
    require_image_export()
    figure = go.Figure(layout={"height": 900, "width": 1800})
    for evil in EVIL:
        figure.add_scatter(x=[1, 2], y=[1, 2], name=plain(evil))
    figure.write_image(tmp_path / "figure.svg")
    svg = ElementTree.parse(tmp_path / "figure.svg").getroot()
    legend = [text for text in svg.iter() if text.get("class") == "legendtext"]
    assert ["".join(text.itertext()) for text in legend] == [visible(evil) for evil in EVIL]
    assert not [tag for tag in svg.iter() if tag.tag.endswith(("script", "}a"))]
