"""The committed notebooks: executed, without warnings, with figures. `make test-notebooks` executes them again."""

import base64
import copy
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PNG = base64.b64decode("iVBORw0KGgo=")  # the first bytes of every PNG

nbformat = pytest.importorskip("nbformat", reason="needs nbformat: pip install '.[dev]'")


def _execute() -> Any:
    """Import notebooks/execute.py, which is not in a package."""
    spec = importlib.util.spec_from_file_location("execute", ROOT / "notebooks" / "execute.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


execute = _execute()


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def test_there_are_six_notebooks() -> None:
    assert len(NOTEBOOKS) == 6


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestNotebook:
    def test_the_notebook_is_valid_and_without_faults(self, path: Path) -> None:
        text = path.read_text("utf-8")
        notebook = nbformat.reads(text, as_version=4)
        nbformat.validate(notebook)
        assert execute.faults(notebook, text) == []

    def test_figures_are_png(self, path: Path) -> None:
        figures = [
            output["data"]["image/png"]
            for output in outputs(nbformat.read(path, as_version=4))
            if "image/png" in output.get("data", {})
        ]
        assert figures
        assert all(base64.b64decode(figure).startswith(PNG) for figure in figures)

    def test_the_notebook_is_tidy(self, path: Path) -> None:
        """Cells, identifiers and metadata do not change when the notebook is tidied again."""
        notebook = nbformat.read(path, as_version=4)
        again = copy.deepcopy(notebook)
        execute.tidy(again)
        for cell, tidied in zip(notebook.cells, again.cells, strict=True):
            assert (cell.id, cell.metadata, cell.source) == (tidied.id, tidied.metadata, tidied.source)
        assert notebook.metadata == again.metadata

    def test_the_notebook_begins_with_its_topic_and_duration(self, path: Path) -> None:
        notebook = nbformat.read(path, as_version=4)
        first = notebook.cells[0].source
        assert re.match(r"# .+\n\n\*This notebook shows [^*]+ minutes?\s+on\s+two\s+cores\.\*\n", first)
        assert len(re.findall(r'^MODEL = "demo"', "\n".join(cell.source for cell in notebook.cells), re.MULTILINE)) == 1

    def test_local_links_exist(self, path: Path) -> None:
        notebook = nbformat.read(path, as_version=4)
        text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
        links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
        assert [link for link in links if not (path.parent / link).exists()] == []


def notebook_with_fault(fault: str) -> Any:
    """Return the first notebook with a fault added."""
    notebook = nbformat.read(NOTEBOOKS[0], as_version=4)
    cell = next(cell for cell in notebook.cells if cell.cell_type == "code" and cell.outputs)
    match fault:
        case "path":
            cell.outputs[0] = nbformat.v4.new_output("stream", name="stdout", text="read /home/someone/text.txt")
        case "stderr":
            cell.outputs.append(nbformat.v4.new_output("stream", name="stderr", text="FutureWarning: soon"))
        case "error":
            cell.outputs.append(nbformat.v4.new_output("error", ename="E", evalue="", traceback=[]))
        case "not run":
            cell.execution_count = None
        case "no figure":
            for output in outputs(notebook):
                output.get("data", {}).pop("image/png", None)
        case "plotly":
            cell.outputs.append(nbformat.v4.new_output("display_data", {"application/vnd.plotly.v1+json": {}}))
        case "large":
            cell.outputs.append(nbformat.v4.new_output("stream", name="stdout", text="x" * execute.MAX_BYTES))
    return notebook


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("path", "a path of this machine: .*/home/someone"),
        ("stderr", "stderr: 'FutureWarning: soon'"),
        ("error", "a cell failed"),
        ("not run", "not run from top to bottom"),
        ("no figure", "pip install kaleido"),
        ("plotly", "GitHub omits"),
        ("large", "more than 1,000,000"),
    ],
)
def test_faults_of_a_notebook_are_found(fault: str, message: str) -> None:
    notebook = notebook_with_fault(fault)
    assert re.search(message, "; ".join(execute.faults(notebook, nbformat.writes(notebook))))


def test_progress_bars_are_removed_and_warnings_are_kept() -> None:
    cell = nbformat.v4.new_code_cell("1")
    texts = ["\rcollect: 10 tokens", "Loading weights: 100%|███| 68/68", "\n", "FutureWarning: soon"]
    cell.outputs = [nbformat.v4.new_output("stream", name="stderr", text=text) for text in texts]
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"widgets": {}})
    execute.tidy(notebook)
    assert [output.text for output in cell.outputs] == ["FutureWarning: soon"]
    assert "widgets" not in notebook.metadata
    assert cell.execution_count == 1
