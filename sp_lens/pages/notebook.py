"""Share one copy of plotly.js (5 MB) among the pages in a notebook."""

import json
import sys
from typing import Any

from plotly.offline import get_plotlyjs

# Replaces plotly.js in a frame. It keeps the calls of plotly.js until the output that contains plotly.js is there,
# which may be further down in the notebook, or not yet be rendered.
_LOADER = """
(() => {
  const calls = [], figures = () => document.querySelectorAll(".plotly-graph-div");
  window.Plotly = {newPlot: (...call) => calls.push(call)};
  const load = () => {
    if (!window.parent.spLensPlotly) {
      figures().forEach(div => div.textContent = "The figure needs plotly.js, which is in the output of the first " +
        "page in this notebook. If that output was removed, restart the kernel and run the notebook again.");
      setTimeout(load, 300);
      return;
    }
    const script = document.createElement("script");
    script.textContent = window.parent.spLensPlotly;
    document.head.append(script);
    figures().forEach(div => div.textContent = "");
    calls.forEach(call => Plotly.newPlot(...call));
  };
  addEventListener("DOMContentLoaded", load);
})();
"""


def notebook_parts(html: str) -> tuple[str, str]:
    """Return a page for a frame in a notebook, and plotly.js as a JavaScript string that goes beside the frame.

    The string is empty if an earlier output of the same kernel has it, or the page has no figure. Outside of a Jupyter
    kernel, and in Colab, where outputs cannot reach each other, the page is returned unchanged.
    """
    shell = _shell()
    if shell is None:
        return html, ""
    page = html.replace(get_plotlyjs(), _LOADER, 1)
    if "Plotly.newPlot(" not in page.replace(_LOADER, "", 1) or not _first_output(shell):
        return page, ""
    return page, json.dumps(get_plotlyjs()).replace("<", "\\u003c")  # so that no text in it ends the script


def _shell() -> Any:
    """Return the shell of the Jupyter kernel that runs this code, or None."""
    if "IPython" not in sys.modules or "google.colab" in sys.modules:
        return None
    from IPython.core.getipython import get_ipython

    shell = get_ipython()
    return shell if hasattr(shell, "get_parent") else None


def _first_output(shell: Any) -> bool:
    """Return whether the output that is being made has to contain plotly.js, and remember the cell if so.

    When the cell whose output contains plotly.js is run again, its output is replaced and needs plotly.js again.
    """
    request = shell.get_parent()
    cell, run = request.get("metadata", {}).get("cellId"), request["header"]["msg_id"]
    first_cell, first_run = shell.meta.get("sp_lens_plotly", (None, None))  # IPython keeps this for extensions
    if first_run is not None and (run == first_run or cell is None or cell != first_cell):
        return False
    shell.meta["sp_lens_plotly"] = cell, run
    return True
