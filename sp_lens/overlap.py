"""What is in a corpus, to tell it from another, and to refuse evaluating on what was collected from."""

import hashlib
import itertools
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from sp_lens.batches import items
from sp_lens.corpus import describe
from sp_lens.errors import SpLensError
from sp_lens.evaluate import reusable
from sp_lens.rows import text_name

logger = logging.getLogger(__name__)

# The share of evaluated rows that may be in the collected text too.
SHARED_ROWS = 0.01


def checked_corpora(model: Any, **corpora: Any) -> dict[str, Any]:
    """The four corpora of a run, such as can be read again and again; refused where held-out text is not held out."""
    again = {name: reusable(corpus) for name, corpus in corpora.items()}
    for names in itertools.product(("forget", "retain"), ("eval_forget", "eval_retain")):
        check_disjoint(model, again[names[0]], again[names[1]], names)
    return again


def describe_corpora(model: Any, corpora: Mapping[str, Any]) -> dict[str, Any]:
    """Of each corpus where it came from and what was in it, as the settings of a run record it."""
    return {name: describe(corpus) | {"fingerprint": fingerprint(model, corpus)} for name, corpus in corpora.items()}


def fingerprint(model: Any, corpus: Any) -> str:
    """A hash of the corpus as the model reads it, row after row."""
    digest = hashlib.sha256()
    for item in items(model, corpus):
        digest.update(item.content + b"|")
    return digest.hexdigest()[:16]


def check_disjoint(model: Any, collected: Any, evaluated: Any, names: tuple[str, str]) -> None:
    """Refuse to evaluate on text or images that were collected from.

    No document may be in both, and of the evaluated rows at most one in a hundred (rows of 16 tokens or
    more; boilerplate recurs in any real text). What recurs below that is logged.

    Raises:
        SpLensError: naming what is shared.
    """
    if shared := set(_documents(collected)) & set(_documents(evaluated)):
        raise SpLensError(
            f"{names[1]} shares {len(shared)} documents with {names[0]}, {sorted(shared)[0]!r} among them: "
            'evaluate on other text, load_corpus(..., split="evaluate").'
        )
    seen = {_digest(item.content) for item in items(model, collected) if not item.is_boilerplate}
    shared_rows = [_digest(item.content) in seen for item in items(model, evaluated)]
    if (same := sum(shared_rows)) and same <= SHARED_ROWS * len(shared_rows):
        logger.warning("%s has %d of %d rows in common with %s", names[1], same, len(shared_rows), names[0])
    elif same:
        raise SpLensError(
            f"{names[1]} has {same} rows that are in {names[0]} too: evaluate on what was not collected from, "
            'load_corpus(..., split="evaluate") or load_images(..., split="evaluate").'
        )


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _documents(corpus: Any) -> Iterable[str]:
    if isinstance(corpus, list):
        return [text_name(text) for text in corpus if isinstance(text, str)]
    return corpus["document"] if "document" in (getattr(corpus, "column_names", None) or ()) else ()
