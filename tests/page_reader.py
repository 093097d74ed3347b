"""Read an HTML page in a test and check that it is well-formed, accessible and loads nothing from the network."""

import itertools
import re
from html.parser import HTMLParser

import sp_lens as sp

VOID = {"meta", "br", "hr", "img", "link", "input", "path"}
# Attributes from which a browser loads something by itself.
LOADING = {"src", "srcset", "data", "poster", "background", "action", "formaction", "manifest"}


class Reader(HTMLParser):
    """A page as a reader's program has it: headings, text, scripts, links, and whether every element is closed."""

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
        given = dict(attrs)
        self.attributes.append((tag, given))
        self.loaded += [str(given[name]) for name in LOADING & given.keys()]
        self.links += [str(given["href"])] if tag == "a" and "href" in given else []
        self.ids += [str(given["id"])] if "id" in given else []
        assert not any(name.startswith("on") for name in given), f"{tag} has a script in {given}"
        assert tag not in ("link", "base", "object", "embed"), f"{tag} loads something"
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
        """The cells of the tables by the head of their row."""
        found: dict[str, list[str]] = {}
        first = ""
        for tag, cell in self.cells:
            if tag == "th":
                first = cell
                found.setdefault(first, [])
            else:
                found[first].append(cell)
        return found


def read(page: sp.Page, *, plotly: int = 1) -> Reader:
    """The page, found to be whole, sound, of one plotly.js, and to need nothing from the network."""
    assert page.html.startswith('<!DOCTYPE html>\n<html lang="en">')
    reader = Reader(page.html)
    assert sum("plotly.js v" in script for script in reader.scripts) == plotly
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
    for tag, given in reader.attributes:
        assert tag != "th" or given.get("scope") in ("row", "col")
    assert reader.text.count("Skip to the content") == 1
    return reader
