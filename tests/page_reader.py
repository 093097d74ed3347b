"""Read an HTML page in a test and check that it is well-formed, accessible and loads nothing from the network."""

import itertools
import re
from html.parser import HTMLParser

import sp_lens as sp

VOID = {"meta", "br", "hr", "img", "link", "input", "path"}
# Attributes from which a browser loads a resource without a click.
LOADING = {"src", "srcset", "data", "poster", "background", "action", "formaction", "manifest"}


class Reader(HTMLParser):
    """Parse a page into headings, text, scripts, links and table cells, and check that every element is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[tuple[int, str]] = []
        self.scripts: list[str] = []
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[tuple[str, str]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.attributes.append((tag, attributes))
        self.loaded += [str(attributes[name]) for name in LOADING & attributes.keys()]
        self.links += [str(attributes["href"])] if tag == "a" and "href" in attributes else []
        self.ids += [str(attributes["id"])] if "id" in attributes else []
        assert not any(name.startswith("on") for name in attributes), f"{tag} has an event handler: {attributes}"
        assert tag not in ("link", "base", "object", "embed"), f"{tag} loads a resource"
        if tag == "script":
            self.scripts.append("")
        if re.fullmatch(r"h\d", tag):
            self.headings.append((int(tag[1]), ""))
        if tag in ("td", "th"):
            self.cells.append((tag, ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif self.open and self.open[-1] != "style":
            self.text += data
            if re.fullmatch(r"h\d", self.open[-1]):
                level, title = self.headings[-1]
                self.headings[-1] = (level, title + data)
            if self.open[-1] in ("td", "th"):
                tag, cell = self.cells[-1]
                self.cells[-1] = (tag, cell + data)

    def rows(self) -> dict[str, list[str]]:
        """Return the cells of all tables by the heading of their row."""
        rows: dict[str, list[str]] = {}
        heading = ""
        for tag, cell in self.cells:
            if tag == "th":
                heading = cell
                rows.setdefault(heading, [])
            else:
                rows[heading].append(cell)
        return rows


def read(page: sp.Page) -> Reader:
    """Parse a page and check that it is well-formed, accessible, includes plotly.js once, and needs no network."""
    assert page.html.startswith('<!DOCTYPE html>\n<html lang="en">')
    reader = Reader(page.html)
    assert sum("plotly.js v" in script for script in reader.scripts) == 1
    assert reader.loaded == []
    assert [link for link in reader.links if not link.startswith("#")] == ["https://arxiv.org/abs/2403.01267"]
    style = page.html.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    assert len(set(reader.ids)) == len(reader.ids)
    assert {link[1:] for link in reader.links if link.startswith("#")} <= set(reader.ids)
    levels = [level for level, _ in reader.headings]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(levels))
    for tag, attributes in reader.attributes:
        assert tag != "th" or attributes.get("scope") in ("row", "col")
        assert tag != "section" or attributes.get("aria-labelledby") in reader.ids
    assert reader.text.count("Skip to the content") == 1
    return reader
