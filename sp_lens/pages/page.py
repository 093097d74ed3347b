"""HTML pages of a single file: data classes for the parts of a page, rendered by the templates in `templates/`.

Python prepares the data and the templates write all HTML. Every value that a template prints is escaped, and its
control characters are written out, so that tokens and names of corpora or models cannot add markup.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from sp_lens.pages.notebook import notebook_parts
from sp_lens.plots._text import make_printable
from sp_lens.storage.serialization import write_bytes

NOTEBOOK_HEIGHT = 720  # pixels; a longer page scrolls inside its frame


@dataclass(frozen=True)
class Page:
    """An HTML page of a single file, which includes its style and plotly.js and needs no network.

    A notebook shows it in a frame. The first page that a kernel shows adds plotly.js to the notebook for all of them.

    Attributes:
        title: Title of the page.
        html: Complete HTML document.
    """

    title: str
    html: str

    def write_html(self, file: str | Path) -> None:
        """Write the page to a file, encoded in UTF-8.

        Args:
            file: Path of the file, which is replaced if it exists. Missing parent folders are created.
        """
        write_bytes(file, self.html.encode())

    def _repr_html_(self) -> str:
        # A frame keeps the style of the page apart from the notebook's, and lets the scripts of the page run.
        page, plotly_js = notebook_parts(self.html)
        template = _environment().get_template("notebook_frame.html.j2")
        return template.render(title=self.title, page=Markup(page), plotly_js=Markup(plotly_js), height=NOTEBOOK_HEIGHT)

    def __repr__(self) -> str:
        return f"Page({self.title!r}, {len(self.html) / 1e6:.1f} MB)"


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of text; a note is smaller and grey."""

    template: ClassVar[str] = "paragraph.html.j2"

    text: str
    is_note: bool = False


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows.

    With `columns`, the headings of all columns, it is a table of numbers; without, it is a list of facts.
    """

    template: ClassVar[str] = "table.html.j2"

    caption: str
    rows: Iterable[Sequence[str]]
    columns: Sequence[str] = ()


@dataclass(frozen=True)
class Figure:
    """A plotly figure with a caption, which screen readers also read as the description of the figure."""

    template: ClassVar[str] = "figure.html.j2"

    plotly_figure: go.Figure
    caption: str
    anchor: str

    def plotly_div(self) -> Markup:
        """Return the HTML of the figure without plotly.js, which the page includes once."""
        html = self.plotly_figure.to_html(
            full_html=False,
            include_plotlyjs=False,
            include_mathjax=False,
            div_id=self.anchor,
            config={"displaylogo": False},
        )
        return Markup(html)  # plotly writes text as JSON in which "<" and ">" are escaped


@dataclass(frozen=True)
class Token:
    """A token of a context, or several that share a character, coloured by the activation at their positions.

    Attributes:
        text: Text of the tokens.
        is_peak: Whether |z| is largest at one of these tokens.
        shades: Sign of the activation ("positive" or "negative") and strength of the colour from 0 to 1 of each token;
            empty if no activation is shown.
        label: Activations in words, shown when the pointer is over the text.
    """

    text: str
    is_peak: bool
    shades: Sequence[tuple[str, str]]
    label: str


@dataclass(frozen=True)
class Context:
    """A stretch of text with its source: the activation, the document and the position."""

    source: str
    tokens: Sequence[Token]


@dataclass(frozen=True)
class ContextList:
    """A numbered list of contexts; `start` is the number of the first."""

    template: ClassVar[str] = "contexts.html.j2"

    contexts: Sequence[Context]
    start: int = 1


@dataclass(frozen=True)
class Details:
    """Parts that are hidden until the reader opens them."""

    template: ClassVar[str] = "details.html.j2"

    summary: str
    parts: Sequence["Part"]


@dataclass(frozen=True)
class Section:
    """A heading and the parts below it. The level of the heading follows from the nesting of sections.

    Attributes:
        title: Text of the heading.
        anchor: Identifier of the heading in links, unique on the page.
        parts: Parts in the order in which they appear.
    """

    template: ClassVar[str] = "section.html.j2"

    title: str
    anchor: str
    parts: Sequence["Part"]


Part: TypeAlias = Section | Paragraph | Table | Figure | ContextList | Details


def render_page(title: str, lead: str, sections: Sequence[Section]) -> Page:
    """Return a page with a title, a table of contents, and sections.

    Args:
        title: Title of the page.
        lead: Sentence below the title; none if empty.
        sections: Sections in the order in which they appear.
    """
    template = _environment().get_template("page.html.j2")
    return Page(title, template.render(title=title, lead=lead, sections=sections, plotly_js=Markup(get_plotlyjs())))


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("sp_lens.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_write_out_control_characters,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _write_out_control_characters(value: Any) -> Any:
    return value if isinstance(value, Markup) else make_printable(str(value))
