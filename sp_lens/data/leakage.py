"""What is in a corpus, to tell it from another, and to refuse evaluating on what was collected from."""

import hashlib
import itertools
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sp_lens.data.batching import items, reusable
from sp_lens.data.text import describe
from sp_lens.data.tokenization import text_name
from sp_lens.errors import SpLensError

logger = logging.getLogger(__name__)

# The share of evaluated rows that may be in the collected text too.
SHARED_ROWS = 0.01


@dataclass(frozen=True)
class Content:
    """What one reading of a corpus tells of it.

    Attributes:
        fingerprint: a hash of it as the model reads it, row after row.
        documents: the names of its documents, where it has them.
        rows: a digest of each row or image.
        distinctive: the digests of those that do not recur by chance.
    """

    fingerprint: str
    documents: frozenset[str]
    rows: tuple[bytes, ...]
    distinctive: frozenset[bytes]


def content_of(model: Any, corpus: Any) -> Content:
    """Read a corpus once, as the model reads it."""
    whole, rows, distinctive = hashlib.sha256(), [], set()
    for item in items(model, corpus):
        whole.update(item.content + b"|")
        rows.append(hashlib.sha256(item.content).digest())
        if not item.is_boilerplate:
            distinctive.add(rows[-1])
    return Content(whole.hexdigest()[:16], frozenset(_documents(corpus)), tuple(rows), frozenset(distinctive))


def checked_corpora(model: Any, **corpora: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The four corpora of a run, such as can be read again and again, and what its settings record of each.

    Raises:
        SpLensError: where held-out data is not held out.
    """
    again = {name: reusable(corpus) for name, corpus in corpora.items()}
    content = {name: content_of(model, corpus) for name, corpus in again.items()}
    for names in itertools.product(("forget", "retain"), ("eval_forget", "eval_retain")):
        check_disjoint(content[names[0]], content[names[1]], names)
    about = {name: describe(corpus) | {"fingerprint": content[name].fingerprint} for name, corpus in again.items()}
    return again, about


def check_disjoint(collected: Content, evaluated: Content, names: tuple[str, str]) -> None:
    """Refuse to evaluate on text or images that were collected from.

    No document may be in both, and of the evaluated rows at most one in a hundred (rows of 16 tokens or
    more; boilerplate recurs in any real text). What recurs below that is logged.

    Raises:
        SpLensError: naming what is shared.
    """
    if shared := collected.documents & evaluated.documents:
        raise SpLensError(
            f"{names[1]} shares {len(shared)} documents with {names[0]}, {sorted(shared)[0]!r} among them: "
            'evaluate on other text, load_corpus(..., split="evaluate").'
        )
    same, total = sum(row in collected.distinctive for row in evaluated.rows), len(evaluated.rows)
    if same and same <= SHARED_ROWS * total:
        logger.warning("%s has %d of %d rows in common with %s", names[1], same, total, names[0])
    elif same:
        raise SpLensError(
            f"{names[1]} has {same} rows that are in {names[0]} too: evaluate on what was not collected from, "
            'load_corpus(..., split="evaluate") or load_images(..., split="evaluate").'
        )


def _documents(corpus: Any) -> Iterable[str]:
    if isinstance(corpus, list):
        return [text_name(text) for text in corpus if isinstance(text, str)]
    return corpus["document"] if "document" in (getattr(corpus, "column_names", None) or ()) else ()
