"""Anything sensible that holds text or tokens -> rows of tokens.

A row says of each token whether it counts: padding, BOS and other special tokens never do, by an explicit
mask, since a pad id may equal an eos id. Padding that a row came with, on either side, is taken off.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int

from sp_lens.errors import SpLensError
from sp_lens.models.task import require_tokens, task_of

# Where the released experiments cut their documents.
DOCUMENT_TOKENS = 1000
# A longer text is tokenized in parts of so many characters, as a tokenizer takes some 200 bytes for each.
PART_CHARACTERS = 1_000_000
_COLUMNS = ("input_ids", "attention_mask", "document")  # of a dataset, those that are read


class Row(NamedTuple):
    """The tokens of one row, without padding, and which of them count; its place in the corpus, and its document."""

    tokens: Int[torch.Tensor, " pos"]
    counted: Bool[torch.Tensor, " pos"]
    number: int
    document: str | None

    @property
    def content(self) -> bytes:
        """What the model reads, to tell one row from another."""
        return self.tokens.numpy().tobytes()

    @property
    def owner(self) -> str | int:
        """What the row is counted with: its document, or where it is of none, itself, by its number."""
        return self.number if self.document is None else self.document

    @property
    def is_boilerplate(self) -> bool:
        """Whether it is so short that it may well recur in text that is no copy."""
        return len(self.tokens) < 16


def split_text(
    tokenizer: Any, text: str, *, row_tokens: int, head: Sequence[int] = (), tail: Sequence[int] = ()
) -> Iterator[list[int]]:
    """The rows of one text: its tokens in pieces, special ones before and after each, of at most `row_tokens`.

    Of a long text no more is tokenized than rows are asked for.
    """
    step = row_tokens - len(head) - len(tail)
    if step < 1:
        raise SpLensError(f"rows of {row_tokens} tokens have no place for text beside the special ones: ask for more.")
    last: list[int] = []
    for piece in _pieces(tokenizer, text, step):
        if last and len(head) + len(piece) + len(tail) == 1:  # the end, which predicts nothing: give it company
            if len(last) == 2:  # rows of two: it would leave the one before alone
                break
            piece.insert(0, last.pop())
        if last:
            yield [*head, *last, *tail]
        last = piece
    if last:
        yield [*head, *last, *tail]


def _pieces(tokenizer: Any, text: str, size: int) -> Iterator[list[int]]:
    """The tokens of a text, so many at a time."""
    tokens: list[int] = []
    for part in _parts(text):
        tokens += tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]
        whole = len(tokens) // size * size
        yield from (tokens[start : start + size] for start in range(0, whole, size))
        tokens = tokens[whole:]
    if tokens:
        yield tokens


def _parts(text: str) -> Iterator[str]:
    """The text in parts of at most `PART_CHARACTERS`, each ending before a space or a line break, if there is any."""
    start = 0
    while len(text) - start > PART_CHARACTERS:
        end = start + PART_CHARACTERS
        gap = max(text.rfind(" ", start, end), text.rfind("\n", start, end))
        end = gap if gap > start else end
        yield text[start:end]
        start = end
    yield text[start:]


def tokenizer_of(model: Any) -> Any:
    """The model's tokenizer.

    Raises:
        SpLensError: when it has none, or reads no tokens.
    """
    require_tokens(model)
    if getattr(model, "tokenizer", None) is None:
        raise SpLensError("the model has no tokenizer, so it can't read text: pass one when loading it.")
    return model.tokenizer


def frame_of(model: Any) -> tuple[list[int], list[int]]:
    """The special tokens before and after each of the model's texts.

    [CLS] and [SEP] around what a BERT or a RoBERTa reads; BOS before any other's, where TransformerLens puts it
    (not before Pythia's).
    """
    tokenizer = tokenizer_of(model)
    if task_of(model) != "causal" and tokenizer.cls_token_id is not None:
        ends = ([tokenizer.cls_token_id], [tokenizer.sep_token_id])
    else:
        ends = ([tokenizer.bos_token_id] if getattr(model.cfg, "default_prepend_bos", True) else [], [])
    head, tail = ([token for token in end if token is not None] for end in ends)
    return head, tail


def rows(model: Any, corpus: Any) -> Iterator[Row]:
    """The rows of whatever came as a corpus.

    Args:
        model: a bridge or `HookedTransformer`; says which ids are special and how long a row may be.
        corpus: a `datasets.Dataset` with `input_ids` (and optionally `attention_mask`), a list of strings,
            or an iterable of batches: tensors [row pos], or mappings such as a tokenizer returns.

    Raises:
        SpLensError: for anything else, for rows that the model can't read, and for a model that reads no tokens.
    """
    require_tokens(model)
    if isinstance(corpus, str):
        raise SpLensError(f"a corpus is a list of strings, got the string {corpus[:40]!r}: wrap it in a list.")
    if isinstance(corpus, Mapping | torch.Tensor):
        corpus = [corpus]  # one batch
    columns = getattr(corpus, "column_names", None)
    if columns is not None:
        if "input_ids" not in columns:
            raise SpLensError(
                f"the dataset has the columns {columns} and no 'input_ids': make rows of its text first, "
                "load_corpus(dataset['text'], model)."
            )
        corpus = corpus.select_columns([name for name in _COLUMNS if name in columns])
    if not isinstance(corpus, Iterable):
        raise SpLensError(
            f"a corpus is a dataset, a list of strings or batches of tokens, got {type(corpus).__name__}."
        )
    special, longest = _special_ids(model), model.cfg.n_ctx
    number = 0
    for item in corpus:
        document = _document(item)
        for tokens in _token_rows(model, item, longest):
            _check_row(model, tokens, longest)
            yield Row(tokens, ~torch.isin(tokens, special), number, document)
            number += 1
    if not number:
        raise SpLensError("the corpus is empty: expected at least one row of tokens.")


def _document(item: Any) -> str | None:
    """The name of the document that an item of a corpus is of, where it says so."""
    if isinstance(item, str):
        return text_name(item)
    document = item.get("document") if isinstance(item, Mapping) else None
    return document if isinstance(document, str) else None


def text_name(text: str) -> str:
    """What a text of the caller's own is called as a document: by what it says.

    Raises:
        SpLensError: for a text with half a character in it, which no tokenizer reads.
    """
    try:
        return f"text {hashlib.sha256(text.encode()).hexdigest()[:12]}"
    except UnicodeEncodeError as error:
        raise SpLensError(
            f"the text {text[:40]!a} has half of a surrogate pair in it, which is no character ({error.reason}): read "
            'the file as UTF-8, or say text.encode("utf-8", "replace").decode().'
        ) from error


def _token_rows(model: Any, item: Any, longest: int) -> Iterator[torch.Tensor]:
    """The rows of tokens, without padding, in one item of a corpus."""
    if isinstance(item, str):
        head, tail = frame_of(model)
        row_tokens = min(longest, DOCUMENT_TOKENS)
        text_rows = list(split_text(tokenizer_of(model), item, row_tokens=row_tokens, head=head, tail=tail))
        if sum(len(row) for row in text_rows) < 2:
            raise SpLensError(f"the text {item[:40]!r} has fewer than two tokens: take it out of the corpus.")
        yield from (torch.tensor(row) for row in text_rows)
        return
    mask = None
    if isinstance(item, Mapping):
        if "input_ids" not in item:
            raise SpLensError(f"a batch has the keys {list(item)} and no 'input_ids'.")
        mask, item = item.get("attention_mask"), item["input_ids"]
        if isinstance(item, list) and item and isinstance(item[0], list):  # a tokenizer's rows, unpadded perhaps
            for row, row_mask in zip(item, mask or [None] * len(item), strict=True):
                yield from _token_rows(model, {"input_ids": row, "attention_mask": row_mask}, longest)
            return
    try:
        tokens = torch.as_tensor(item).cpu()
        keep = torch.ones_like(tokens, dtype=torch.bool) if mask is None else torch.as_tensor(mask).cpu().bool()
    except (TypeError, ValueError, RuntimeError) as error:
        raise SpLensError(
            f"cannot read {type(item).__name__} as rows of tokens: expected a datasets.Dataset with 'input_ids', "
            f"a list of strings, or an iterable of batches [row pos] ({error})."
        ) from error
    if tokens.numel() and (tokens.is_floating_point() or tokens.dtype == torch.bool):
        raise SpLensError(f"tokens are whole numbers, got {tokens.dtype}.")
    tokens = tokens.long()
    if keep.shape != tokens.shape:
        raise SpLensError(
            f"attention_mask has shape {tuple(keep.shape)}, input_ids {tuple(tokens.shape)}: make them equal."
        )
    if tokens.ndim not in (1, 2):
        raise SpLensError(f"tokens have shape {tuple(tokens.shape)}: expected [pos] or [row pos].")
    for row, kept in zip(torch.atleast_2d(tokens), torch.atleast_2d(keep), strict=True):
        if mask is None and tokens.ndim == 2:
            _check_not_padded(model, row)
        yield row[kept]


def _check_not_padded(model: Any, row: torch.Tensor) -> None:
    """Padding on the right does nothing to a causal model; elsewhere it would be read as text."""
    tokenizer = getattr(model, "tokenizer", None)
    pad = getattr(tokenizer, "pad_token_id", None)
    if pad is None:
        return
    heading = 2 if pad == getattr(tokenizer, "bos_token_id", None) else 1  # one may be BOS
    left = len(row) > heading and bool((row[:heading] == pad).all())
    right = task_of(model) != "causal" and int(row[-1]) == pad != getattr(tokenizer, "sep_token_id", None)
    if left or right:
        raise SpLensError(
            f"a row {'starts with' if left else 'ends in'} padding and no attention_mask says so: give batches as the "
            "tokenizer returns them, {'input_ids': ..., 'attention_mask': ...}."
        )


def _check_row(model: Any, tokens: torch.Tensor, longest: int) -> None:
    if len(tokens) < 2:
        raise SpLensError(f"a row has {len(tokens)} token(s): expected at least two, of which one can be predicted.")
    if len(tokens) > longest:
        raise SpLensError(
            f"a row has {len(tokens)} tokens, and the model reads {longest}: cut the rows, "
            "load_corpus(..., row_tokens=...)."
        )
    if int(tokens.min()) < 0 or int(tokens.max()) >= model.cfg.d_vocab:
        raise SpLensError(
            f"a row has token ids from {int(tokens.min())} to {int(tokens.max())}, and the model knows 0 to "
            f"{model.cfg.d_vocab - 1}: was it made with the tokenizer of another model?"
        )


def _special_ids(model: Any) -> torch.Tensor:
    tokenizer = getattr(model, "tokenizer", None)
    return torch.tensor(tokenizer.all_special_ids if tokenizer else [], dtype=torch.long)


def tokenizer_as_it_came(tokenizer: Any) -> Any:
    """The tokenizer without what TransformerLens changed: its copy puts BOS before every text and has a pad token."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(tokenizer.name_or_path, local_files_only=True)
    except (OSError, ValueError):  # it was made in memory, or its folder is gone
        return tokenizer
