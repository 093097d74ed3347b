"""Draw figures in a headless Chromium and measure where their texts and axes are."""

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import plotly.graph_objects as go
import pytest
from plotly.offline import get_plotlyjs

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SCRIPT = """
async function measure() {
  const result = {};
  for (const [name, {data, layout}] of Object.entries(figures)) {
    const div = document.body.appendChild(document.createElement("div"));
    layout.width ??= layout.template.layout.width;
    try { await Plotly.newPlot(div, data, layout); }
    catch (error) { result[name] = {error: String(error)}; continue; }
    const image = div.querySelector(".main-svg").getBoundingClientRect();
    const texts = [...div.querySelectorAll("text")].filter(text => text.textContent).map(text => {
      const box = text.getBoundingClientRect();
      const kind = text.closest(".legendtext, .annotation, .g-gtitle, .xtick, .ytick, .g-xtitle, .g-ytitle");
      return {kind: kind?.getAttribute("class") ?? "other", text: text.textContent,
              left: box.left - image.left, right: box.right - image.left,
              top: box.top - image.top, bottom: box.bottom - image.top};
    });
    const axes = Object.keys(div._fullLayout).filter(key => /^[xy]axis/.test(key));
    result[name] = {width: image.width, height: image.height, texts,
                    axes: Object.fromEntries(axes.map(key => [key, div._fullLayout[key]._length]))};
    Plotly.purge(div);
    div.remove();
  }
  document.body.innerHTML = "";
  document.body.appendChild(document.createElement("pre")).textContent = encodeURIComponent(JSON.stringify(result));
}
measure();
"""


class Text(NamedTuple):
    """A text in an image: the class of its SVG element, and its bounding box in pixels from the top left corner."""

    kind: str
    text: str
    left: float
    right: float
    top: float
    bottom: float

    def overlaps(self, other: "Text") -> bool:
        """Return whether the boxes of both texts share more than a pixel."""
        beside = self.left > other.right - 1 or other.left > self.right - 1
        return not (beside or self.top > other.bottom - 1 or other.top > self.bottom - 1)


class Drawn(NamedTuple):
    """A figure as drawn: its size, its texts and the lengths of its axes in pixels."""

    width: float
    height: float
    texts: list[Text]
    axes: dict[str, float]

    def outside(self) -> list[Text]:
        """Return the texts that are not completely inside of the image."""
        return [
            text
            for text in self.texts
            if min(text.left, text.top) < 0 or text.right > self.width or text.bottom > self.height
        ]


def draw(figures: Mapping[str, go.Figure], folder: Path) -> dict[str, Drawn]:
    """Return each figure as plotly.js draws it; skip the test without a Chromium."""
    if CHROMIUM is None:
        pytest.skip("needs a Chromium")
    drawings = ",".join(f"{json.dumps(name)}: {figure.to_json()}" for name, figure in figures.items())
    page = f"<script>{get_plotlyjs()}</script><body><script>const figures = {{{drawings}}};{SCRIPT}</script>"
    (folder / "figures.html").write_text(f"<!DOCTYPE html><meta charset=utf-8>{page}", "utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=60000", "--dump-dom"]
    opened = subprocess.run(
        [CHROMIUM, *flags, f"--user-data-dir={folder / 'profile'}", (folder / "figures.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    (encoded,) = re.findall(r"<pre>(.*)</pre>", opened.stdout)
    results: dict[str, Any] = json.loads(unquote(encoded))
    if errors := {name: result["error"] for name, result in results.items() if "error" in result}:
        pytest.fail(f"plotly.js cannot draw {errors}")
    return {
        name: Drawn(result["width"], result["height"], [Text(**text) for text in result["texts"]], result["axes"])
        for name, result in results.items()
    }
