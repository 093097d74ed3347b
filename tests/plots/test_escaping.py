"""Names from outside (tokens, corpora, models, runs) are shown as text in every figure and page and never run."""

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
from plot_factories import require_image_export, run_of

import sp_lens as sp
from sp_lens.plots._text import escape_plotly, make_printable
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
ALL = " ".join(EVIL)  # one name, for slow tests
# Figures that show the name only in the subtitle, where it may be broken into lines.
ONLY_IN_SUBTITLE = {"metric_agreement", "pruned_by_layer", "score_map", "head_map"}
OUR_TAGS = {"b", "br", "span", "sup", "extra"}  # the tags of plotly that the figures use


def stats_named(name: str, scale: float) -> sp.ActivationStats:
    """Statistics whose model and corpus have this name."""
    generator, edges = torch.Generator().manual_seed(0), torch.linspace(-9, 9, 7)
    moments = {}
    for group in LAYOUT:
        z = scale * torch.randn(50, group.width, generator=generator)
        histogram = Histogram.from_activations(z, edges, torch.arange(group.width))
        moments[group.name] = Moments.from_activations(z).with_histogram(histogram)
    return sp.ActivationStats(LAYOUT, moments, {"model": name, "corpora": [{"source": name}]})


def run_named(name: str) -> sp.PruneRun:
    """A run whose settings have this name wherever a name is possible."""
    about = {"source": name, "origin": name, "split": name, "tokens": 9, "versions": {name: name}}
    pruned_at = {group.name: torch.arange(group.width, dtype=torch.int32) % 3 for group in LAYOUT}
    settings = {"model": name, "metric": name, "unit": name, "corpora": {"forget": about, "retain": about}}
    return run_of(layout=LAYOUT, pruned_at=pruned_at, **settings)


def examples_named(name: str) -> sp.TopExamples:
    example = Example((name, "b"), (1.0, 2.0), 1, 0, 1, name)
    return sp.TopExamples(LAYOUT, {LAYOUT.names[1]: dict.fromkeys(range(6), (example,))}, {"model": name})


def figures_of(evil: str) -> dict[str, go.Figure]:
    stats = {evil: stats_named(evil, 1), f"{evil} 2": stats_named(evil, 2)}
    forget, retain = stats.values()
    run, special = run_named(evil), sp.specialisation(stats)
    scores = sp.score(forget, retain)
    named = sp.NeuronValues(LAYOUT, scores.tensors, {"metric": evil, "model": evil})
    by_size = pd.DataFrame({"selectivity": [1.0], "low": [0.5], "high": [1.5], "tokens": [9], "who": [evil]})
    return {
        "density": sp.plots.density(stats, layer=0, neurons=range(4)),
        "neuron_density": sp.plots.neuron_density(stats, site="mlp", layer=0, neuron=1),
        "ridgeline": sp.plots.ridgeline(stats, site="mlp", neurons=[(0, 1)]),
        "tradeoff": sp.plots.tradeoff({evil: run}),
        "perplexity": sp.plots.perplexity({evil: run}),
        "selectivity": sp.plots.selectivity([run, run_named(f"{evil} 2")]),
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
    """Every string in a figure except those of its template."""
    if isinstance(part, dict):
        return [text for key, value in part.items() if key != "template" for text in texts_in(value)]
    if isinstance(part, list):
        return [text for item in part for text in texts_in(item)]
    return [part] if isinstance(part, str) else []


@pytest.mark.parametrize("evil", EVIL)
def test_names_add_no_tags_and_no_placeholders_to_a_figure(evil: str) -> None:
    for name, figure in figures_of(evil).items():
        drawn = figure.to_plotly_json()
        for trace in drawn["data"]:
            trace.pop("legendgroup", None)  # never shown
        texts = texts_in(json.loads(go.Figure(drawn).to_json() or ""))
        tags = {tag.lower() for text in texts for tag in re.findall(r"</?([^\s>/]+)", text)}
        assert tags <= OUR_TAGS, name
        for text in texts:
            placeholders = re.findall(r"%{([^}]*)}", text)
            allowed = r"[xy](:.*)?|customdata(\[\d\])?(:.*)?|(hover)?text"
            assert all(re.fullmatch(allowed, placeholder) for placeholder in placeholders), name
            assert "$" not in text, name  # a formula if the notebook has MathJax
        if name not in ONLY_IN_SUBTITLE:
            assert any(escape_plotly(evil) in text for text in texts), name


def test_names_add_no_tags_to_the_html_of_a_figure(tmp_path: Path) -> None:
    figure = sp.plots.tradeoff({ALL: run_named(ALL)})
    figure.write_html(tmp_path / "figure.html", include_plotlyjs="cdn")
    mine = sp.plots.tradeoff({"mine": run_named("mine")})
    mine.write_html(tmp_path / "mine.html", include_plotlyjs="cdn")
    written, expected = ((tmp_path / f"{name}.html").read_text("utf-8") for name in ("figure", "mine"))
    assert _Reader(written).tags == _Reader(expected).tags


class _Reader(HTMLParser):
    """The tags of a page with the names of their attributes, and the content of its frame."""

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
    stats = {evil: stats_named(evil, 1), f"{evil} 2": stats_named(evil, 2)}
    scores = sp.score(*stats.values())
    return sp.report(
        run_named(evil), folder / "r.html", stats=stats, scores=scores, examples={evil: examples_named(evil)}
    )


def neuron_page_of(evil: str, _: Path) -> sp.Page:
    stats = {evil: stats_named(evil, 1)}
    scores = sp.score(*stats.values(), *stats.values())
    results = {"scores": scores, "run": run_named(evil), "examples": {evil: examples_named(evil)}}
    return sp.neuron_page(stats, site="mlp", layer=0, neuron=1, **results)


@pytest.mark.parametrize("make", [report_of, neuron_page_of])
def test_names_add_no_tags_to_a_page(make: Callable[..., sp.Page], tmp_path: Path) -> None:
    page = make(ALL, tmp_path)
    assert _Reader(page.html).tags == _Reader(make("mine", tmp_path).html).tags
    assert str(escape(make_printable(ALL))) in page.html
    text = re.sub(r"(?s)<script>.*?</script>", "", page.html)
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\u202a-\u202e\u2028]", text)
    shown = _Reader(page._repr_html_())
    assert [tag[0] for tag in shown.tags] == ["iframe"]
    assert shown.frame == page.html


@given(st.text())
def test_escaped_text_has_no_markup_and_unescapes_to_the_text(text: str) -> None:
    assert html.unescape(escape_plotly(text)) == make_printable(text)
    assert not {"<", "{", "$"} & set(escape_plotly(text))


@given(st.text())
def test_printable_text_can_be_printed_and_is_stable(text: str) -> None:
    assert re.sub("[\\u200c\\u200d]", "", make_printable(text)).isprintable()
    assert make_printable(make_printable(text)) == make_printable(text)


def test_plotly_shows_every_name_unchanged_in_an_svg(tmp_path: Path) -> None:
    require_image_export()
    figure = go.Figure(layout={"height": 900, "width": 1800})
    for evil in EVIL:
        figure.add_scatter(x=[1, 2], y=[1, 2], name=escape_plotly(evil))
    figure.write_image(tmp_path / "figure.svg")
    svg = ElementTree.parse(tmp_path / "figure.svg").getroot()
    legend = [text for text in svg.iter() if text.get("class") == "legendtext"]
    assert ["".join(text.itertext()) for text in legend] == [make_printable(evil) for evil in EVIL]
    assert not [tag for tag in svg.iter() if tag.tag.endswith(("script", "}a"))]
