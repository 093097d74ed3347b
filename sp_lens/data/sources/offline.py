"""Read text that is on this machine already, without the Hugging Face Hub. Nothing is downloaded or committed.

Every installation has the offline corpora "python", "non_python" and "code" (source code of the standard library and
C/C++ headers, without docstrings) and "prose" (whole sentences from docstrings). No sentence is in both code and prose.
The other offline corpora (novels, tweets, comments, WikiText) need the folder `SP_LENS_DATA`.

A document (a module, a header, the docstrings of a module, a book, a tweet) is assigned to the split train, collect or
evaluate by a hash of its name, so it is in the same split on every machine, whatever the versions of the packages.
"""

import importlib.util
import itertools
import os
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from sp_lens.data.sources.docstrings import sentences, without_docstrings, without_licence
from sp_lens.data.sources.local_tables import document_of_tweet, name_hash, novels, toxic_comments, tweets, wikitext
from sp_lens.data.sources.tables import Document
from sp_lens.errors import SpLensError, check_choice
from sp_lens.typing import SPLITS, Split

# Documents are read in passages of about this many characters (some 1000 tokens, where the released experiments cut
# their documents). The first passage of every document comes before the second passage of any.
PASSAGE_CHARACTERS = 3000
# Share of the documents in the split train. The splits collect and evaluate take half of the rest each.
TRAIN_SHARE = 0.6
# Dependencies of sp_lens whose docstrings are read as prose, in addition to the standard library.
DOCUMENTED_PACKAGES = (
    "torch", "transformers", "transformer_lens", "numpy", "pandas", "datasets", "networkx", "sympy",
    "huggingface_hub",
)  # fmt: skip
# Tests are not part of the library, encodings are tables, pydoc_data is prose, and ATen/ops is 7,000 generated stubs.
SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "encodings", "pydoc_data", "__pycache__", "ops"}


def split_of(name: str) -> Split:
    """Return the dataset split of the document called `name`: 60 % train, 20 % collect, 20 % evaluate.

    Example:
        >>> split_of("python/json/decoder.py"), split_of("python/ast.py")
        ('train', 'evaluate')
    """
    position = name_hash(name) / 2**64
    if position < TRAIN_SHARE:
        return "train"
    return "collect" if position < (1 + TRAIN_SHARE) / 2 else "evaluate"


def split_of_tweet(text: str) -> Split:
    """Return the dataset split of a tweet in the offline corpora "civil" and "toxic".

    Copies and retweets of a tweet are in the same split, because only its words count. Train a classifier on tweets of
    the split "train" alone, so that it has not seen the text of the other splits.

    Args:
        text: Tweet as the table has it, before it is cleaned.

    Example:
        >>> split_of_tweet("RT @someone: Rain &amp; wind!") == split_of_tweet("rain & wind http://t.co/x")
        True
    """
    return split_of(document_of_tweet(text))


def read_offline(name: str, split: Split) -> Iterator[Document]:
    """Read the passages of an offline corpus in one split, in an order that is the same on every machine.

    Args:
        name: Name of the offline corpus, one of `OFFLINE`.
        split: Dataset split: "train", "collect" or "evaluate".

    Yields:
        Documents of about 3000 characters, with the name of the document that they were cut from.

    Raises:
        SpLensError: If the name or the split is unknown, or if the text is not on this machine.
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
    return _round_robin((name, text) for name, text in novels() if split_of(name) == split)


def _toxic_comments(split: Split) -> Iterator[Document]:
    return _short_texts(toxic_comments(), split)


def _tweets(split: Split, *, toxic: bool) -> Iterator[Document]:
    return _short_texts(tweets(toxic=toxic), split)


def _wikitext(split: Split) -> Iterator[Document]:
    if split == "train":
        raise SpLensError(
            "the offline corpus 'wikitext' has no split 'train': choose 'collect' (the validation articles of "
            "WikiText-2) or 'evaluate' (its test articles)."
        )
    return _round_robin(wikitext("valid" if split == "collect" else "test"))


class OfflineText(NamedTuple):
    """An offline corpus.

    Attributes:
        read: Function that returns the documents of a split.
        origin: Description of the text, which results record.
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


def _package_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SpLensError(
            f"the offline text includes the package {package!r}, which is not installed: install it with pip."
        )
    return Path(spec.submodule_search_locations[0])


def _files(prefix: str, root: Path, suffixes: set[str], split: Split) -> Iterator[tuple[str, Path]]:
    """Return name and path of the files of a split, in the order of the hashes of the names."""
    named_paths = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in SKIPPED_FOLDERS]
        for file in files:
            path = Path(folder, file)
            name = f"{prefix}/{path.relative_to(root).as_posix()}"
            if path.suffix in suffixes and split_of(name) == split:
                named_paths.append((name, path))
    return iter(sorted(named_paths, key=lambda item: name_hash(item[0])))


def _short_texts(documents: Mapping[str, str], split: Split) -> Iterator[Document]:
    """Return each text of a split whole, in the order of the hashes of the names: tables are sorted by text or date."""
    selected = [Document(name, text) for name, text in documents.items() if split_of(name) == split]
    return iter(sorted(selected, key=lambda document: name_hash(document.name)))


def _round_robin(
    sources: Iterable[tuple[str, Path | str]], clean: Callable[[str], str] = lambda text: text
) -> Iterator[Document]:
    """Yield the first passage of every document, then every second passage, and so on: breadth before depth."""
    unfinished = []
    for name, source in sources:
        text = source.read_text("utf-8", errors="ignore") if isinstance(source, Path) else source
        remaining = passages(clean(text))
        if first := next(remaining, None):
            yield Document(name, first)
            unfinished.append((name, remaining))
    while unfinished:
        still_unfinished = []
        for name, remaining in unfinished:
            if passage := next(remaining, None):
                yield Document(name, passage)
                still_unfinished.append((name, remaining))
        unfinished = still_unfinished


def passages(text: str) -> Iterator[str]:
    """Cut a text into passages of whole lines, each of at most `PASSAGE_CHARACTERS` unless one line is longer."""
    lines: list[str] = []
    size = 0
    for line in text.splitlines(keepends=True):
        if lines and size + len(line) > PASSAGE_CHARACTERS:
            yield "".join(lines)
            lines, size = [], 0
        lines.append(line)
        size += len(line)
    if (rest := "".join(lines)).strip():
        yield rest
