"""Real text that is on every machine that has `sp_lens`: no hub, no download, nothing committed.

The standard library and C/C++ headers are the code; whole sentences out of docstrings are the prose.
The code has its docstrings cut out, so that no sentence stands in both. A document (a module, a header,
the docstrings of one module, a book) goes to training, collecting or evaluating by a hash of its name:
no document is ever in two of them, whatever the versions of Python and of the packages.
"""

import ast
import hashlib
import importlib.util
import itertools
import os
import re
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from sp_lens.errors import SpLensError, check_choice

Split = Literal["train", "collect", "evaluate"]
SPLITS: tuple[Split, ...] = get_args(Split)

# A document is read in passages of about this many characters (some 1000 tokens, where the released
# experiments cut their documents), one passage of every document before the second of any.
PASSAGE_CHARACTERS = 3000
# Title pages, prefaces and tables of contents are no novel, and chapter heads in capitals are closer to code than to
# prose: of Les Miserables they take 19,000 characters. A book is read after this share of it.
FRONT_MATTER_SHARE = 0.05
# Share of the documents that training takes; collecting and evaluating halve the rest.
TRAIN_SHARE = 0.6
# Whose docstrings are read as prose, beside the standard library: packages that come with `sp_lens`.
DOCUMENTED_PACKAGES = (
    "torch", "transformers", "transformer_lens", "numpy", "pandas", "datasets", "networkx", "sympy",
    "huggingface_hub",
)  # fmt: skip
# Tests are not the library; encodings are tables; pydoc_data is prose; ATen/ops is 7,000 generated stubs.
SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "encodings", "pydoc_data", "__pycache__", "ops"}


class Document(NamedTuple):
    """A named text. The name, not the place on this machine, decides which split it belongs to."""

    name: str
    text: str


def split_of(name: str) -> Split:
    """The split of the document called `name`: 60 % train, 20 % collect, 20 % evaluate.

    Example:
        >>> split_of("python/json/decoder.py"), split_of("python/ast.py")
        ('train', 'evaluate')
    """
    position = _hash(name) / 2**64
    if position < TRAIN_SHARE:
        return "train"
    return "collect" if position < (1 + TRAIN_SHARE) / 2 else "evaluate"


def read_offline(name: str, split: Split) -> Iterator[Document]:
    """Passages of the offline corpus `name` in one `split`, in an order that is the same everywhere.

    Args:
        name: "python", "non_python", "code" (both), "prose", or "novels" (needs `SP_LENS_DATA`).
        split: "train", "collect" or "evaluate".

    Yields:
        Documents of about 3000 characters, named after the document that they were cut from.

    Raises:
        SpLensError: for an unknown name or split, or where the novels are not on this machine.
    """
    check_choice("offline corpus", name, READERS)
    check_choice("split", split, SPLITS)
    return READERS[name](split)


def _python(split: Split) -> Iterator[Document]:
    root = Path(sysconfig.get_paths()["stdlib"])
    return _round_robin(_files("python", root, {".py"}, split), without_docstrings)


def _non_python(split: Split) -> Iterator[Document]:
    roots = [Path(sysconfig.get_paths()["include"]), _package_folder("torch") / "include"]
    suffixes = {".h", ".hpp", ".cuh"}
    files = itertools.chain.from_iterable(_files("non_python", root, suffixes, split) for root in roots)
    return _round_robin(files, lambda text: _without_licence(text, "//"))


def _code(split: Split) -> Iterator[Document]:
    for pair in itertools.zip_longest(_python(split), _non_python(split)):
        yield from (document for document in pair if document is not None)


def _prose(split: Split) -> Iterator[Document]:
    standard_library = Path(sysconfig.get_paths()["stdlib"])
    files = [*_files("prose", standard_library, {".py"}, split)]
    topics = standard_library / "pydoc_data" / "topics.py"
    if topics.exists() and split_of("prose/pydoc_data/topics.py") == split:
        files.append(("prose/pydoc_data/topics.py", topics))
    for package in DOCUMENTED_PACKAGES:
        if importlib.util.find_spec(package):
            files.extend(_files(f"prose/{package}", _package_folder(package), {".py"}, split))
    return _round_robin(files, sentences)


