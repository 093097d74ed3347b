"""How griffe, which reads the docstrings for the reference, is to read ours."""

import re
from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """Our docstrings as griffe expects them.

    `Example:` would be an admonition to it, not a doctest. In `Returns:` it takes what is before a colon for the type,
    so the annotated type is put there.
    """

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of a function, class or module, in memory."""
        if not obj.docstring:
            return
        text = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
        if isinstance(obj, griffe.Function) and obj.returns is not None:
            text = re.sub(r"^(Returns:\n +)", lambda found: f"{found[1]}{obj.returns}: ", text, flags=re.MULTILINE)
        obj.docstring.value = text
