"""The cheat sheet of the documentation and the example of the README: every line of code runs."""

import re
from pathlib import Path

import cells
import pytest

ROOT = Path(__file__).parent.parent
CHEAT_SHEET = (ROOT / "docs" / "pages" / "cheat-sheet.md").read_text("utf-8")
README = (ROOT / "README.md").read_text("utf-8")


def test_every_cell_of_the_cheat_sheet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in cells.blocks(CHEAT_SHEET, "python"):
        exec(block, names)
    codes = re.findall(r"^\| [^|]+ \| `([^`]+)` \|$", CHEAT_SHEET, flags=re.MULTILINE)
    assert len(codes) > 40
    for code in codes:
        try:
            exec(code, dict(names))
        except Exception as error:
            raise AssertionError(f"this cell of the cheat sheet fails: {code}") from error


@pytest.mark.smollm
def test_the_example_of_the_readme_prints_what_the_readme_says(
    smollm_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / smollm_file.name).symlink_to(smollm_file)
    monkeypatch.chdir(tmp_path)
    cells.run(cells.blocks(README, "python", comment="smollm"), "README.md")
    printed = re.findall(r"(\w+): next-token accuracy ([0-9.]+) -> ([0-9.]+)", capsys.readouterr().out)
    promised = re.findall(r"^(\w+): next-token accuracy ([0-9.]+) -> ([0-9.]+)$", README, flags=re.MULTILINE)
    assert [name for name, _, _ in printed] == [name for name, _, _ in promised] == ["code", "prose"]
    # The text is that of the running Python and its packages, so the numbers may differ a little.
    for (_, *here), (_, *there) in zip(printed, promised, strict=True):
        assert [float(number) for number in here] == pytest.approx([float(number) for number in there], abs=0.02)
