"""Figures as files: HTML, PNG if there is a Chrome, and error messages that say what to install."""

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


def test_html_needs_no_chrome(figure: go.Figure, tmp_path: Path) -> None:
    write_figure(figure, tmp_path / "new" / "figure.html")
    assert "plotly" in (tmp_path / "new" / "figure.html").read_text("utf-8")


def test_a_png_has_the_scaled_size(figure: go.Figure, tmp_path: Path) -> None:
    require_image_export()
    write_figure(figure, tmp_path / "figure.png", scale=2)
    png = (tmp_path / "figure.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    width, height = (int.from_bytes(png[start : start + 4], "big") for start in (16, 20))
    assert (width, height) == (600, 400)


def test_without_a_chrome_the_error_says_what_to_install(
    figure: go.Figure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kaleido finds no Chrome on the PATH, none of its own, and none named by BROWSER_PATH."""
    pytest.importorskip("kaleido", reason="needs kaleido: pip install '.[export]'")
    errors = pytest.importorskip("choreographer.errors")

    def find_no_chrome(*_: object, **__: object) -> None:
        raise errors.ChromeNotFoundError

    monkeypatch.setattr("kaleido.calc_fig_sync", find_no_chrome)
    with pytest.raises(SpLensError, match=r"need pip install 'sp_lens\[export\]' and a Chrome \(apt-get"):
        write_figure(figure, tmp_path / "figure.png")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_suffix_is_rejected(figure: go.Figure, tmp_path: Path) -> None:
    with pytest.raises(SpLensError, match=r"cannot write .*figure\.xyz"):
        write_figure(figure, tmp_path / "figure.xyz")
