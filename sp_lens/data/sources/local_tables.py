"""Read text from the Parquet tables in the folder that the environment variable SP_LENS_DATA names.

The tables hold third-party text that cannot be committed: novels (`gutenberg.parquet`), toxic comments
(`civil-comments-toxic.parquet`), labelled tweets (`tweets-offensive.parquet`) and the articles of WikiText-2
(`wikitext2-valid.parquet`, `wikitext2-test.parquet`). Each reader returns documents by name;
`sp_lens.data.sources.offline` assigns them to dataset splits.
"""

import hashlib
import html
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sp_lens.errors import SpLensError

# Title pages, prefaces and tables of contents are not part of the novel, and chapter titles in capitals are closer to
# code than to prose: in Les Miserables they take 19,000 characters. A book is read from this share of its text onwards.
FRONT_MATTER_SHARE = 0.05


def data_folder() -> Path:
    """Return the folder that `SP_LENS_DATA` names, which holds larger tables of text and images.

    Raises:
        SpLensError: If the variable is not set or does not name a folder.
    """
    folder = os.environ.get("SP_LENS_DATA")
    if not folder or not Path(folder).is_dir():
        raise SpLensError(
            f"this data is read from the folder named by the environment variable SP_LENS_DATA, which is {folder!r}. "
            "Set it to a folder that has the data, or use data that every installation has: the offline corpus "
            "'prose' or the images 'digits'."
        )
    return Path(folder)


def table(name: str) -> Any:
    """Return a Parquet file in the folder that `SP_LENS_DATA` names, as a data frame.

    Raises:
        SpLensError: If there is no such folder or file.
    """
    import pandas as pd

    if not (file := data_folder() / name).is_file():
        raise SpLensError(f"there is no file {file}: set SP_LENS_DATA to a folder that has it.")
    return pd.read_parquet(file)


def novels() -> list[tuple[str, str]]:
    """Return name and text of each novel of Project Gutenberg, without the front matter."""
    books = table("gutenberg.parquet")
    texts = [(f"novels/{title}", str(text)) for title, text in zip(books["title"], books["text"], strict=True)]
    return [(name, text[int(FRONT_MATTER_SHARE * len(text)) :]) for name, text in texts]


def toxic_comments() -> dict[str, str]:
    """Return the toxic comments of Civil Comments by document name; copies of a comment are one document."""
    return _by_name("toxic_comments", table("civil-comments-toxic.parquet")["text"])


def tweets(*, toxic: bool) -> dict[str, str]:
    """Return the cleaned tweets of one label by document name (Davidson et al. 2017).

    Copies and retweets of a tweet are one document. The few tweets that the table has under both labels are left out.

    Args:
        toxic: Whether to return the tweets labelled hate or offensive, instead of those labelled neither.
    """
    frame = table("tweets-offensive.parquet")
    is_toxic = frame["label"] != "neither"
    by_label = {
        label: _by_name("tweets", map(clean_tweet, frame["text"][is_toxic == label])) for label in (True, False)
    }
    return {name: text for name, text in by_label[toxic].items() if name not in by_label[not toxic]}


def wikitext(part: str) -> list[tuple[str, str]]:
    """Return name and text of each article of WikiText-2; `part` is "valid" or "test"."""
    lines = table(f"wikitext2-{part}.parquet")["text"]
    return [(f"wikitext/{_hex_hash(text)}", text) for text in articles(lines)]


def articles(lines: Iterable[str]) -> Iterator[str]:
    """Join the lines of WikiText into articles: " = Title = " begins an article, " = = Section = = " does not."""
    article: list[str] = []
    for line in lines:
        if article and re.fullmatch(r"\s*= [^=].* =\s*", line):
            yield "\n".join(article)
            article = []
        if line.strip():
            article.append(line.strip())
    if article:
        yield "\n".join(article)


def clean_tweet(text: str) -> str:
    """Return a tweet with HTML entities decoded, and without user names, links and the retweet mark.

    Links alone would separate the labels: 23 % of the tweets labelled neither have one, and 10 % of the others.

    Example:
        >>> clean_tweet("!!! RT @someone: Rain &amp; wind\\nagain http://t.co/x")
        '!!! Rain & wind again'
    """
    return " ".join(re.sub(r"https?:\S*|@\w+:?|\bRT\b", " ", html.unescape(text)).split())


def document_of_tweet(text: str) -> str:
    """Return the name of the document that a tweet belongs to: a hash of the words of the cleaned tweet."""
    return f"tweets/{_hex_hash(_words(clean_tweet(text)))}"


def name_hash(name: str) -> int:
    """Return the first 64 bits of the SHA-256 hash of a name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def _by_name(prefix: str, texts: Iterable[str]) -> dict[str, str]:
    """Return the texts by a hash of their words, which copies and retweets share. Texts without a word are dropped."""
    documents: dict[str, str] = {}
    for text in texts:
        if words := _words(text):
            documents.setdefault(f"{prefix}/{_hex_hash(words)}", text)
    return documents


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def _hex_hash(text: str) -> str:
    return f"{name_hash(text):016x}"
