"""The public API, read from the source. `make api` writes it to tests/api.txt.

The names are those of the reference in docs/pages/reference, where tests/test_documentation.py requires every public
name. Each entry holds what a caller sees: signatures, fields, public methods, the values of a Literal. The source is
read, not imported, because annotations print differently under another Python or pandas.
"""

import ast
import inspect
import re
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parent.parent
NOW = ROOT / "tests" / "api.txt"
RELEASED = ROOT / "tests" / "api-released.txt"  # NOW as it was when the last version was released
HEADING = "# "  # above each name

Api = dict[str, str]


def live() -> Api:
    """Read the source: {public name: declaration}."""
    pages = [path.read_text("utf-8") for path in (ROOT / "docs" / "pages" / "reference").glob("*.md")]
    paths = [path for page in pages for path in re.findall(r"^::: (\S+)$", page, flags=re.MULTILINE)]
    return dict(sorted((_public_name(path), _declaration(path)) for path in paths))


def read(path: Path) -> Api:
    """Read a file that `write` wrote. Without a file, return an empty mapping: nothing has been released yet."""
    text = path.read_text("utf-8") if path.exists() else ""
    blocks = re.split(f"^{HEADING}", text, flags=re.MULTILINE)[1:]
    return {name: declaration.strip() for name, declaration in (block.split("\n", 1) for block in blocks)}


def write(api: Api, path: Path) -> None:
    """Write a heading and a declaration for each name."""
    path.write_text("\n\n".join(f"{HEADING}{name}\n{declaration}" for name, declaration in api.items()) + "\n", "utf-8")


def unmentioned(released: Api, now: Api, changelog: str) -> list[str]:
    """Return the names that were added, removed or changed since the release and that the changelog does not mention.

    The unreleased section mentions a name if it has it between backticks, alone or in a longer expression.
    """
    changed = [name for name in sorted({*released, *now}) if released.get(name) != now.get(name)]
    section = re.search(r"^## .*\bunreleased\)?$(.*?)(?=^## |\Z)", changelog, flags=re.MULTILINE | re.DOTALL)
    code = re.findall(r"`([^`]+)`", section[1] if section else "")
    mentioned = set(re.findall(r"\w+", " ".join(code)))
    return [name for name in changed if name.rpartition(".")[2] not in mentioned]


def _public_name(path: str) -> str:
    """Return the shortest public path of an object: `sp_lens.ablate` for `sp_lens.interventions.ablation.ablate`."""
    home, _, name = path.rpartition(".")
    parts = home.split(".")
    it = getattr(import_module(home), name)
    for package in (".".join(parts[:end]) for end in range(1, len(parts))):
        module = import_module(package)
        if name in getattr(module, "__all__", ()) and getattr(module, name) is it:
            return f"{package}.{name}"
    return path


def _declaration(path: str) -> str:
    """Return the source of an object without docstrings, bodies and private members."""
    home, _, name = path.rpartition(".")
    module = import_module(home)
    found = [node for node in ast.parse(inspect.getsource(module)).body if _name(node) == name]
    it = getattr(module, name)
    for node in found:
        if isinstance(node, ast.ClassDef):
            members = {_name(member): member for base in reversed(it.__mro__) for member in _members(base)}
            node.body = list(members.values()) or [ast.Expr(ast.Constant(...))]
        elif isinstance(node, ast.FunctionDef):
            node.body = [ast.Expr(ast.Constant(...))]
    text = "\n".join(ast.unparse(node) for node in found)
    return re.sub(r":\n *\.\.\.", ": ...", re.sub(r"\n+", "\n", text))


def _members(base: type) -> list[ast.stmt]:
    """Return the public fields and methods that a class of this package defines itself."""
    if not base.__module__.startswith("sp_lens."):
        return []
    (node,) = (
        node
        for node in ast.parse(inspect.getsource(import_module(base.__module__))).body
        if _name(node) == base.__name__
    )
    assert isinstance(node, ast.ClassDef)
    members = [member for member in node.body if re.match(r"(?!_)|__init__$", _name(member) or "_")]
    for member in members:
        if isinstance(member, ast.FunctionDef):
            member.body = [ast.Expr(ast.Constant(...))]
    return members


def _name(node: ast.stmt) -> str | None:
    """Return the name that a statement binds."""
    match node:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            return name
        case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
            return name
    return None


if __name__ == "__main__":
    write(live(), NOW)
