"""Convert a corpus of text or tokens into rows of tokens.

A row marks which of its tokens are counted: all but BOS and the other special tokens. Padding in the input, on either
side, is removed according to the attention mask, because the pad id may equal the eos id.
"""

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int

from sp_lens.errors import SpLensError
from sp_lens.models.task import require_tokens, task_of

# The released experiments cut documents at this number of tokens.
DOCUMENT_TOKENS = 1000
# A longer text is tokenized in parts of this many characters, because a tokenizer needs about 200 bytes per character.
PART_CHARACTERS = 1_000_000
_COLUMNS = ("input_ids", "attention_mask", "document")  # the columns of a dataset that are read


class Row(NamedTuple):
    """A sequence of tokens without padding.

    Attributes:
        tokens: Token ids.
        counted: Whether each token is counted, that is, not a special token.
        number: Index of the row in the corpus.
        document: Name of the document that the row is from, if it is known.
    """

    tokens: Int[torch.Tensor, " pos"]
    counted: Bool[torch.Tensor, " pos"]
    number: int
    document: str | None

    @property
    def content(self) -> bytes:
        """The token ids as bytes, to compare rows with each other."""
        return self.tokens.numpy().tobytes()

    @property
    def item(self) -> str | int:
        """The document of the row, or the index of the row if it has no document."""
        return self.number if self.document is None else self.document

    @property
    def is_boilerplate(self) -> bool:
        """Whether the row is so short that it may recur in unrelated text."""
        return len(self.tokens) < 16


def split_text(
    tokenizer: Any, text: str, *, row_tokens: int, head: Sequence[int] = (), tail: Sequence[int] = ()
) -> Iterator[list[int]]:
    """Tokenize a text and split it into rows. The text is tokenized lazily, as rows are consumed.

    Args:
        tokenizer: Tokenizer of transformers.
        text: Text to split.
        row_tokens: Maximum number of tokens in a row, special tokens included.
        head: Special tokens at the start of every row.
        tail: Special tokens at the end of every row.

    Raises:
        SpLensError: If the special tokens leave no space for text.
    """
    step = row_tokens - len(head) - len(tail)
    if step < 1:
        raise SpLensError(
            f"rows of {row_tokens} tokens have no space for text besides the special tokens: pass a larger row_tokens."
        )
    previous: list[int] = []
    for piece in _pieces(tokenizer, text, step):
        if previous and len(head) + len(piece) + len(tail) == 1:
            # The last piece would be a row of one token, which predicts nothing: move a token from the previous row.
            if len(previous) == 2:  # the previous row would be left with one token: drop this piece
                break
            piece.insert(0, previous.pop())
        if previous:
            yield [*head, *previous, *tail]
        previous = piece
    if previous:
        yield [*head, *previous, *tail]


def _pieces(tokenizer: Any, text: str, size: int) -> Iterator[list[int]]:
    """Yield the tokens of a text in lists of `size` tokens; the last list may be shorter."""
    tokens: list[int] = []
    for part in _parts(text):
        tokens += tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]
        complete = len(tokens) // size * size
        yield from (tokens[start : start + size] for start in range(0, complete, size))
        tokens = tokens[complete:]
    if tokens:
        yield tokens


def _parts(text: str) -> Iterator[str]:
    """Yield parts of at most `PART_CHARACTERS` characters, cut before a space or line break if there is one."""
    start = 0
    while len(text) - start > PART_CHARACTERS:
        end = start + PART_CHARACTERS
        gap = max(text.rfind(" ", start, end), text.rfind("\n", start, end))
        end = gap if gap > start else end
        yield text[start:end]
        start = end
    yield text[start:]


def tokenizer_of(model: Any) -> Any:
    """Return the tokenizer of the model.

    Raises:
        SpLensError: If the model has no tokenizer or does not read tokens.
    """
    require_tokens(model)
    if getattr(model, "tokenizer", None) is None:
        raise SpLensError("the model has no tokenizer, so it cannot read text: pass a tokenizer when you load it.")
    return model.tokenizer


