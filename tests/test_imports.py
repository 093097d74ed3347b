"""`import sp_lens` and the help of the command line import nothing heavy; a public name is there once it is used."""

import importlib
import pkgutil
import subprocess
import sys

import pytest

import sp_lens as sp

HEAVY = ("torch", "transformers", "transformer_lens", "numpy", "pandas", "plotly", "datasets", "sklearn", "accelerate")


def imported_by(code: str) -> list[str]:
    """Which heavy libraries a new Python has imported after some code; a warning is an error to it."""
    asked = f"{code}\nimport sys\nprint(*[name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", asked], check=True, capture_output=True, text=True)
    return done.stderr.splitlines()[-1].split()


def test_the_package_alone_is_light() -> None:
    assert imported_by("import sp_lens; dir(sp_lens); sp_lens.SpLensError") == []
    assert "numpy" in imported_by("import numpy")  # that this can be seen


@pytest.mark.parametrize("command", ["--help", "prune --help", "plot density --help", "reproduce --list", "prun"])
def test_help_and_typing_errors_are_light(command: str) -> None:
    run = f"from sp_lens.cli.__main__ import main\ntry:\n    main({command.split()})\nexcept SystemExit:\n    pass"
    assert imported_by(run) == []


def test_every_public_name_is_there() -> None:
    assert set(sp.__all__) <= set(dir(sp))
    everything: dict[str, object] = {}
    exec("from sp_lens import *", everything)
    for name in sp.__all__:
        assert everything[name] is getattr(sp, name)
        assert getattr(sp, name).__name__.rpartition(".")[2] == name


# Ours is what Python attributes to a module of ours, by `stacklevel` too; what libraries do among themselves is not.
OURS_ARE_ERRORS = r"""
import warnings
warnings.simplefilter("ignore")
warnings.filterwarnings("error", module=r"sp_lens(\.|$)")
"""


def test_no_public_name_brings_a_warning_of_ours() -> None:
    used = "for room in (sp, sp.plots, sp.unlearning):\n    [getattr(room, name) for name in room.__all__]"
    assert "torch" in imported_by(f"{OURS_ARE_ERRORS}\nimport sp_lens as sp\n{used}")


@pytest.mark.parametrize(
    ("module", "stops"), [("sp_lens.statistics.collect", True), ("sp_lens", True), ("torch.nn", False)]
)
def test_a_warning_of_ours_would_be_seen(module: str, stops: bool) -> None:
    old = f"exec(\"warnings.warn('old', DeprecationWarning)\", {{'warnings': warnings, '__name__': {module!r}}})"
    done = subprocess.run([sys.executable, "-c", OURS_ARE_ERRORS + old], check=False, capture_output=True, text=True)
    assert ("DeprecationWarning: old" in done.stderr) == stops


def test_a_module_does_not_hide_the_function_of_its_name() -> None:
    """`import sp_lens.collect`, as most of our modules do, has Python set the module on the package."""
    both = {module.name for module in pkgutil.iter_modules(sp.__path__)} & set(sp.__all__) - {"baselines", "plots"}
    assert {"collect", "evaluate"} <= both
    for name in both:
        module = importlib.import_module(f"sp_lens.{name}")
        assert getattr(sp, name) is getattr(module, name)


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="'sp_lens' has no attribute 'ablat'"):
        sp.ablat  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ImportError, match="cannot import name 'ablat'"):
        exec("from sp_lens import ablat")
