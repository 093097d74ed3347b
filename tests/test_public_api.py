"""What is public changes on purpose: tests/api.txt is what it was, and CHANGELOG.md says what came of it."""

import ast
import inspect
from importlib import import_module

import api
import pytest
from api import Api

LIVE = api.live()
CHANGELOG = (api.ROOT / "CHANGELOG.md").read_text("utf-8")


def test_the_list_is_that_of_the_source() -> None:
    listed = api.read(api.NOW)
    changed = [name for name in sorted({*LIVE, *listed}) if LIVE.get(name) != listed.get(name)]
    assert changed == [], "what is public has changed: say `make api`, and what it is for in CHANGELOG.md"


def test_the_changelog_has_what_changed_since_the_release() -> None:
    missing = api.unmentioned(api.read(api.RELEASED), LIVE, CHANGELOG)
    assert missing == [], "the unreleased section of CHANGELOG.md has to have these, between backticks"


def test_what_is_not_mentioned_is_found() -> None:
    released: Api = {"a.kept": "def kept(): ...", "a.gone": "def gone(): ...", "a.wider": "def wider(): ..."}
    now: Api = {"a.kept": "def kept(): ...", "a.new": "def new(): ...", "a.wider": "def wider(more): ..."}
    of_a_release = "## 0.1.0 (2026-01-01)\n\n- `gone`, `new`, `wider`.\n"
    assert api.unmentioned(released, now, of_a_release) == ["a.gone", "a.new", "a.wider"]
    begun = "# Changelog\n\n## 0.2.0 (unreleased)\n\n- Gone is `gone`; `new(wide)` is renewed, not wider.\n\n"
    assert api.unmentioned(released, now, begun + of_a_release) == ["a.wider"]
    assert api.unmentioned(now, now, of_a_release) == []


def test_the_signatures_are_those_that_python_sees() -> None:
    """Parameters, one by one, of every public function and of what a dataclass is made of, against `inspect`."""
    functions = 0
    for path, declaration in LIVE.items():
        home, _, name = path.rpartition(".")
        it, node = getattr(import_module(home), name), ast.parse(declaration).body[-1]
        if isinstance(node, ast.FunctionDef):
            asked = [*node.args.args, *node.args.kwonlyargs, *filter(None, [node.args.kwarg])]
            assert [argument.arg for argument in asked] == list(inspect.signature(it).parameters), path
            functions += 1
        elif isinstance(node, ast.ClassDef) and hasattr(it, "__dataclass_fields__"):
            fields = [field.target.id for field in node.body if isinstance(field, ast.AnnAssign)]  # type: ignore[union-attr]
            assert set(fields) == set(it.__dataclass_fields__), path
    assert functions > 40


@pytest.mark.parametrize("name", ["sp_lens.ablate", "sp_lens.plots.neurons.rank_stability", "sp_lens.rank_stability"])
def test_a_name_is_the_one_that_is_imported(name: str) -> None:
    """`sp_lens.rank_stability` and `sp_lens.plots.neurons.rank_stability` are two, and both are here."""
    assert name in LIVE