def _novels(split: Split) -> Iterator[Document]:
    import pandas as pd

    file = data_folder() / "gutenberg.parquet"
    if not file.is_file():
        raise SpLensError(f"there is no {file}: set SP_LENS_DATA to a folder that has it.")
    books = pd.read_parquet(file)
    named = [(f"novels/{title}", str(text)) for title, text in zip(books["title"], books["text"], strict=True)]
    chosen = (item for item in named if split_of(item[0]) == split)
    return _round_robin(chosen, lambda text: text[int(FRONT_MATTER_SHARE * len(text)) :])


READERS: dict[str, Callable[[Split], Iterator[Document]]] = {
    "python": _python,
    "non_python": _non_python,
    "code": _code,
    "prose": _prose,
    "novels": _novels,
}


def data_folder() -> Path:
    """The folder that `SP_LENS_DATA` names, where larger texts and images lie.

    Raises:
        SpLensError: when the variable is not set or names no folder.
    """
    folder = os.environ.get("SP_LENS_DATA")
    if not folder or not Path(folder).is_dir():
        raise SpLensError(
            f"this is read from the folder named by the environment variable SP_LENS_DATA, which is {folder!r}: "
            "set it to a folder that has the data, or use what is on every machine: the offline corpus 'prose', the "
            "images 'digits'."
        )
    return Path(folder)


def without_docstrings(source: str) -> str:
    """Python `source` with its docstrings and its leading licence comment cut out; "" if it does not parse.

    Example:
        >>> without_docstrings('def f():\\n    "Say f."\\n    return 1\\n')
        'def f():\\n    return 1\\n'
    """
    tree = _parse(source)
    return "" if tree is None else _without_licence(_cut_docstrings(source, tree), "#")


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


def _without_licence(source: str, comment_sign: str) -> str:
    """`source` without the comment at its head, if that is a licence."""
    comment = re.match(rf"\s*(/\*.*?\*/\s*|({comment_sign}[^\n]*\n\s*)+)", source, flags=re.DOTALL)
    if comment and re.search("copyright|licen[cs]e", comment.group(), flags=re.IGNORECASE):
        return source[comment.end() :]
    return source


def _package_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SpLensError(
            f"the offline text reads the package {package!r}, which is not installed: install it with pip."
        )
    return Path(spec.submodule_search_locations[0])


def _files(prefix: str, root: Path, suffixes: set[str], split: Split) -> Iterator[tuple[str, Path]]:
    """Name and path of the files of a split, in the order of the names' hashes."""
    found = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in SKIPPED_FOLDERS]
        for file in files:
            path = Path(folder, file)
            name = f"{prefix}/{path.relative_to(root).as_posix()}"
            if path.suffix in suffixes and split_of(name) == split:
                found.append((name, path))
    return iter(sorted(found, key=lambda item: _hash(item[0])))


def _round_robin(documents: Iterable[tuple[str, Path | str]], clean: Callable[[str], str]) -> Iterator[Document]:
    """The first passage of every document, then every second one, and so on: breadth before depth."""
    waiting = []
    for name, source in documents:
        text = source.read_text("utf-8", errors="ignore") if isinstance(source, Path) else source
        passages = _passages(clean(text))
        if first := next(passages, None):
            yield Document(name, first)
            waiting.append((name, passages))
    while waiting:
        still_waiting = []
        for name, passages in waiting:
            if passage := next(passages, None):
                yield Document(name, passage)
                still_waiting.append((name, passages))
        waiting = still_waiting


def _passages(text: str) -> Iterator[str]:
    """`text` in pieces of whole lines, each of at most `PASSAGE_CHARACTERS` unless a line is longer."""
    piece: list[str] = []
    size = 0
    for line in text.splitlines(keepends=True):
        if piece and size + len(line) > PASSAGE_CHARACTERS:
            yield "".join(piece)
            piece, size = [], 0
        piece.append(line)
        size += len(line)
    if (rest := "".join(piece)).strip():
        yield rest


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
