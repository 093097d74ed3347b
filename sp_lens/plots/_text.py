"""Text of others (tokens, names of corpora and models) in figures and pages: shown as it is, and never obeyed."""

import html

# What plotly would take for a tag, for an entity, for a number to be filled in (%{y}), and, where a notebook has
# MathJax, for mathematics, in which a link may be a script. It shows each of these entities as the sign itself.
_PLOTLY = str.maketrans({"&": "&amp;", "<": "&lt;", "{": "&#123;", "$": "&#36;"})


def visible(text: str) -> str:
    r"""The text with line breaks, tabs and all that can't be printed written out; spaces stay.

    Example:
        >>> visible("a\tb\x00\u202e")
        'a⇥b\\x00\\u202e'
    """
    signs = {"\n": "↵", "\t": "⇥", " ": " "}
    return "".join(
        signs.get(char, char if char.isprintable() else char.encode("unicode_escape").decode()) for char in text
    )


def escaped(text: str) -> str:
    """The text for a page of HTML, in an attribute too."""
    return html.escape(visible(text))


def plain(text: object) -> str:
    """The text for anything that plotly writes: a title, a legend, a hover.

    Example:
        >>> plain("<b>a</b> & $x$ %{y}")
        '&lt;b>a&lt;/b> &amp; &#36;x&#36; %&#123;y}'
    """
    return visible(str(text)).translate(_PLOTLY)
