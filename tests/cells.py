"""Run the Python code blocks of a Markdown page: `python tests/cells.py README.md`, from any folder.

This module imports only the standard library, so that the code on the page imports the installed sp_lens. `make
wheel-test` uses it to run the README with the wheel, and tests/test_documentation.py to run every page.
"""

import re
import sys
from pathlib import Path
from typing import Any


def blocks(text: str, *kinds: str, comment: str = "") -> list[str]:
    """Return the code blocks of a page.

    Args:
        text: Markdown text.
        kinds: Languages of the blocks to return, such as "python".
        comment: Text of the HTML comment on the line above the block. By default, return blocks without a comment.
    """
    matches = re.findall(r"^(?:<!-- (.+?) -->\n)?```(.+?)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [block for above, kind, block in matches if kind in kinds and above == comment]


def run(code: list[str], page: str) -> dict[str, Any]:
    """Run code blocks in order, in one namespace, and return it."""
    names: dict[str, Any] = {}
    for block in code:
        exec(compile(block, page, "exec"), names)
    return names


if __name__ == "__main__":
    for page in map(Path, sys.argv[1:]):
        code = blocks(page.read_text("utf-8"), "python")
        assert code, f"{page} has no Python code block"
        run(code, str(page))
