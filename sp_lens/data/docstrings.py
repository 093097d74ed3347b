"""Python source, taken apart: the code without its docstrings, and the prose that is in them."""

import ast
import re
import warnings
from collections.abc import Iterable, Iterator


def without_docstrings(source: str) -> str:
    """Python `source` with its docstrings and its leading licence comment cut out; "" if it does not parse.

    Example:
        >>> without_docstrings('def f():\\n    "Say f."\\n    return 1\\n')
        'def f():\\n    return 1\\n'
    """
    tree = _parse(source)
    return "" if tree is None else without_licence(_cut_docstrings(source, tree), "#")


def _cut_docstrings(source: str, tree: ast.Module) -> str:
    # Lines as ast counts them; str.splitlines also cuts at form feeds.
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
    """The paragraphs of whole sentences with few symbols in the docstrings (and topic texts) of `source`.

    Example:
        >>> sentences('"Short.\\\\n\\\\nThis paragraph is long enough to be kept, as it is one whole sentence."')
        'This paragraph is long enough to be kept, as it is one whole sentence.'
    """
    tree = _parse(source)
    if tree is None:
        return ""
    docstrings = [ast.get_docstring(node) or "" for node in _docstring_owners(tree)]
    code = " ".join(_cut_docstrings(source, tree).split())
    # A few modules say a sentence of their docstrings again in a string: it counts as code.
    kept = [text for text in _paragraphs(docstrings) if text not in code]
    return "\n\n".join(dict.fromkeys(kept + _paragraphs(_topic_texts(tree))))


def _paragraphs(texts: Iterable[str]) -> list[str]:
    """The paragraphs of the texts that are prose, each on one line."""
    parts = (" ".join(part.split()) for text in texts for part in re.split(r"\n\s*\n", text))
    return [part for part in parts if _is_prose(part)]


def _is_prose(paragraph: str) -> bool:
    if len(paragraph) < 60 or not paragraph[0].isupper() or paragraph[-1] not in ".!?":
        return False
    plain = sum(character.isalpha() or character in " ,.'-" for character in paragraph)
    return plain >= 0.95 * len(paragraph)


def _parse(source: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():  # invalid escapes in other people's modules
            warnings.simplefilter("ignore")
            return ast.parse(source)
    except (SyntaxError, ValueError):  # a template, or a file with NUL bytes: not Python
        return None


def _docstring_owners(tree: ast.Module) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        owner = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if owner and ast.get_docstring(node, clean=False) is not None:
            yield node


def _topic_texts(tree: ast.Module) -> list[str]:
    """The values of `topics = {...}` in `pydoc_data.topics`, which are not docstrings."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            if names == ["topics"]:
                return [str(value.value) for value in node.value.values if isinstance(value, ast.Constant)]
    return []


def without_licence(source: str, comment_sign: str) -> str:
    """`source` without the comment at its head, if that is a licence; C's block comments count whatever the sign."""
    comment = re.match(rf"\s*(/\*.*?\*/\s*|({comment_sign}[^\n]*\n\s*)+)", source, flags=re.DOTALL)
    if comment and re.search("copyright|licen[cs]e", comment.group(), flags=re.IGNORECASE):
        return source[comment.end() :]
    return source
