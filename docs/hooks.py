"""Hooks of the documentation site: add figures, notebooks, the help of the command line, and equations as MathML.

Nothing here imports torch, so the site builds without it.
"""

import base64
import html
import importlib
import json
import os
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import latex2mathml.converter
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FIGURES = sorted((ROOT / "figures").glob("*.png"))
REPRODUCED = sorted((ROOT / "figures" / "reproduction").glob("*/*/*.png"))
PLOTLY = "assets/plotly.min.js"

ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
MATHS = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the notebooks to the navigation, or remove their heading if there are none."""
    nav: list[dict[str, Any]] = config.nav or []
    for entry in nav:
        if "Notebooks" in entry:
            entry["Notebooks"] = [f"notebooks/{notebook.stem}.md" for notebook in NOTEBOOKS]
    config.nav = [entry for entry in nav if entry != {"Notebooks": []}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the figures of the repository, and each notebook as a page."""
    for figure in [*FIGURES, *REPRODUCED]:
        path = figure.relative_to(ROOT).as_posix()
        files.append(File.generated(config, path, abs_src_path=str(figure)))
    pages = {notebook.stem: _notebook(notebook) for notebook in NOTEBOOKS}
    for name, page in pages.items():
        files.append(File.generated(config, f"notebooks/{name}.md", content=page))
    if any('class="plotly"' in page for page in pages.values()):
        from plotly.offline import get_plotlyjs

        files.append(File.generated(config, PLOTLY, content=get_plotlyjs()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Insert the help of every command, and the figures that the gallery does not mention, at their placeholders."""
    markdown = markdown.replace("<!-- commands -->", _commands() if "<!-- commands -->" in markdown else "")
    # The page written by `sp-lens reproduce` links to the folder of the repository.
    markdown = markdown.replace("](../../figures/", "](figures/")
    unnamed = [figure.name for figure in FIGURES if f"figures/{figure.name}" not in markdown]
    return markdown.replace(
        "<!-- other figures -->", "\n\n".join(f"## `{name}`\n\n![](figures/{name})" for name in unnamed)
    )


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Convert equations to MathML, which browsers render without scripts or fonts."""
    return MATHS.sub(_mathml, content)


def _mathml(match: re.Match[str]) -> str:
    display = "block" if match[1] == "div" else "inline"
    return latex2mathml.converter.convert(html.unescape(match[2]).strip(), display=display)


def _notebook(path: Path) -> str:
    """Convert a notebook to Markdown with its saved outputs. It is not executed."""
    parts = []
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        source = "".join(cell["source"]).strip()
        if cell["cell_type"] == "markdown":
            linked = re.sub(r"(\]\([^):\s]*?)\.ipynb\b", r"\1.md", source)
            # Python-Markdown needs an empty line before a list; Jupyter does not.
            parts.append(re.sub(r"^(?! *[-*\d|>])(.+)\n(?=[-*] |\d+\. )", r"\1\n\n", linked, flags=re.MULTILINE))
        elif cell["cell_type"] == "code" and source:
            parts.append(_fenced(source, "python"))
            parts += [part for output in cell["outputs"] if (part := _output(output))]
    if any('class="plotly"' in part for part in parts):
        # The scripts of the figures use it, so it comes first.
        parts.insert(1, f'<script src="../{PLOTLY}"></script>')
    return "\n\n".join(parts) + "\n"


def _output(output: dict[str, Any]) -> str:
    if output["output_type"] == "stream":  # progress bars on stderr are omitted
        return _plain(output["text"]) if output["name"] == "stdout" else ""
    if output["output_type"] == "error":
        return _plain("\n".join(output["traceback"]))
    form = next((form for form in FORMS if form in output["data"]), None)
    return FORMS[form](output["data"][form]) if form else ""


def _plotly(figure: dict[str, Any]) -> str:
    shown = {"data": figure["data"], "layout": figure.get("layout", {}), "config": {"responsive": True}}
    script = json.dumps(shown).replace("</", "<\\/")
    return (
        '<div class="plotly"></div><script>Plotly.newPlot(document.currentScript.previousElementSibling, '
        f"{script})</script>"
    )


def _picture(kind: str, base64_data: str) -> str:
    return f'<img alt="" src="data:image/{kind};base64,{base64_data.strip()}">'


def _table(data: str | list[str]) -> str:
    table = re.sub(r"<style.*?</style>", "", "".join(data), flags=re.DOTALL)
    table = re.sub(r"<table[^>]*>", "<table>", table)  # remove pandas' border; the theme has its own
    return re.sub(r"\n\s*", "", f'<div class="output">{table}</div>')


def _plain(text: str | list[str]) -> str:
    return _fenced(ANSI.sub("", "".join(text)).strip("\n"), "{ .text .output }")


# The preferred format of an output comes first. The JSON of plotly precedes its HTML, which would load a remote script.
FORMS: dict[str, Callable[[Any], str]] = {
    "application/vnd.plotly.v1+json": _plotly,
    "image/svg+xml": lambda data: _picture("svg+xml", base64.b64encode("".join(data).encode()).decode()),
    "image/png": lambda data: _picture("png", "".join(data)),
    "text/html": _table,
    "text/markdown": "".join,
    "text/plain": _plain,
}


def _fenced(text: str, language: str) -> str:
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`{3,}", text)), 3)
    return f"{fence}{language}\n{text}\n{fence}"


def _commands() -> str:
    """Return the `--help` of `sp-lens` and of each command. The modules are imported without the package."""
    os.environ |= {"COLUMNS": "80", "NO_COLOR": "1"}
    package = types.ModuleType("sp_lens")  # the real __init__ needs the package to be installed
    package.__path__ = [str(ROOT / "sp_lens")]
    sys.modules["sp_lens"] = package
    cli = importlib.import_module("sp_lens.cli.__main__")
    return "\n\n".join(
        f"## {parser.prog}\n\n{_fenced(parser.format_help(), 'text')}" for parser in _parsers(cli.parser())
    )


def _parsers(parser: Any) -> list[Any]:
    """Return the parser and, recursively, the parsers of its commands."""
    commands = [action.choices.values() for action in parser._actions if isinstance(action.choices, dict)]
    return [parser, *(deeper for group in commands for command in group for deeper in _parsers(command))]
