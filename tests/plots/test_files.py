"""Figures as files: a PNG where there is a Chrome, and a message that helps where there is none."""

from pathlib import Path

import plotly.graph_objects as go
import pytest
from plot_factories import require_image_export

from sp_lens.errors import SpLensError
from sp_lens.plots._files import write_figure

pytestmark = pytest.mark.libraries


@pytest.fixture
def figure() -> go.Figure:
    return go.Figure(layout={"width": 300, "height": 200}).add_scatter(y=[1, 3, 2])


def test_html_needs_nothing_else(figure: go.Figure, tmp_path: Path) -> None:
    write_figure(figure, tmp_path / "new" / "figure.html")
    assert "plotly" in (tmp_path / "new" / "figure.html").read_text("utf-8")


def test_png(figure: go.Figure, tmp_path: Path) -> None:
    require_image_export()
    write_figure(figure, tmp_path / "figure.png", scale=2)
    png = (tmp_path / "figure.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    assert [int.from_bytes(png[at : at + 4], "big") for at in (16, 20)] == [600, 400]  # width and height


def test_without_a_chrome_it_is_said_what_to_install(
    figure: go.Figure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As kaleido finds none: nothing on the path, none of its own, none named by BROWSER_PATH."""
    pytest.importorskip("kaleido", reason="needs kaleido: pip install '.[export]'")
    errors = pytest.importorskip("choreographer.errors")

    def nowhere(*_: object, **__: object) -> None:
        raise errors.ChromeNotFoundError

    monkeypatch.setattr("kaleido.calc_fig_sync", nowhere)
    with pytest.raises(SpLensError, match=r"need pip install 'sp_lens\[export\]' and a Chrome \(apt-get"):
        write_figure(figure, tmp_path / "figure.png")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_ending_is_refused(figure: go.Figure, tmp_path: Path) -> None:
    with pytest.raises(SpLensError, match=r"cannot write .*figure\.xyz"):
        write_figure(figure, tmp_path / "figure.xyz")
