"""Execute notebooks and save them in place with outputs: `make notebooks`.

Names of notebooks can be given as arguments; by default all are executed.
Figures are saved as PNG, which GitHub displays; kaleido and a Chrome draw them.
Progress bars, timings and other output that changes between runs are removed.
A notebook is not saved if its output has a warning, an error, or a path of this
machine, or if it has no figure.
"""

import base64
import io
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
MAX_BYTES = 1_000_000
PATHS = re.compile(
    r"/(?:home|root|work|tmp|Users|private|var/folders|opt)/[^\s'\"]*"
    r"|[A-Z]:\\\\?Users"
)
PROGRESS_BAR = re.compile(r"\r|\d+%\|")
HIGHER_RESOLUTION = (
    "import plotly.io as pio\n\npio.defaults.default_scale = 1.5"
)
OPTIONS = {"timeout": 600, "kernel_name": "python3", "record_timing": False}


def main(names: list[str]) -> None:
    """Execute, tidy, check and save the notebooks."""
    # These variables must be set before a kernel starts. Without ipywidgets,
    # tqdm warns that it shows plain progress bars.
    os.environ |= {
        "PLOTLY_RENDERER": "png",
        "PYTHONWARNINGS": "ignore:IProgress not found",
        "HF_HUB_OFFLINE": "1",
    }
    for path in map(Path, names) if names else sorted(FOLDER.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        resolution = nbformat.v4.new_code_cell(HIGHER_RESOLUTION)
        notebook.cells.insert(0, resolution)
        with tempfile.TemporaryDirectory() as folder:  # for written files
            resources: dict[str, Any] = {"metadata": {"path": folder}}
            NotebookClient(notebook, resources=resources, **OPTIONS).execute()
        del notebook.cells[0]
        tidy(notebook)
        shrink(notebook)
        text = nbformat.writes(notebook) + "\n"
        if problems := "; ".join(faults(notebook, text)):
            raise SystemExit(f"{path.name} is not saved: {problems}")
        path.write_text(text, "utf-8")
        print(f"{path.name}: {len(text.encode()) / 1e3:.0f} kB")


def tidy(notebook: Any) -> None:
    """Remove progress bars and everything that differs between two runs."""
    notebook.metadata = {
        "kernelspec": {
            "display_name": "Python 3",
            "language": "python",
            "name": "python3",
        },
        "language_info": {"name": "python"},
    }
    count = 0
    for index, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{index:02d}", {}
        if cell.cell_type != "code":
            continue
        count += 1
        cell.execution_count = count
        cell.outputs = [
            output for output in cell.outputs if not _is_progress_bar(output)
        ]
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = count


def shrink(notebook: Any) -> None:
    """Reduce figures to 256 colours, which are enough and take fewer bytes."""
    from PIL import Image

    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                png = base64.b64decode(output.data["image/png"])
                image = Image.open(io.BytesIO(png)).convert("RGB")
                image = image.quantize(256, dither=Image.Dither.NONE)
                image.save(buffer := io.BytesIO(), "PNG", optimize=True)
                encoded = base64.b64encode(buffer.getvalue()).decode()
                output.data["image/png"] = encoded + "\n"


def faults(notebook: Any, text: str) -> list[str]:
    """Return the reasons why an executed notebook should not be committed."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in code for output in cell.outputs]
    reasons = []
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        reasons.append("it was not run from top to bottom")
    if any(output.output_type == "error" for output in outputs):
        reasons.append("a cell failed")
    stderr = [
        output["text"] for output in outputs if output.get("name") == "stderr"
    ]
    if stderr:
        reasons.append(f"there is text on stderr: {stderr[0][:200]!r}")
    data = [output["data"] for output in outputs if "data" in output]
    if not any("image/png" in formats for formats in data):
        reasons.append(
            "it has no PNG: pip install kaleido, and install a Chrome "
            "(plotly_get_chrome, or chromium on Debian)"
        )
    if any(
        "plotly" in f"{list(formats)} {formats.get('text/html', '')}"
        for formats in data
    ):
        reasons.append("a figure is in plotly's format, which GitHub omits")
    texts = [str({**formats, "image/png": ""}) for formats in data]
    texts += [str(output.get("text", "")) for output in outputs]
    if path := PATHS.search("\n".join(texts)):
        reasons.append(f"an output has a path of this machine: {path[0]!r}")
    if len(text.encode()) > MAX_BYTES:
        reasons.append(
            f"it has {len(text.encode()):,} bytes, more than {MAX_BYTES:,}"
        )
    return reasons


def _is_progress_bar(output: Any) -> bool:
    on_stderr = output.output_type == "stream" and output.name == "stderr"
    return on_stderr and bool(
        PROGRESS_BAR.search(output.text) or not output.text.strip()
    )


if __name__ == "__main__":
    main(sys.argv[1:])
