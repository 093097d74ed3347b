"""Escape external text (tokens, names of corpora and models), so that figures and pages show it and never run it."""

# "&" and "<" would start an entity or a tag, "{" a placeholder such as %{y}, and "$" a formula where the notebook has
# MathJax, in which a link can be a script. Plotly shows each of these entities as the character itself.
_PLOTLY_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", "{": "&#123;", "$": "&#36;"})
_SYMBOLS = {"\n": "↵", "\t": "⇥", " ": " "}


def make_printable(text: str) -> str:
    r"""Return the text with line breaks, tabs and non-printable characters replaced by symbols and escape sequences.

    Spaces are kept.

    Example:
        >>> make_printable("a\tb\x00\u202e")
        'a⇥b\\x00\\u202e'
    """
    return "".join(
        _SYMBOLS.get(char, char if char.isprintable() else char.encode("unicode_escape").decode()) for char in text
    )


def escape_plotly(text: object) -> str:
    """Return the text in a form that plotly shows unchanged in titles, legends, axis labels and hover texts.

    Example:
        >>> escape_plotly("<b>a</b> & $x$ %{y}")
        '&lt;b>a&lt;/b> &amp; &#36;x&#36; %&#123;y}'
    """
    return make_printable(str(text)).translate(_PLOTLY_ENTITIES)
