"""Separate Python source into code without docstrings and the prose in its docstrings."""

import ast
import re
import warnings
from collections.abc import Iterable, Iterator


def without_docstrings(source: str) -> str:
    """Return Python source without its docstrings and its leading licence comment, or "" if it is not valid Python.

    Example:
        >>> without_docstrings('def f():\\n    "Say f."\\n    return 1\\n')
        'def f():\\n    return 1\\n'
    """
    tree = _parse(source)
    return "" if tree is None else without_licence(_cut_docstrings(source, tree), "#")


def _cut_docstrings(source: str, tree: ast.Module) -> str:
    # Split lines as ast counts them: str.splitlines also splits at form feeds.
    lines = re.findall(r"[^\n]*\n|[^\n]+", source.replace("\r\n", "\n").replace("\r", "\n"))
    for node in _docstring_owners(tree):
        docstring = node.body[0]
        first, last = docstring.lineno - 1, (docstring.end_lineno or docstring.lineno) - 1
        before = lines[first].encode()[: docstring.col_offset].decode()
        after = lines[last].encode()[docstring.end_col_offset :].decode()
        lines[first : last + 1] = [""] * (last - first + 1)
        if before.strip() or after.strip(" ;\t\n"):  # `class A: "A thing."`
            lines[first] = before + after.lstrip(" ;\t")
    return "".join(lines)


def sentences(source: str) -> str:
    """Return the paragraphs of prose in the docstrings (and topic texts) of Python source.

    A paragraph of prose has at least 60 characters, few symbols, and begins and ends like a sentence.

    Example:
        >>> sentences('"Short.\\\\n\\\\nThis paragraph is long enough to be kept, as it is one whole sentence."')
        'This paragraph is long enough to be kept, as it is one whole sentence.'
    """
    tree = _parse(source)
    if tree is None:
        return ""
    docstrings = [ast.get_docstring(node) or "" for node in _docstring_owners(tree)]
    code = " ".join(_cut_docstrings(source, tree).split())
    # A few modules repeat a sentence of their docstrings in a string. It belongs to the code, so it is left out here.
    kept = [text for text in _paragraphs(docstrings) if text not in code]
    return "\n\n".join(dict.fromkeys(kept + _paragraphs(_topic_texts(tree))))


def _paragraphs(texts: Iterable[str]) -> list[str]:
    """Return the paragraphs of prose in the texts, each on one line."""
    parts = (" ".join(part.split()) for text in texts for part in re.split(r"\n\s*\n", text))
    return [part for part in parts if _is_prose(part)]


def _is_prose(paragraph: str) -> bool:
    if len(paragraph) < 60 or not paragraph[0].isupper() or paragraph[-1] not in ".!?":
        return False
    plain = sum(character.isalpha() or character in " ,.'-" for character in paragraph)
    return plain >= 0.95 * len(paragraph)


def _parse(source: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():  # invalid escape sequences in the parsed modules
            warnings.simplefilter("ignore")
            return ast.parse(source)
    except (SyntaxError, ValueError):  # a template, or a file with NUL bytes
        return None


def _docstring_owners(tree: ast.Module) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        owner = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if owner and ast.get_docstring(node, clean=False) is not None:
            yield node


def _topic_texts(tree: ast.Module) -> list[str]:
    """Return the values of `topics = {...}` in `pydoc_data.topics`, which are prose but not docstrings."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            if names == ["topics"]:
                return [str(value.value) for value in node.value.values if isinstance(value, ast.Constant)]
    return []


def without_licence(source: str, comment_sign: str) -> str:
    """Return source without its first comment if that is a licence.

    Args:
        source: Source code.
        comment_sign: Start of a line comment. Block comments of C are recognized in any case.
    """
    comment = re.match(rf"\s*(/\*.*?\*/\s*|({comment_sign}[^\n]*\n\s*)+)", source, flags=re.DOTALL)
    if comment and re.search("copyright|licen[cs]e", comment.group(), flags=re.IGNORECASE):
        return source[comment.end() :]
    return source
