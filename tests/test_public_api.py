"""Test that tests/api.txt records the public API, and that CHANGELOG.md describes each change of it."""

import ast
import inspect
from importlib import import_module

import api
import pytest
from api import Api

LIVE = api.live()
CHANGELOG = (api.ROOT / "CHANGELOG.md").read_text("utf-8")


def test_the_recorded_api_is_that_of_the_source() -> None:
    listed = api.read(api.NOW)
    changed = [name for name in sorted({*LIVE, *listed}) if LIVE.get(name) != listed.get(name)]
    assert changed == [], "the public API has changed: run `make api` and describe the change in CHANGELOG.md"


def test_the_changelog_mentions_every_change_since_the_last_release() -> None:
    released = api.read(api.RELEASED) or LIVE  # before the first release, nothing can have changed
    missing = api.unmentioned(released, LIVE, CHANGELOG)
    assert missing == [], "the unreleased section of CHANGELOG.md must mention these names between backticks"


def test_a_change_that_is_not_mentioned_is_found() -> None:
    released: Api = {"a.kept": "def kept(): ...", "a.gone": "def gone(): ...", "a.wider": "def wider(): ..."}
    now: Api = {"a.kept": "def kept(): ...", "a.new": "def new(): ...", "a.wider": "def wider(more): ..."}
    first = "## [0.1.0] - 2026-01-01\n\n- `gone`, `new`, `wider`.\n"
    assert api.unmentioned(released, now, first) == ["a.gone", "a.new", "a.wider"]
    second = "# Changelog\n\n## [0.2.0] - unreleased\n\n- Removed `gone`; `new(wide)` is new, not wider.\n\n"
    assert api.unmentioned(released, now, second + first) == ["a.wider"]
    assert api.unmentioned(now, now, first) == []


def test_the_recorded_signatures_are_those_that_python_sees() -> None:
    """Compare the parameters of functions and the fields of dataclasses with `inspect`."""
    functions = 0
    for path, declaration in LIVE.items():
        home, _, name = path.rpartition(".")
        item, node = getattr(import_module(home), name), ast.parse(declaration).body[-1]
        if isinstance(node, ast.FunctionDef):
            of_node = node.args
            arguments = [*of_node.args, of_node.vararg, *of_node.kwonlyargs, of_node.kwarg]
            assert [argument.arg for argument in arguments if argument] == list(inspect.signature(item).parameters), (
                path
            )
            functions += 1
        elif isinstance(node, ast.ClassDef) and hasattr(item, "__dataclass_fields__"):
            fields = [field.target.id for field in node.body if isinstance(field, ast.AnnAssign)]  # type: ignore[union-attr]
            assert set(fields) == set(item.__dataclass_fields__), path
    assert functions > 40


@pytest.mark.parametrize("name", ["sp_lens.ablate", "sp_lens.plots.rank_stability", "sp_lens.rank_stability"])
def test_names_are_recorded_by_their_public_path(name: str) -> None:
    """`sp_lens.rank_stability` and `sp_lens.plots.rank_stability` are two functions; both are recorded."""
    assert name in LIVE
