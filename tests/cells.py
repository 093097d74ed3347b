"""The Python on a page, run: `python tests/cells.py README.md`, from any folder.

It imports nothing but the standard library, so that the sp_lens it finds is the one that is installed: with it
`make wheel-test` runs the README on the wheel, and tests/test_documentation.py every page.
"""

import re
import sys
from pathlib import Path


def blocks(text: str, *kinds: str, comment: str = "") -> list[str]:
    """Return the blocks of code of some kinds on a page that stand below this HTML comment, or below none."""
    found = re.findall(r"^(?:<!-- (.+?) -->\n)?```(.+?)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [block for above, kind, block in found if kind in kinds and above == comment]


def run(code: list[str], page: str) -> None:
    """Run the blocks of a page one after the other, in one namespace."""
    names: dict[str, object] = {}
    for block in code:
        exec(compile(block, page, "exec"), names)


if __name__ == "__main__":
    for page in map(Path, sys.argv[1:]):
        code = blocks(page.read_text("utf-8"), "python")
        assert code, f"{page} has no Python"
        run(code, str(page))
