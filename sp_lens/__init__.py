"""Selective pruning and neuron specialisation on TransformerLens (arXiv 2403.01267).

import sp_lens as sp

model = sp.load_model("demo")
forget = sp.load_corpus("code", model, tokens=20_000, offline=True)
retain = sp.load_corpus("prose", model, tokens=20_000, offline=True)
scores = sp.score(sp.collect(model, forget), sp.collect(model, retain), metric="abs")
with sp.ablate(model, scores.top(0.1, site="mlp")):
    print(sp.evaluate(model, sp.load_corpus("code", model, tokens=20_000, split="evaluate", offline=True)))
"""

import ast
import importlib
import sys
from importlib.metadata import version as _version
from pathlib import Path
from types import ModuleType
from typing import Any

__version__ = _version("sp_lens")

# Each public name and the module that it is of: the imports of the stub beside this file, which type checkers and
# editors read too.
_HOMES = {
    name.name: statement.module
    for statement in ast.parse(Path(__file__).with_suffix(".pyi").read_text("utf-8")).body
    if isinstance(statement, ast.ImportFrom) and statement.module
    for name in statement.names
}

__all__ = list(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562), so that `sp-lens --help` waits for no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES[name]
    if home == __name__:
        return importlib.import_module(f"{home}.{name}")
    globals()[name] = value = getattr(importlib.import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


class _Package(ModuleType):
    """A package whose functions are not hidden by modules of the same name.

    Whoever imports `sp_lens.collect` has Python set that module on the package, where the function `collect` belongs.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        is_home = isinstance(value, ModuleType) and value.__name__ == _HOMES.get(name)
        super().__setattr__(name, getattr(value, name) if is_home else value)


sys.modules[__name__].__class__ = _Package
