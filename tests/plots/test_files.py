"""Figures as files: HTML, PNG if there is a Chrome, and error messages that say what to install."""

import os
from pathlib import Path

import plotly.graph_objects as go
import pytest
from plot_factories import require_image_export

from sp_lens.errors import SpLensError
from sp_lens.plots._files import write_figure
from sp_lens.plots.themes import TEMPLATES

pytestmark = pytest.mark.libraries


@pytest.fixture
def figure() -> go.Figure:
    return go.Figure(layout={"width": 300, "height": 200}).add_scatter(y=[1, 3, 2])


def test_html_needs_no_chrome(figure: go.Figure, tmp_path: Path) -> None:
    write_figure(figure, tmp_path / "new" / "figure.html")
    assert "plotly" in (tmp_path / "new" / "figure.html").read_text("utf-8")


def test_a_png_has_the_scaled_size(figure: go.Figure, tmp_path: Path) -> None:
    require_image_export()
    write_figure(figure, tmp_path / "figure.PNG", scale=2)
    png = (tmp_path / "figure.PNG").read_bytes()
    assert png.startswith(b"\x89PNG")
    width, height = (int.from_bytes(png[start : start + 4], "big") for start in (16, 20))
    assert (width, height) == (600, 400)


def test_suffixes_are_read_in_either_case(figure: go.Figure, tmp_path: Path) -> None:
    write_figure(figure, tmp_path / "figure.HTML")
    assert "plotly" in (tmp_path / "figure.HTML").read_text("utf-8")


def test_without_a_chrome_the_error_says_what_to_install(
    figure: go.Figure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("kaleido", reason="needs kaleido: pip install '.[export]'")
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "missing"))
    with pytest.raises(SpLensError, match=r"need pip install 'sp_lens\[export\]' and a Chrome \(apt-get"):
        write_figure(figure, tmp_path / "figure.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="the browser of this test is a shell script")
def test_a_chrome_that_does_not_answer_is_ended(
    figure: go.Figure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("kaleido", reason="needs kaleido: pip install '.[export]'")
    browser = tmp_path / "browser"
    browser.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 60\n")
    browser.chmod(0o755)
    monkeypatch.setenv("BROWSER_PATH", str(browser))
    monkeypatch.setattr("sp_lens.plots._files.TIME_LIMIT", 0.5)
    with pytest.raises(SpLensError, match=r"did not finish within 0\.5 seconds.*figure\.html instead"):
        write_figure(figure, tmp_path / "figure.png")
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert not (tmp_path / "figure.png").exists()


def test_a_figure_that_plotly_js_cannot_draw_is_reported(tmp_path: Path) -> None:
    require_image_export()
    labels = [f"{number} " + "corpus " * 8 for number in range(3)]  # which leave no space for the axes
    layout = {
        "template": TEMPLATES["notebook"],
        "width": 680,
        "height": 480,
        "title": {"text": "A", "subtitle": {"text": "b"}},
    }
    figure = go.Figure(go.Heatmap(z=[[1] * 3] * 3, x=labels, y=labels), layout)
    figure.update_xaxes(constrain="domain", type="category", title_text="x")
    figure.update_yaxes(type="category", title_text="y", autorange="reversed")
    with pytest.raises(SpLensError, match=r"Chrome failed to draw the figure.*KaleidoError"):
        write_figure(figure, tmp_path / "figure.png")


def test_an_unknown_suffix_is_rejected(figure: go.Figure, tmp_path: Path) -> None:
    with pytest.raises(SpLensError, match=r"unknown suffix of .*figure\.xyz '\.xyz': choose one of '\.html', '\.png'"):
        write_figure(figure, tmp_path / "figure.xyz")
