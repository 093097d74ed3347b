"""Run notebooks in place and save them as they are committed: `make notebooks`.

Or name some of them. Figures come as PNG (kaleido and a Chrome draw them),
which GitHub shows. Progress bars, timings and what else differs from run to run
are left out; warnings, paths of this machine and missing figures are refused.
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

HERE = Path(__file__).parent
MOST_BYTES = 1_000_000
PATHS = re.compile(
    r"/(?:home|root|work|tmp|Users|private|var/folders|opt)/[^\s'\"]*"
    r"|[A-Z]:\\\\?Users"
)
BAR = re.compile(r"\r|\d+%\|")
SHARPER = "import plotly.io as pio\n\npio.defaults.default_scale = 1.5"
OPTIONS = {"timeout": 600, "kernel_name": "python3", "record_timing": False}


def main(names: list[str]) -> None:
    """Execute, tidy, check, save."""
    # Before any kernel starts. Without ipywidgets tqdm warns of plain bars.
    os.environ |= {
        "PLOTLY_RENDERER": "png",
        "PYTHONWARNINGS": "ignore:IProgress not found",
        "HF_HUB_OFFLINE": "1",
    }
    for path in map(Path, names) if names else sorted(HERE.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        notebook.cells.insert(0, nbformat.v4.new_code_cell(SHARPER))
        with tempfile.TemporaryDirectory() as folder:  # for what it writes
            where: dict[str, Any] = {"metadata": {"path": folder}}
            NotebookClient(notebook, resources=where, **OPTIONS).execute()
        del notebook.cells[0]
        tidy(notebook)
        shrink(notebook)
        text = nbformat.writes(notebook) + "\n"
        if found := "; ".join(faults(notebook, text)):
            raise SystemExit(f"{path.name} is left as it was: {found}")
        path.write_text(text, "utf-8")
        print(f"{path.name}: {len(text.encode()) / 1e3:.0f} kB")


def tidy(notebook: Any) -> None:
    """Leave out progress bars and all that differs between two runs."""
    notebook.metadata = {
        "kernelspec": {
            "display_name": "Python 3",
            "language": "python",
            "name": "python3",
        },
        "language_info": {"name": "python"},
    }
    count = 0
    for place, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{place:02d}", {}
        if cell.cell_type != "code":
            continue
        count += 1
        cell.execution_count = count
        cell.outputs = [
            output for output in cell.outputs if not _is_bar(output)
        ]
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = count


def shrink(notebook: Any) -> None:
    """The pictures in 256 colours: enough for a figure, and fewer bytes."""
    from PIL import Image

    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                png = base64.b64decode(output.data["image/png"])
                picture = Image.open(io.BytesIO(png)).convert("RGB")
                picture = picture.quantize(256, dither=Image.Dither.NONE)
                picture.save(written := io.BytesIO(), "PNG", optimize=True)
                encoded = base64.b64encode(written.getvalue()).decode()
                output.data["image/png"] = encoded + "\n"


def faults(notebook: Any, text: str) -> list[str]:
    """Why a notebook should not be committed as it is."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in code for output in cell.outputs]
    found = []
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        found.append("it was not run from top to bottom")
    if any(output.output_type == "error" for output in outputs):
        found.append("a cell failed")
    noise = [
        output["text"] for output in outputs if output.get("name") == "stderr"
    ]
    if noise:
        found.append(f"there is text on stderr: {noise[0][:200]!r}")
    data = [output["data"] for output in outputs if "data" in output]
    if not any("image/png" in one for one in data):
        found.append(
            "it has no PNG: pip install kaleido, and have a Chrome "
            "(plotly_get_chrome, or Debian's chromium)"
        )
    forms = "".join(f"{list(one)} {one.get('text/html', '')}" for one in data)
    if "plotly" in forms:
        found.append("a figure is plotly's own, which GitHub does not show")
    texts = [str({**one, "image/png": ""}) for one in data]
    texts += [str(output.get("text", "")) for output in outputs]
    if path := PATHS.search("\n".join(texts)):
        found.append(f"an output has a path of this machine: {path[0]!r}")
    if len(text.encode()) > MOST_BYTES:
        found.append(
            f"it has {len(text.encode()):,} bytes, more than {MOST_BYTES:,}"
        )
    return found


def _is_bar(output: Any) -> bool:
    on_stderr = output.output_type == "stream" and output.name == "stderr"
    return on_stderr and bool(
        BAR.search(output.text) or not output.text.strip()
    )


if __name__ == "__main__":
    main(sys.argv[1:])
