"""Adapt the docstrings of this package to griffe, which reads them for the reference."""

import re
from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """Rewrite docstrings into the form that griffe expects.

    griffe reads `Example:` as an admonition, not as a doctest. In `Returns:` it takes the text before a colon as the
    type, so the annotated type is inserted there.
    """

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of a function, class or module, in memory."""
        if not obj.docstring:
            return
        text = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
        if isinstance(obj, griffe.Function) and obj.returns is not None:
            text = re.sub(r"^(Returns:\n +)", lambda match: f"{match[1]}{obj.returns}: ", text, flags=re.MULTILINE)
        obj.docstring.value = text
