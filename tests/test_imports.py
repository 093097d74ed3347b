"""Test that importing sp_lens and showing help imports no heavy library, and that public names load lazily."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import sp_lens as sp

HEAVY = (
    "torch", "transformers", "transformer_lens", "numpy", "pandas", "plotly", "datasets", "sklearn", "accelerate",
    "pydantic", "jinja2",
)  # fmt: skip
# The modules and names that the stub imports, such as ("evaluation.evaluate", "evaluate").
STUB = [
    (node.module or "", alias.name)
    for node in ast.parse(Path(sp.__file__).with_suffix(".pyi").read_text("utf-8")).body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
]


def imported_by(code: str) -> list[str]:
    """Return the heavy libraries that a new Python process has imported after it ran `code`. Warnings are errors."""
    code = f"{code}\nimport sys\nprint(*[name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    process = subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, capture_output=True, text=True)
    return process.stderr.splitlines()[-1].split()


def test_importing_the_package_is_fast() -> None:
    assert imported_by("import sp_lens; dir(sp_lens); sp_lens.SpLensError") == []
    assert "numpy" in imported_by("import numpy")  # the check can detect an import


@pytest.mark.parametrize("command", ["--help", "prune --help", "plot density --help", "reproduce --list", "prun"])
def test_help_and_usage_errors_are_fast(command: str) -> None:
    code = f"from sp_lens.cli.__main__ import main\ntry:\n    main({command.split()})\nexcept SystemExit:\n    pass"
    assert imported_by(code) == []


def test_a_star_import_gets_every_public_name() -> None:
    namespace: dict[str, object] = {}
    exec("from sp_lens import *", namespace)
    assert set(sp.__all__) == {name for _, name in STUB} <= set(dir(sp))
    assert all(namespace[name] is getattr(sp, name) for name in sp.__all__)


@pytest.mark.parametrize(("module", "name"), STUB, ids=[name for _, name in STUB])
def test_a_public_name_is_the_object_in_its_module(module: str, name: str) -> None:
    if module:
        assert getattr(sp, name) is getattr(importlib.import_module(f"sp_lens.{module}"), name)
    else:
        assert getattr(sp, name) is importlib.import_module(f"sp_lens.{name}")


def test_no_module_hides_a_public_function() -> None:
    """`import sp_lens.evaluate` would set the attribute `evaluate` of the package to the module."""
    modules = {module.name for module in pkgutil.iter_modules(sp.__path__)}
    assert modules & set(sp.__all__) == {name for module, name in STUB if not module} == {"plots", "unlearning"}


# The import of every public name, with warnings as errors if Python attributes them to a module of this package, which
# includes warnings raised with `stacklevel`. Warnings between other libraries are ignored.
OUR_WARNINGS_ARE_ERRORS = r"""
import warnings
warnings.simplefilter("ignore")
warnings.filterwarnings("error", module=r"sp_lens(\.|$)")
"""


def test_public_names_load_without_warnings() -> None:
    load_all = "for module in (sp, sp.plots, sp.unlearning):\n    [getattr(module, name) for name in module.__all__]"
    assert "torch" in imported_by(f"{OUR_WARNINGS_ARE_ERRORS}\nimport sp_lens as sp\n{load_all}")


@pytest.mark.parametrize(
    ("module", "is_error"), [("sp_lens.statistics.collect", True), ("sp_lens", True), ("torch.nn", False)]
)
def test_only_warnings_of_this_package_are_errors(module: str, is_error: bool) -> None:
    warn = f"exec(\"warnings.warn('old', DeprecationWarning)\", {{'warnings': warnings, '__name__': {module!r}}})"
    command = [sys.executable, "-c", OUR_WARNINGS_ARE_ERRORS + warn]
    process = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ("DeprecationWarning: old" in process.stderr) == is_error


def test_an_unknown_name_raises_the_usual_errors() -> None:
    with pytest.raises(AttributeError, match="ablat"):
        sp.ablat  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ImportError, match="cannot import name 'ablat'"):
        exec("from sp_lens import ablat")
