"""The package `sp_lens.plots`: what importing it loads, and the table of figures in its docstring."""

import subprocess
import sys
from pathlib import Path

import pytest

import sp_lens as sp

pytestmark = pytest.mark.libraries

FIGURES = set(sp.plots.__all__) - {"TEMPLATES", "for_paper"}
PAPER_FIGURES = {"tradeoff": 2, "perplexity": 3, "selectivity": 4, "density": 5}


def test_importing_plots_loads_neither_torch_nor_a_model_library() -> None:
    package = str(Path(sp.__file__).parent)
    code = f"""
import sys, types
sys.modules["sp_lens"] = types.ModuleType("sp_lens")  # skip __init__, which may import more
sys.modules["sp_lens"].__path__ = [{package!r}]
import sp_lens.plots
print(sorted({{"torch", "transformers", "transformer_lens"}} & set(sys.modules)))
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_docstring_lists_every_figure() -> None:
    rows = [line.split("|")[1].strip(" `") for line in str(sp.plots.__doc__).splitlines() if line.startswith("| `")]
    assert sorted(rows) == sorted(FIGURES)


@pytest.mark.parametrize("name", sorted(FIGURES))
def test_docstrings_begin_with_the_figure_of_the_paper(name: str) -> None:
    function = getattr(sp.plots, name)
    module = str(sys.modules[function.__module__].__doc__).splitlines()[0]
    if name in PAPER_FIGURES:
        assert module.startswith(f"Figure {PAPER_FIGURES[name]} of the paper: ")
        assert f"Figure {PAPER_FIGURES[name]} of arXiv 2403.01267" in function.__doc__.splitlines()[0]
    else:
        assert "not in the paper" in module