def frame_of(model: Any) -> tuple[list[int], list[int]]:
    """Return the special tokens at the start and at the end of every row of the model.

    These are [CLS] and [SEP] for BERT and RoBERTa. Other models have BOS at the start, if TransformerLens prepends it
    (it does not for Pythia).
    """
    tokenizer = tokenizer_of(model)
    if task_of(model) != "causal" and tokenizer.cls_token_id is not None:
        ends = ([tokenizer.cls_token_id], [tokenizer.sep_token_id])
    else:
        ends = ([tokenizer.bos_token_id] if getattr(model.cfg, "default_prepend_bos", True) else [], [])
    head, tail = ([token for token in end if token is not None] for end in ends)
    return head, tail


def rows(model: Any, corpus: Any) -> Iterator[Row]:
    """Yield the rows of a corpus.

    Args:
        model: A `TransformerBridge` or a `HookedTransformer`. It defines the special tokens and the longest row.
        corpus: A `datasets.Dataset` with `input_ids` (and optionally `attention_mask` and `document`), a list of
            strings, or an iterable of batches. A batch is a tensor [row pos] or a mapping as a tokenizer returns it.

    Raises:
        SpLensError: If the corpus is empty or of another type, if a row is not valid for the model, or if the model
            does not read tokens.
    """
    require_tokens(model)
    if isinstance(corpus, str):
        raise SpLensError(f"a corpus is a list of strings, got the string {corpus[:40]!r}: wrap it in a list.")
    if isinstance(corpus, Mapping | torch.Tensor):
        corpus = [corpus]  # a single batch
    columns = getattr(corpus, "column_names", None)
    if columns is not None:
        if "input_ids" not in columns:
            raise SpLensError(
                f"the dataset has the columns {columns} and no 'input_ids': tokenize its text first with "
                "load_corpus(dataset['text'], model)."
            )
        corpus = corpus.select_columns([name for name in _COLUMNS if name in columns])
    if not isinstance(corpus, Iterable):
        raise SpLensError(
            f"expected a dataset, a list of strings or batches of tokens as the corpus, got {type(corpus).__name__}."
        )
    special = torch.tensor(getattr(getattr(model, "tokenizer", None), "all_special_ids", []), dtype=torch.long)
    longest = model.cfg.n_ctx
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
    """Return the name of the document of a corpus item, if it has one."""
    if isinstance(item, str):
        return text_name(item)
    document = item.get("document") if isinstance(item, Mapping) else None
    return document if isinstance(document, str) else None


def text_name(text: str) -> str:
    """Return the document name of a string that the user passed: a hash of its content."""
    try:
        return f"text {hashlib.sha256(text.encode()).hexdigest()[:12]}"
    except UnicodeEncodeError as error:
        raise SpLensError(
            f"the text {text[:40]!a} contains a lone surrogate, which is not a valid character ({error.reason}): read "
            'the file as UTF-8, or replace it with text.encode("utf-8", "replace").decode().'
        ) from error


def _token_rows(model: Any, item: Any, longest: int) -> Iterator[torch.Tensor]:
    """Return the rows of one item of a corpus, without padding."""
    if isinstance(item, str):
        return _text_rows(model, item, longest)
    if not isinstance(item, Mapping):
        return _unpadded_rows(model, item, None)
    if "input_ids" not in item:
        raise SpLensError(f"a batch has the keys {list(item)} and no 'input_ids'.")
    tokens, mask = item["input_ids"], item.get("attention_mask")
    if isinstance(tokens, list) and tokens and isinstance(tokens[0], list):
        # A tokenizer returns lists of different lengths if it does not pad.
        masks = [None] * len(tokens) if mask is None else mask
        if len(masks) != len(tokens):
            raise SpLensError(
                f"attention_mask has {len(masks)} rows and input_ids {len(tokens)}: expected equal shapes."
            )
        batches = ({"input_ids": ids, "attention_mask": keep} for ids, keep in zip(tokens, masks, strict=True))
        return itertools.chain.from_iterable(_token_rows(model, batch, longest) for batch in batches)
    return _unpadded_rows(model, tokens, mask)


