"""Test that the code of the README and the documentation runs, and that the names, commands and files in them exist.

The `python` blocks of a page run one after the other in one namespace. A `{ .python .no-run }` block does not run, and
a `{ .python .transformer-lens-3 }` block runs only with that version. `make docs` checks the links between pages.
"""

import re
import shlex
from importlib.metadata import version
from pathlib import Path

import cells
import pytest

import sp_lens as sp
from sp_lens.cli.__main__ import main, parser

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
PAGES = {
    str(path.relative_to(ROOT)): path.read_text("utf-8")
    for path in [ROOT / "README.md", *sorted((ROOT / "docs" / "pages").rglob("*.md"))]
}
CHEAT_SHEET = "docs/pages/cheat-sheet.md"
TL3 = "{ .python .transformer-lens-3 }"
RUN = ("python", TL3) if version("transformer_lens").startswith("3.") else ("python",)


def blocks(page: str, *kinds: str) -> list[str]:
    """Return the code blocks of some kinds on a page."""
    return cells.blocks(PAGES[page], *kinds)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.model] * (TL3 in PAGES[page]))
        for page in PAGES
        if page != CHEAT_SHEET and blocks(page, *RUN)
    ],
)
def test_the_code_of_a_page_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    cells.run(blocks(page, *RUN), page)
    printed = capsys.readouterr().out
    assert printed
    assert page != "README.md" or "Evaluation(top1=" in printed


def test_every_cell_of_the_cheat_sheet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks(CHEAT_SHEET, "python"):
        exec(block, names)
    codes = re.findall(r"^\| [^|]+ \| `([^`]+)` \|$", PAGES[CHEAT_SHEET], flags=re.MULTILINE)
    assert len(codes) > 40
    for code in codes:
        try:
            exec(code, dict(names))
        except Exception as error:
            raise AssertionError(f"this cell of the cheat sheet fails: {code}") from error


def test_links_of_the_readme_exist() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert [link for link in links if not link.startswith("http") and not (ROOT / link).exists()] == []


def test_the_make_targets_and_commands_of_the_readme_exist(capsys: pytest.CaptureFixture[str]) -> None:
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text("utf-8"), flags=re.MULTILINE)
    assert set(re.findall(r"make ([a-z0-9-]+)", README)) <= set(targets)
    for command in set(re.findall(r"`sp-lens ([a-z]+)", README)):
        with pytest.raises(SystemExit) as exit_:
            main([command, "--help"])
        assert exit_.value.code == 0


def test_the_shell_commands_of_the_pages_are_valid() -> None:
    lines = [
        line for page in PAGES for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()
    ]
    ours = re.compile(r"(?:sp-lens|.*accelerate launch .*-m sp_lens\.cli) ([^&]*)")
    commands = [found[1] for line in lines if (found := ours.match(line))]
    assert any("--device-map" in command for command in commands)
    for command in commands:
        parser().parse_args(shlex.split(command))


def test_every_public_name_is_in_the_reference() -> None:
    paths = [path for page in PAGES.values() for path in re.findall(r"^::: (\S+)$", page, flags=re.MULTILINE)]
    described = {path.rpartition(".")[2] for path in paths}
    assert {name for module in (sp, sp.plots, sp.unlearning) for name in module.__all__} - described == {
        "plots",
        "unlearning",
    }
