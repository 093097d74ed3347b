"""Every figure shows long names of corpora, models, metrics and runs within the image, and in full on hover."""

import html
import json
from typing import Any

import pytest
from figure_layout import Drawn, draw
from hypothesis import given
from hypothesis import strategies as st
from test_escaping import figures_of

import sp_lens as sp
from sp_lens.plots._text import EM, ems, escape_plotly, fit, make_printable

pytestmark = pytest.mark.libraries

# Words, a path, capitals and wide characters: 198 characters, to which the tests of escaping append " 2".
LABEL = ("/models/a path" * 5 + "汉字的标签" * 8 + " LABEL OF " * 4 + " words" * 20)[:198]
FIGURES = figures_of(LABEL)
IN_TITLES_ONLY = {"score_map", "score_map of others", "head_map", "metric_agreement", "pruned_by_layer"}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Drawn]:
    papers = {f"{name} in a paper": sp.plots.for_paper(figure, width=178) for name, figure in FIGURES.items()}
    return draw(FIGURES | papers, tmp_path_factory.mktemp("figures"))


@pytest.mark.parametrize("suffix", ["", " in a paper"])
@pytest.mark.parametrize("name", FIGURES)
def test_no_text_is_outside_of_the_image_or_covers_another(name: str, suffix: str, drawn: dict[str, Drawn]) -> None:
    figure = drawn[name + suffix]
    assert figure.outside() == []
    for kind in ("annotation", "legendtext"):
        texts = [text for text in figure.texts if text.kind == kind]
        assert not [text for text in texts if any(text.overlaps(other) for other in texts if other is not text)]
    for axis, length in figure.axes.items():
        least = 180 if axis.startswith("x") else 60 if name == "ridgeline" else 130  # a ridgeline has one row
        assert length > least, axis


@pytest.mark.parametrize("name", [name for name in FIGURES if name not in IN_TITLES_ONLY])
def test_the_full_name_is_shown_on_hover(name: str) -> None:
    content = json.loads(str(FIGURES[name].to_json()))
    annotations = content["layout"].get("annotations", [])
    texts = [part.get(key) for part in (*content["data"], *annotations) for key in ("hovertemplate", "hovertext")]
    if name == "importance_scatter":  # whose axes have titles with the full name
        texts = [content["layout"][axis]["title"]["text"] for axis in ("xaxis", "yaxis")]
    named = [text for text in _strings(texts) if _plain(escape_plotly(LABEL)) in _plain(text)]
    assert named
    assert max(ems(line) for text in named for line in text.split("<br>")) * 14 < 850  # pixels


def _strings(part: Any) -> list[str]:
    return [part] if isinstance(part, str) else [text for item in part or () for text in _strings(item)]


def _plain(text: str) -> str:
    return text.replace("<br>", "").replace(" ", "")


@given(st.text(max_size=120), st.integers(5, 40), st.sampled_from([None, 2, 3]))
def test_lines_have_the_given_width(text: str, width: int, max_lines: int | None) -> None:
    lines = fit(text, width, max_lines=max_lines).replace("&lt;", "<").split("<br>")
    assert len(lines) <= (max_lines or 120)
    assert all(ems(html.unescape(line)) <= width + EM for line in lines)
    if max_lines is None:
        assert _plain(html.unescape("".join(lines))) == _plain(make_printable(text))
