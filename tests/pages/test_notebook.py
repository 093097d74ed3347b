"""Pages in a real Jupyter kernel: plotly.js is in the notebook once, and a browser draws the figures of all pages."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from figure_layout import CHROMIUM

nbformat: Any = pytest.importorskip("nbformat")
nbclient: Any = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

PAGE = """
import plotly.graph_objects as go
from sp_lens.pages.page import Figure, Section, render_page

def page(name, figures=1):
    parts = [Figure(go.Figure().add_scatter(y=[1, 3, 2]), "A curve", f"figure-{i}") for i in range(figures)]
    return render_page(name, "", [Section("Figures", "figures", parts)])
"""
COUNT = """
<script>
setTimeout(() => {
  const frames = [...document.querySelectorAll("iframe")].map(frame => frame.contentDocument);
  const counts = frames.map(frame => frame.querySelectorAll(".main-svg").length);
  document.body.innerHTML = `<pre>${counts}</pre>`;
}, 4000);
</script>
"""


@pytest.fixture(scope="module")
def outputs() -> list[str]:
    """Return the HTML outputs of a notebook with a page without figures and three pages with figures."""
    cells = [PAGE, 'page("none", 0)', 'page("first")', 'page("second", 2)', 'page("third")']
    notebook = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, cells)))
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    return [cell.outputs[0].data["text/html"] for cell in notebook.cells[1:]]


def test_plotly_js_is_in_the_notebook_once(outputs: list[str]) -> None:
    assert ["window.spLensPlotly = " in output for output in outputs] == [False, True, False, False]
    megabytes = [len(output) / 1e6 for output in outputs]
    assert 4 < megabytes[1] < 6
    assert max(megabytes[0], *megabytes[2:]) < 0.05


@pytest.mark.parametrize("reverse", [False, True])
def test_a_browser_draws_the_figures_of_all_pages(outputs: list[str], tmp_path: Path, *, reverse: bool) -> None:
    """In the reversed notebook, the frames that need plotly.js are above the output that contains it."""
    if CHROMIUM is None:
        pytest.skip("needs a Chromium")
    listed = outputs[::-1] if reverse else outputs
    (tmp_path / "notebook.html").write_text(f"<!DOCTYPE html><body>{''.join(listed)}{COUNT}", "utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000", "--dump-dom"]
    opened = subprocess.run(
        [CHROMIUM, *flags, f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "notebook.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    (counts,) = re.findall(r"<pre>(.*)</pre>", opened.stdout)
    drawn = [int(count) for count in counts.split(",")]
    none, first, second, third = drawn[::-1] if reverse else drawn
    assert none == 0
    assert first == third > 0
    assert second == 2 * first
