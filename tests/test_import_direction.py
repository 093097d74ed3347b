"""Test that a package imports only from the packages before it in `ORDER`, and the sizes of modules and folders."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import sp_lens as sp

ROOT = Path(sp.__file__).parent
# `evaluation` comes before `interventions`, because the effect of an ablation is measured by the loss.
ORDER = (
    "errors", "typing", "distributed", "storage", "neurons", "models", "data", "statistics", "scoring", "evaluation",
    "interventions", "pruning", "unlearning", "plots", "pages", "experiments", "cli",
)  # fmt: skip
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))
FOLDERS = sorted({str(Path(module).parent) for module in MODULES})
LONGEST, SHORTEST, MODULES_PER_FOLDER = 300, 30, 14


def imported_packages(source: str) -> Iterator[str]:
    """Yield the packages of sp_lens that a module imports from, also in functions and for type checking."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "sp_lens":
            parts = node.module.split(".")
            yield from parts[1:2] or [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("sp_lens."))


def violations(package: str, source: str) -> list[str]:
    """Return the packages that a module of `package` imports from although they come later."""
    return [other for other in imported_packages(source) if ORDER.index(other) > ORDER.index(package)]


def test_the_order_lists_all_packages() -> None:
    assert {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or path.is_dir()} - {
        "__init__", "__pycache__", "assets",
    } == set(ORDER)  # fmt: skip


@pytest.mark.parametrize("module", [module for module in MODULES if not module.startswith("assets/")])
def test_imports_point_one_way(module: str) -> None:
    package = Path(module).with_suffix("").parts[0]
    if package != "__init__":  # the public names are imported lazily
        assert violations(package, (ROOT / module).read_text("utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "from sp_lens.cli.plot import add_plot",
        "from sp_lens import plots",
        "import sp_lens.pages.report",
        "def draw():\n    from sp_lens.plots.themes import PALETTE",
    ],
)
def test_an_import_in_the_wrong_direction_is_detected(source: str) -> None:
    assert violations("statistics", source)
    assert not violations("cli", source)


@pytest.mark.parametrize("module", MODULES)
def test_modules_are_neither_too_long_nor_too_short(module: str) -> None:
    lines = len((ROOT / module).read_text("utf-8").splitlines())
    assert lines <= LONGEST
    assert lines >= SHORTEST or Path(module).name in ("__init__.py", "errors.py")


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_have_few_modules(folder: str) -> None:
    modules = [module for module in MODULES if str(Path(module).parent) == folder and Path(module).stem != "__init__"]
    assert len(modules) <= MODULES_PER_FOLDER
