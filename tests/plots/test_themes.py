"""Templates: contrast and colour vision by computation, that every figure uses them, and figures for papers."""

import itertools
import json
import re
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
import pytest
import torch
from plot_factories import (
    MLP_LAYOUT,
    head_values,
    pruned_at_steps,
    run_of,
    stats_of,
    stats_with_histograms,
    varied,
)

import sp_lens as sp
from sp_lens.plots._layout import ordered_colours
from sp_lens.plots.themes import NEUTRAL, PALETTE, legend_lines

TEMPLATES: Any = sp.plots.TEMPLATES
VARIANTS = tuple(TEMPLATES)

# Machado, Oliveira & Fernandes (2009), severity 1, on linear RGB.
VISION = {
    "normal": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def linear(colour: str) -> np.ndarray:
    """Linear RGB of "#rrggbb" or "rgb(r, g, b)"."""
    if colour.startswith("#"):
        parts = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    else:
        parts = [float(part) for part in re.findall(r"[\d.]+", colour)[:3]]
    rgb = np.array(parts) / 255
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def contrast(colour: str, background: str) -> float:
    """Contrast ratio of WCAG 2.2, from 1 for equal colours to 21 for black on white."""
    dark, light = sorted(float(linear(each) @ [0.2126, 0.7152, 0.0722]) for each in (colour, background))
    return (light + 0.05) / (dark + 0.05)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of linear RGB, in which equal distances are about equally visible."""
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ np.clip(rgb, 0, 1)
    x, y, z = (np.cbrt(v) if v > 0.008856 else 7.787 * v + 16 / 116 for v in xyz / [0.9505, 1, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


SIZES = pd.DataFrame(
    {"parameters": [1e6, 4e6], "selectivity": [5.0, 9.0], "low": [4.0, 7.0], "high": [6.0, 12.0], "pair": ["a", "a"]}
)
STABILITY = pd.DataFrame(
    {"order": [0, 1], "folds": [1, 1], "tokens": [9.0, 9.0], "with_all": [0.5, 0.6], "with_others": [0.4, 0.5]}
)


def draw_figures() -> dict[str, Any]:
    """One figure of each function."""
    z = {"code": torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) / 3}
    histograms = {"code": stats_with_histograms(z["code"]), "prose": stats_with_histograms(z["code"] / 2)}
    stats = {
        "code": stats_of(varied(seed=1)),
        "prose": stats_of(varied(seed=2)),
        "novels": stats_of(varied(seed=3)),
    }
    forget, retain = stats["code"], stats["prose"]
    run = run_of(pruned_at={name: pruned_at_steps(*[0, 1] * 10) for name in MLP_LAYOUT.names})
    special = sp.specialisation(stats)
    return {
        "density": sp.plots.density(histograms, layer=0, neurons=range(6)),
        "density, highlighted": sp.plots.density(histograms, layer=0, neurons=range(6), highlight=[1]),
        "neuron_density": sp.plots.neuron_density(histograms, site="attn", layer=0, neuron=1),
        "ridgeline": sp.plots.ridgeline(histograms, site="attn", neurons=[(0, 1), (0, 4)]),
        "tradeoff": sp.plots.tradeoff({"ours": run, "random": run}),
        "perplexity": sp.plots.perplexity(run),
        "selectivity": sp.plots.selectivity([run, run_of(site="attn")]),
        "selectivity_by": sp.plots.selectivity_by(SIZES, x="parameters", series="pair"),
        "pruned_by_layer": sp.plots.pruned_by_layer(run),
        "score_map": sp.plots.score_map(sp.score(forget, retain)),
        "head_map": sp.plots.head_map(head_values([1, 2], [3, 4])),
        "importance_scatter": sp.plots.importance_scatter(forget, retain, fraction=0.1),
        "rank_stability": sp.plots.rank_stability(STABILITY),
        "metric_agreement": sp.plots.metric_agreement(forget, retain),
        "specialisation_by_layer": sp.plots.specialisation_by_layer(special, above=1),
        "cross_importance": sp.plots.cross_importance(special, fraction=0.1),
    }


@cache
def figures() -> dict[str, Any]:
    """The figures of `draw_figures`, for tests that do not change them."""
    return draw_figures()


def test_figures_has_one_figure_of_each_function() -> None:
    drawn = {name.split(",")[0] for name in figures()}
    assert drawn == set(sp.plots.__all__) - {"TEMPLATES", "for_paper"}


def test_figures_ignore_the_default_template_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: figure.to_json() for name, figure in figures().items()}
    monkeypatch.setattr(pio.templates, "default", "plotly_dark")
    registered = set(pio.templates)
    assert {name: figure.to_json() for name, figure in draw_figures().items()} == before
    assert pio.templates.default == "plotly_dark"
    assert set(pio.templates) == registered


def test_changing_the_template_of_one_figure_does_not_change_another() -> None:
    first, second = (sp.plots.tradeoff(run_of()) for _ in range(2))
    first["layout"]["template"]["layout"]["width"] = 400
    assert second["layout"]["template"]["layout"]["width"] == 900


@pytest.mark.parametrize("name", figures())
def test_every_figure_has_a_title_and_axis_titles(name: str) -> None:
    layout = figures()[name].layout
    assert layout.title.text
    assert layout.xaxis.title.text
    assert layout.yaxis.title.text or name == "ridgeline"  # whose ticks name the neurons


@pytest.mark.parametrize("variant", VARIANTS)
def test_text_and_series_have_enough_contrast_with_the_background(variant: str) -> None:
    layout = TEMPLATES[variant].layout
    background = layout.paper_bgcolor
    assert layout.plot_bgcolor == layout.hoverlabel.bgcolor == background
    for text in (
        layout.font.color,
        layout.title.subtitle.font.color,
        layout.hoverlabel.font.color,
        layout.shapedefaults.label.font.color,
    ):
        assert contrast(text, background) >= 4.5
    for series in (*PALETTE, NEUTRAL, *ordered_colours(100), layout.shapedefaults.line.color, layout.xaxis.linecolor):
        assert contrast(series, background) >= 3
    assert layout.colorway == PALETTE


@pytest.mark.parametrize("vision", VISION)
def test_series_are_as_distinguishable_as_those_of_okabe_and_ito(vision: str) -> None:
    matrix = np.array(VISION[vision])

    def nearest(colours: tuple[str, ...]) -> float:
        seen = [lab(matrix @ linear(colour)) for colour in colours]
        return min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(seen, 2))

    okabe_ito = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
    assert nearest(PALETTE) > 0.9 * nearest(okabe_ito)
    assert nearest(PALETTE) > 15


@pytest.mark.parametrize("name", figures())
def test_all_colours_set_by_a_figure_are_visible_on_every_background(name: str) -> None:
    figure = figures()[name]
    content = json.loads(str(figure.to_json()))
    del content["layout"]["template"]
    content["layout"].pop("plot_bgcolor", None)  # colour of missing cells in heatmaps
    for trace in content["data"]:
        trace.pop("colorscale", None)  # of heatmaps, which cover the whole plot
    text = json.dumps(content)
    colours = re.findall(r'"(?:color|bgcolor|fillcolor)":\s*"([^"]+)"', text)
    colours += re.findall(r"(?<![a-z-])color:\s*([^;'\"]+)", text)
    for colour in colours:
        opaque = re.sub(r"rgba\((.*), [\d.]+\)", r"rgb(\1)", colour)
        for variant in VARIANTS:
            assert contrast(opaque, TEMPLATES[variant].layout.paper_bgcolor) >= 3, colour


@pytest.mark.parametrize("name", figures())
def test_fonts_and_backgrounds_are_left_to_the_template(name: str) -> None:
    figure = figures()[name]
    layout: Any = json.loads(str(figure.to_json()))["layout"]
    assert layout.pop("template")["layout"]["paper_bgcolor"] == "#FFFFFF"
    assert not {"font", "paper_bgcolor", "hoverlabel", "colorway"} & set(layout)
    if "plot_bgcolor" in layout:  # colour of missing cells in heatmaps
        assert figure.data[0].type == "heatmap"
    assert '"size"' not in json.dumps(layout)
    assert "tickfont" not in json.dumps(layout)
    changed: Any = go.Figure(figure).update_layout(template=TEMPLATES["dark"])
    assert changed.layout.template.layout.paper_bgcolor == "#111111"


def test_text_in_print_has_at_least_seven_points() -> None:
    layout = TEMPLATES["print"].layout
    sizes = re.findall(r'"size":\s*([\d.]+)', json.dumps(layout.to_plotly_json()))
    assert len(sizes) > 8
    assert min(float(size) for size in sizes) * 72 / 96 >= 7
    assert layout.width / 96 == pytest.approx(178 / 25.4, abs=0.01)


@pytest.mark.parametrize("name", figures())
def test_for_paper_has_the_given_width_and_no_title(name: str) -> None:
    figure = figures()[name]
    before = json.loads(str(figure.to_json()))
    column: Any = sp.plots.for_paper(figure)
    page: Any = sp.plots.for_paper(figure, width=178)
    assert json.loads(str(figure.to_json())) == before
    for paper, inches in ((column, 86 / 25.4), (page, 178 / 25.4)):
        layout = paper.layout
        assert layout.width / 96 == pytest.approx(inches, abs=0.01)
        assert layout.title.text is None
        assert layout.title.subtitle.text is None
        assert layout.height >= 240
        assert layout.template.layout.font.size == TEMPLATES["print"].layout.font.size
        assert len(paper.data) == len(figure.data)
    titles, titles_in_column = (
        [(axis.title.text or "").replace("<br>", " ") for axis in [*each.select_xaxes(), *each.select_yaxes()]]
        for each in (figure, column)
    )
    assert titles == titles_in_column
    longest = max(len(line) for axis in column.select_yaxes() for line in (axis.title.text or "").split("<br>"))
    assert longest * 0.5 * 10.7 <= 0.7 * column.layout.height


def test_for_paper_rejects_a_width_in_inches() -> None:
    with pytest.raises(sp.SpLensError, match=r"width 3\.4: expected at least 40 millimetres; a column has 86 mm"):
        sp.plots.for_paper(figures()["tradeoff"], width=3.4)


@pytest.mark.parametrize(
    ("labels", "ems", "lines"),
    [([], 50, 0), (["abs"], 50, 1), (["a" * 20] * 4, 60, 1), (["a" * 20] * 4, 31, 2), (["a" * 200], 30, 1)],
)
def test_the_lines_of_a_legend_are_counted_from_the_lengths_of_the_labels(
    labels: list[str], ems: float, lines: int
) -> None:
    assert legend_lines(labels, ems) == lines
