"""Real text that is on this machine: no hub, no download, nothing committed.

The standard library and C/C++ headers are the code; whole sentences out of docstrings are the prose: every machine
that has `sp_lens` has them. Novels, tweets, comments and Wikipedia's articles are in the folder of `SP_LENS_DATA`.
The code has its docstrings cut out, so that no sentence stands in both. A document (a module, a header, the docstrings
of one module, a book, a tweet) goes to training, collecting or evaluating by a hash of its name: no document is ever
in two of them, whatever the versions of Python and of the packages.
"""

import hashlib
import html
import importlib.util
import itertools
import os
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from sp_lens.data.docstrings import sentences, without_docstrings, without_licence
from sp_lens.errors import SpLensError, check_choice
from sp_lens.typing import SPLITS, Split

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
        name: one of `OFFLINE`.
        split: "train", "collect" or "evaluate".

    Yields:
        Documents of about 3000 characters, named after the document that they were cut from.

    Raises:
        SpLensError: for an unknown name or split, or where the text is not on this machine.
    """
    check_choice("offline corpus", name, OFFLINE)
    check_choice("split", split, SPLITS)
    return OFFLINE[name].read(split)


def _python(split: Split) -> Iterator[Document]:
    root = Path(sysconfig.get_paths()["stdlib"])
    return _round_robin(_files("python", root, {".py"}, split), without_docstrings)


def _non_python(split: Split) -> Iterator[Document]:
    roots = [Path(sysconfig.get_paths()["include"]), _package_folder("torch") / "include"]
    suffixes = {".h", ".hpp", ".cuh"}
    files = itertools.chain.from_iterable(_files("non_python", root, suffixes, split) for root in roots)
    return _round_robin(files, lambda text: without_licence(text, "//"))


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
    books = table("gutenberg.parquet")
    named = [(f"novels/{title}", str(text)) for title, text in zip(books["title"], books["text"], strict=True)]
    chosen = (item for item in named if split_of(item[0]) == split)
    return _round_robin(chosen, lambda text: text[int(FRONT_MATTER_SHARE * len(text)) :])


def _toxic_comments(split: Split) -> Iterator[Document]:
    return _short_texts("toxic_comments", _by_words(table("civil-comments-toxic.parquet")["text"]), split)


def _tweets(split: Split, *, toxic: bool) -> Iterator[Document]:
    """Tweets of one label or the other (Davidson et al. 2017); the few that are in the file under both are left out."""
    tweets = table("tweets-offensive.parquet")
    neither = tweets["label"] == "neither"
    sides = [_by_words(map(clean_tweet, tweets["text"][side])) for side in (neither, ~neither)]
    chosen, others = sides[toxic], sides[not toxic]
    return _short_texts("tweets", {words: text for words, text in chosen.items() if words not in others}, split)


def _wikitext(split: Split) -> Iterator[Document]:
    if split == "train":
        raise SpLensError(
            "WikiText is here without the articles that models train on: ask for split='collect' (its validation "
            "articles) or split='evaluate' (its test articles)."
        )
    lines = table(f"wikitext2-{'valid' if split == 'collect' else 'test'}.parquet")["text"]
    return _round_robin(((f"wikitext/{_digest(text)}", text) for text in articles(lines)), lambda text: text)


class OfflineText(NamedTuple):
    """Text that is on this machine.

    Attributes:
        read: its documents in a split.
        origin: what it really is, for the record.
    """

    read: Callable[[Split], Iterator[Document]]
    origin: str


_PROSE = OfflineText(_prose, "sentences of the docstrings of Python's standard library and of installed packages")
OFFLINE: dict[str, OfflineText] = {
    "python": OfflineText(_python, "Python's standard library without its docstrings"),
    "non_python": OfflineText(_non_python, "C and C++ headers of Python and PyTorch"),
    "code": OfflineText(_code, "Python's standard library without its docstrings, and C and C++ headers"),
    "prose": _PROSE,
    "pile_codeless": _PROSE,
    "civil": OfflineText(partial(_tweets, toxic=False), "tweets labelled neither hate nor offensive"),
    "toxic": OfflineText(partial(_tweets, toxic=True), "tweets labelled hate or offensive"),
    "wikitext": OfflineText(_wikitext, "the validation and test articles of WikiText-2"),
    "novels": OfflineText(_novels, "novels of Project Gutenberg"),
    "toxic_comments": OfflineText(_toxic_comments, "toxic comments of Civil Comments"),
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


def table(name: str) -> Any:
    """A data frame that lies in the folder of `SP_LENS_DATA`.

    Raises:
        SpLensError: where it is not there.
    """
    import pandas as pd

    if not (file := data_folder() / name).is_file():
        raise SpLensError(f"there is no {file}: set SP_LENS_DATA to a folder that has it.")
    return pd.read_parquet(file)


def clean_tweet(text: str) -> str:
    """A tweet without what is not its words: user names, links, the mark of a retweet, HTML's entities.

    Links alone would tell the labels apart (23 % of the tweets that are neither have one, 10 % of the others).

    Example:
        >>> clean_tweet("!!! RT @someone: Rain &amp; wind\\nagain http://t.co/x")
        '!!! Rain & wind again'
    """
    return " ".join(re.sub(r"https?:\S*|@\w+:?|\bRT\b", " ", html.unescape(text)).split())


def articles(lines: Iterable[str]) -> Iterator[str]:
    """The articles whose lines these are, as WikiText has them: " = Title = " begins one, " = = Part = = " does not."""
    article: list[str] = []
    for line in lines:
        if article and re.fullmatch(r"\s*= [^=].* =\s*", line):
            yield "\n".join(article)
            article = []
        if line.strip():
            article.append(line.strip())
    if article:
        yield "\n".join(article)


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def _by_words(texts: Iterable[str]) -> dict[str, str]:
    """The texts by their words alone, so that copies, retweets among them, are one; those without a word go."""
    found: dict[str, str] = {}
    for text in texts:
        found.setdefault(_words(text), text)
    found.pop("", None)
    return found


def _short_texts(prefix: str, by_words: dict[str, str], split: Split) -> Iterator[Document]:
    """Each text a document, in the order of the names' hashes: the files are sorted by text or by date."""
    named = ((f"{prefix}/{_digest(words)}", text) for words, text in by_words.items())
    chosen = [Document(name, text) for name, text in named if split_of(name) == split]
    return iter(sorted(chosen, key=lambda document: _hash(document.name)))


def _digest(text: str) -> str:
    return f"{_hash(text):016x}"


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
        rest = passages(clean(text))
        if first := next(rest, None):
            yield Document(name, first)
            waiting.append((name, rest))
    while waiting:
        still_waiting = []
        for name, rest in waiting:
            if passage := next(rest, None):
                yield Document(name, passage)
                still_waiting.append((name, rest))
        waiting = still_waiting


def passages(text: str) -> Iterator[str]:
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
