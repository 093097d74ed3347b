"""Escape external text (tokens, names of corpora and models) and break it into lines for figures and pages."""

import html
import textwrap
import unicodedata

# "&" and "<" would start an entity or a tag, "{" a placeholder such as %{y}, and "$" a formula where the notebook has
# MathJax, in which a link can be a script. Plotly shows each of these entities as the character itself.
_PLOTLY_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", "{": "&#123;", "$": "&#36;"})
_PAD = "\x00"  # not in printable text
EM = 1.1  # width of the widest characters relative to the font size
# Joiners, which many scripts and emoji need, are invisible but harmless.
_SYMBOLS = {"\n": "↵", "\t": "⇥", " ": " ", "\u200c": "\u200c", "\u200d": "\u200d"}


def make_printable(text: str) -> str:
    r"""Return the text with line breaks, tabs and non-printable characters replaced by symbols and escape sequences.

    Spaces and zero-width joiners are kept.

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


def fit(text: object, width: float, *, max_lines: int | None = None) -> str:
    """Return the text escaped for plotly and broken into lines, with "<br>" between them.

    Args:
        text: Text that is not escaped.
        width: Width of a line relative to the font size.
        max_lines: Number of lines, 2 or more. Of a longer text, the beginning and the end are kept. Figures show the
            whole text on hover.

    Example:
        >>> fit("accuracy on Python code", 7)
        'accuracy on<br>Python code'
        >>> fit("/models/gpt2/checkpoints/step-1000/pruned", 7, max_lines=2)
        '/models/gpt2<br>…000/pruned'
    """
    padded = "".join(char.ljust(_quarters(char), _PAD) for char in make_printable(str(text)))
    length = max(12, int(4 * width / EM))
    lines = textwrap.wrap(padded, length, break_on_hyphens=False) if len(padded) > length else [padded]
    if max_lines and len(lines) > max_lines:
        lines = [*lines[: max_lines - 1], "…" + padded[4 - length :]]
    return "<br>".join(escape_plotly(line.replace(_PAD, "")) for line in lines)


def refit(escaped: str, width: float, *, max_lines: int | None = None) -> str:
    """Return text that is already escaped, with its lines broken further by `fit`."""
    return "<br>".join(fit(html.unescape(line), width, max_lines=max_lines) for line in escaped.split("<br>"))


def hover_name(text: object) -> str:
    """Return the text escaped for plotly and broken into lines that a hover label can show."""
    return fit(text, 50)


def ems(text: str) -> float:
    """Return the approximate width of a line of text relative to the font size."""
    return EM / 4 * sum(map(_quarters, text))


def _quarters(char: str) -> int:
    """Return the approximate width of a character in a sans-serif font, in quarters of the widest."""
    if unicodedata.east_asian_width(char) in "WF" or char in "MW@%mw":
        return 4
    return 3 if char.isupper() else 2