def _text_rows(model: Any, text: str, longest: int) -> Iterator[torch.Tensor]:
    head, tail = frame_of(model)
    limit = min(longest, DOCUMENT_TOKENS)
    token_lists = list(split_text(tokenizer_of(model), text, row_tokens=limit, head=head, tail=tail))
    if sum(map(len, token_lists)) < 2:
        raise SpLensError(f"the text {text[:40]!r} has fewer than two tokens: remove it from the corpus.")
    return map(torch.tensor, token_lists)


def _unpadded_rows(model: Any, token_ids: Any, mask: Any) -> Iterator[torch.Tensor]:
    """Yield the rows of a batch of token ids [row pos], or of a single row [pos], without the masked positions."""
    tokens, keep = _as_tensors(token_ids, mask)
    for row, row_keep in zip(torch.atleast_2d(tokens), torch.atleast_2d(keep), strict=True):
        if mask is None and tokens.ndim == 2:
            _check_not_padded(model, row)
        yield row[row_keep]


def _as_tensors(token_ids: Any, mask: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and the mask of the positions to keep, both of shape [pos] or [row pos], on the CPU."""
    try:
        tokens = torch.as_tensor(token_ids).cpu()
        keep = torch.ones_like(tokens, dtype=torch.bool) if mask is None else torch.as_tensor(mask).cpu().bool()
    except (TypeError, ValueError, RuntimeError) as error:
        raise SpLensError(
            f"cannot read {type(token_ids).__name__} as rows of tokens: expected a datasets.Dataset with 'input_ids', "
            f"a list of strings, or an iterable of batches [row pos] ({error})."
        ) from error
    if tokens.numel() and (tokens.is_floating_point() or tokens.dtype == torch.bool):
        raise SpLensError(f"token ids have the dtype {tokens.dtype}: expected integers.")
    if keep.shape != tokens.shape:
        raise SpLensError(
            f"attention_mask has shape {tuple(keep.shape)} and input_ids {tuple(tokens.shape)}: expected equal shapes."
        )
    if tokens.ndim not in (1, 2):
        raise SpLensError(f"token ids have shape {tuple(tokens.shape)}: expected [pos] or [row pos].")
    return tokens.long(), keep


def _check_not_padded(model: Any, row: torch.Tensor) -> None:
    """Raise SpLensError if a row has padding that would be read as text. A causal model may have it on the right."""
    tokenizer = getattr(model, "tokenizer", None)
    pad = getattr(tokenizer, "pad_token_id", None)
    if pad is None:
        return
    leading = 2 if pad == getattr(tokenizer, "bos_token_id", None) else 1  # the first one may be BOS
    left = len(row) > leading and bool((row[:leading] == pad).all())
    right = task_of(model) != "causal" and int(row[-1]) == pad != getattr(tokenizer, "sep_token_id", None)
    if left or right:
        raise SpLensError(
            f"a row {'starts' if left else 'ends'} with padding, but has no attention_mask: pass batches as the "
            "tokenizer returns them, {'input_ids': ..., 'attention_mask': ...}."
        )


def _check_row(model: Any, tokens: torch.Tensor, longest: int) -> None:
    if len(tokens) < 2:
        raise SpLensError(f"a row has {len(tokens)} token(s): expected at least two, so that one can be predicted.")
    if len(tokens) > longest:
        raise SpLensError(
            f"a row has {len(tokens)} tokens, but the context length of the model is {longest}: make shorter rows with "
            "load_corpus(..., row_tokens=...)."
        )
    if int(tokens.min()) < 0 or int(tokens.max()) >= model.cfg.d_vocab:
        raise SpLensError(
            f"a row has token ids from {int(tokens.min())} to {int(tokens.max())}, but the vocabulary of the model is "
            f"0 to {model.cfg.d_vocab - 1}: use the tokenizer of this model."
        )


def original_tokenizer(tokenizer: Any) -> Any:
    """Return the tokenizer as it was before TransformerLens changed it (prepended BOS, added a pad token)."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(tokenizer.name_or_path, local_files_only=True)
    except (OSError, ValueError):  # the tokenizer was made in memory, or its folder no longer exists
        return tokenizer
