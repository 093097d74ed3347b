"""Check that held-out data is held out: compare the rows and documents of corpora."""

import hashlib
import itertools
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sp_lens.data.batching import items, reusable
from sp_lens.data.corpora import Corpora
from sp_lens.data.sources.tables import text_name
from sp_lens.data.text import describe
from sp_lens.errors import SpLensError

logger = logging.getLogger(__name__)

# Maximum share of evaluated rows that may be in the collected data too.
SHARED_ROWS = 0.01


@dataclass(frozen=True)
class Content:
    """Hashes of the content of a corpus.

    Attributes:
        fingerprint: Hash of all rows in their order.
        documents: Names of the documents, if the corpus has them.
        rows: Hash of each row or image.
        distinctive: Hashes of the rows and images that are unlikely to recur in unrelated data.
    """

    fingerprint: str
    documents: frozenset[str]
    rows: tuple[bytes, ...]
    distinctive: frozenset[bytes]


def content_of(model: Any, corpus: Any) -> Content:
    """Read a corpus once, as the model reads it, and return hashes of its content."""
    whole, rows, distinctive = hashlib.sha256(), [], set()
    for item in items(model, corpus):
        whole.update(item.content + b"|")
        rows.append(hashlib.sha256(item.content).digest())
        if not item.is_boilerplate:
            distinctive.add(rows[-1])
    return Content(whole.hexdigest()[:16], frozenset(_documents(corpus)), tuple(rows), frozenset(distinctive))


def checked_corpora(model: Any, **corpora: Any) -> tuple[Corpora, dict[str, Any]]:
    """Check that the held-out corpora of a run share no data with the corpora to collect from.

    Args:
        model: Model that reads the corpora.
        corpora: The fields of `Corpora`: `forget`, `retain`, `eval_forget` and `eval_retain`.

    Returns:
        The corpora, of which iterators have been replaced by lists, and a record of each for the settings of the run.

    Raises:
        SpLensError: If a held-out corpus shares data with `forget` or `retain`.
    """
    checked = Corpora(**{name: reusable(corpus) for name, corpus in corpora.items()})
    content = {name: content_of(model, corpus) for name, corpus in checked.items()}
    for names in itertools.product(("forget", "retain"), ("eval_forget", "eval_retain")):
        check_disjoint(content[names[0]], content[names[1]], names)
    about = {name: describe(corpus) | {"fingerprint": content[name].fingerprint} for name, corpus in checked.items()}
    return checked, about


def check_disjoint(collected: Content, evaluated: Content, names: tuple[str, str]) -> None:
    """Raise SpLensError if data to evaluate on is also in the data that was collected from.

    The two may share no document, and at most 1 % of the evaluated rows. Only rows of 16 tokens or more are compared,
    because boilerplate recurs in any real text. A smaller share is logged as a warning.

    Args:
        collected: Content of the corpus that was collected from.
        evaluated: Content of the held-out corpus.
        names: Names of the two corpora for the error message.

    Raises:
        SpLensError: If they share documents or too many rows.
    """
    if shared := collected.documents & evaluated.documents:
        raise SpLensError(
            f"{names[1]} shares {len(shared)} documents with {names[0]}, for example {sorted(shared)[0]!r}: evaluate "
            'on held-out text, load_corpus(..., split="evaluate").'
        )
    count, total = sum(row in collected.distinctive for row in evaluated.rows), len(evaluated.rows)
    if count and count <= SHARED_ROWS * total:
        logger.warning("%s has %d of %d rows in common with %s", names[1], count, total, names[0])
    elif count:
        raise SpLensError(
            f"{names[1]} has {count} rows that are in {names[0]} too: evaluate on held-out data, "
            'load_corpus(..., split="evaluate") or load_images(..., split="evaluate").'
        )


def _documents(corpus: Any) -> Iterable[str]:
    if isinstance(corpus, list):
        return [text_name(text) for text in corpus if isinstance(text, str)]
    return corpus["document"] if "document" in (getattr(corpus, "column_names", None) or ()) else ()
