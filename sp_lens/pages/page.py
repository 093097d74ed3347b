"""Web pages of one file: they need nothing from the network, and read well with a keyboard or a screen reader."""

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from sp_lens.plots._text import escaped

NOTEBOOK_HEIGHT = 720  # pixels; a longer page scrolls


@dataclass(frozen=True)
class Page:
    """A page of HTML that holds all it needs, plotly.js included. A notebook shows it in a frame of its own.

    Attributes:
        title: of the page.
        html: the whole document.
    """

    title: str
    html: str

    def write_html(self, file: str | Path) -> None:
        """Write the page, in UTF-8."""
        Path(file).write_text(self.html, "utf-8")

    def _repr_html_(self) -> str:
        # In a frame, so that the page's style stays off the notebook's, and its scripts run.
        return (
            f'<iframe title="{escaped(self.title)}" srcdoc="{html.escape(self.html)}" '
            f'style="width: 100%; height: {NOTEBOOK_HEIGHT}px; border: 1px solid #ccc"></iframe>'
        )

    def __repr__(self) -> str:
        return f"Page({self.title!r}, {len(self.html) / 1e6:.1f} MB)"


@dataclass(frozen=True)
class Section:
    """A part of a page: its heading, and the HTML under it. Its anchor is what links of the page name."""

    title: str
    body: str
    anchor: str


def page(title: str, lead: str, sections: Sequence[Section]) -> Page:
    """A page with a heading, a line under it, a table of contents, and sections.

    Args:
        title: plain text.
        lead: HTML.
        sections: in order; none of them empty.
    """
    links = "".join(f'<li><a href="#{part.anchor}">{escaped(part.title)}</a></li>' for part in sections)
    bodies = "\n".join(
        f'<section aria-labelledby="{part.anchor}"><h2 id="{part.anchor}">{escaped(part.title)}</h2>\n{part.body}\n'
        "</section>"
        for part in sections
    )
    document = _PAGE.substitute(
        title=escaped(title), lead=lead, links=links, sections=bodies, style=_STYLE, plotly=get_plotlyjs()
    )
    return Page(title, document)


def table(caption: str, rows: Iterable[Sequence[str]], columns: Sequence[str] = ()) -> str:
    """A table whose first column says what each row is.

    Args:
        caption: plain text, as all the cells are.
        rows: one text a column.
        columns: the head of each column, of a table of numbers; without, the rows are facts.
    """
    heads = "".join(f'<th scope="col">{escaped(column)}</th>' for column in columns)
    head = f"<thead><tr>{heads}</tr></thead>" if columns else ""
    body = "\n".join(
        f'<tr><th scope="row">{escaped(first)}</th>{"".join(f"<td>{escaped(cell)}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escaped(caption)}">'
        f'<table class="{"numbers" if columns else "facts"}"><caption>{escaped(caption)}</caption>\n'
        f"{head}\n<tbody>{body}</tbody></table></div>"
    )


def figure(drawing: go.Figure, caption: str, anchor: str) -> str:
    """A plotly figure with a caption in plain text, which is also what a screen reader says of it."""
    div = drawing.to_html(
        full_html=False, include_plotlyjs=False, include_mathjax=False, div_id=anchor, config={"displaylogo": False}
    )
    said = escaped(caption)
    return (
        f'<figure><div class="wide" tabindex="0" role="img" aria-label="{said}">{div}</div>'
        f"<figcaption>{said}</figcaption></figure>"
    )


_STYLE = """
:root { color-scheme: light; }
body { color: #222; background: #fff; font: 16px/1.5 Helvetica, Arial, "DejaVu Sans", sans-serif;
  margin: 0 auto; max-width: 940px; padding: 0 1.2em 3em; }
h1 { line-height: 1.2; margin: 1em 0 .3em; } h2 { border-bottom: 1px solid #bbb; margin: 2em 0 .7em; }
h3 { margin: 1.6em 0 .4em; } h4, h5 { font-size: 1em; margin: 1.2em 0 .3em; }
a { color: #0057a3; } :focus-visible { outline: 3px solid #d55e00; outline-offset: 2px; }
.skip { left: -999em; position: absolute; } .skip:focus { background: #fff; left: 1em; padding: .5em; top: .5em; }
nav ul { display: flex; flex-wrap: wrap; gap: .3em 1.3em; list-style: none; margin: .8em 0; padding: 0; }
figure { margin: 1.2em 0; } figcaption, caption, .note { color: #555; font-size: .9em; text-align: left; }
.wide { overflow-x: auto; } summary { cursor: pointer; margin: .5em 0; }
table { border-collapse: collapse; margin: .6em 0; } caption { margin-bottom: .3em; }
th, td { border-bottom: 1px solid #ddd; padding: .25em .9em .25em 0; text-align: left; vertical-align: top; }
thead th { border-bottom: 2px solid #777; } tbody th { font-weight: normal; }
.numbers td, .numbers thead th + th { font-variant-numeric: tabular-nums; text-align: right; white-space: nowrap; }
.contexts { padding-left: 1.8em; } .contexts li { margin: .6em 0; }
.where { color: #555; display: block; font-size: .85em; overflow-wrap: anywhere; }
.context { background: #f7f7f7; display: block; font: .85em/1.7 "DejaVu Sans Mono", Menlo, Consolas, monospace;
  padding: .3em .5em; white-space: break-spaces; word-break: break-all; }
.context span, .context mark { border-radius: 2px; color: #111; unicode-bidi: isolate; }
.context mark { background: none; font-weight: bold; outline: 1.5px solid #111; }
footer { border-top: 1px solid #bbb; color: #555; font-size: .9em; margin-top: 3em; }
@media print { nav, .skip { display: none; } figure, .contexts li { break-inside: avoid; } }
"""

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$style</style>
<script>window.PlotlyConfig = {MathJaxConfig: "local"};</script>
<script>$plotly</script>
</head>
<body>
<a class="skip" href="#content">Skip to the content</a>
<header>
<h1>$title</h1>
<p>$lead</p>
</header>
<nav aria-label="Contents"><ul>$links</ul></nav>
<main id="content" tabindex="-1">
$sections
</main>
<footer>
<p>Made with sp_lens: selective pruning as in <a href="https://arxiv.org/abs/2403.01267">arXiv 2403.01267</a>.</p>
</footer>
</body>
</html>
""")
