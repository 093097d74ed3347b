"""Convert a corpus of text or tokens into rows of tokens.

A row marks which of its tokens are counted: all but BOS and the other special tokens. Padding in the input, on either
side, is removed according to the attention mask, because the pad id may equal the eos id.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, cast

import pandas as pd
import torch
from datasets import Dataset
from jaxtyping import Bool, Int

from sp_lens.data.sources.tables import Document, column_names, document_name, is_table, table_documents, text_name
from sp_lens.data.tokenization import DOCUMENT_TOKENS, frame_of, split_text, tokenizer_of
from sp_lens.errors import SpLensError
from sp_lens.models.task import require_tokens, task_of

# The columns of tokens that are read. The last two must have the values that the model assumes without them.
_TOKEN_COLUMNS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


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


def rows(model: Any, corpus: Any) -> Iterator[Row]:
    """Yield the rows of a corpus.

    Args:
        model: A `TransformerBridge` or a `HookedTransformer`. It defines the special tokens and the longest row.
        corpus: A table with `input_ids` (and optionally `attention_mask` and `document`) or with a column of text, a
            list of strings, or an iterable of batches. A table is a `datasets.Dataset`, a pandas `DataFrame` or
            `Series`, or a dictionary of lists. A batch is a tensor [row pos] or a mapping as a tokenizer returns it.

    Raises:
        SpLensError: If the corpus is empty or of another type, if a row is not valid for the model, or if the model
            does not read tokens.
    """
    require_tokens(model)
    if isinstance(corpus, str):
        raise SpLensError(f"a corpus is a list of strings, got the string {corpus[:40]!r}: wrap it in a list.")
    special = torch.tensor(getattr(getattr(model, "tokenizer", None), "all_special_ids", []), dtype=torch.long)
    longest = model.cfg.n_ctx
    number = 0
    for item in _items(corpus):
        document = _document(item)
        for tokens in _token_rows(model, item, longest):
            _check_row(model, tokens, longest)
            yield Row(tokens, ~torch.isin(tokens, special), number, document)
            number += 1
    if not number:
        raise SpLensError("the corpus is empty: expected at least one row of tokens.")


def _items(corpus: Any) -> Any:
    """Return the items of a corpus: texts, documents, or batches of tokens."""
    if isinstance(corpus, torch.Tensor) or (isinstance(corpus, Mapping) and "input_ids" in corpus):
        return [corpus]  # a single batch
    if is_table(corpus):
        names = column_names(corpus)
        if "input_ids" not in names:
            return table_documents(corpus)
        used = [name for name in (*_TOKEN_COLUMNS, "document") if name in names]
        if isinstance(corpus, pd.DataFrame):
            return (
                dict(zip(used, values, strict=True)) for values in zip(*(corpus[name] for name in used), strict=True)
            )
        return cast(Dataset, corpus).select_columns(used)
    if not isinstance(corpus, Iterable):
        raise SpLensError(
            "expected a dataset, a table, a list of strings or batches of tokens as the corpus, got "
            f"{type(corpus).__name__}."
        )
    return corpus


def _document(item: Any) -> str | None:
    """Return the name of the document of a corpus item, if it has one."""
    if isinstance(item, Document):
        return item.name
    if isinstance(item, str):
        return text_name(item)
    document = item.get("document") if isinstance(item, Mapping) else None
    if isinstance(document, Iterable) and not isinstance(document, str | torch.Tensor):
        raise SpLensError(
            "a batch has a list of documents, but one document per item was expected: pass a datasets.Dataset with the "
            "columns 'input_ids' and 'document', which has one row per item."
        )
    return document_name(document)


def _token_rows(model: Any, item: Any, longest: int) -> Iterator[torch.Tensor]:
    """Return the rows of one item of a corpus, without padding."""
    if isinstance(item, str | Document):
        return _text_rows(model, item if isinstance(item, str) else item.text, longest)
    if not isinstance(item, Mapping):
        return _unpadded_rows(model, {"input_ids": item})
    if "input_ids" not in item:
        raise SpLensError(f"a batch has the keys {list(item)} and no 'input_ids'.")
    batch = {name: item[name] for name in _TOKEN_COLUMNS if item.get(name) is not None}
    tokens = batch["input_ids"]
    if isinstance(tokens, list) and tokens and isinstance(tokens[0], list):
        # A tokenizer returns lists of different lengths if it does not pad.
        for name, values in batch.items():
            if len(values) != len(tokens):
                raise SpLensError(f"{name} has {len(values)} rows and input_ids {len(tokens)}: expected equal shapes.")
        batches = (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))
        return itertools.chain.from_iterable(_token_rows(model, row, longest) for row in batches)
    return _unpadded_rows(model, batch)


def _text_rows(model: Any, text: str, longest: int) -> Iterator[torch.Tensor]:
    head, tail = frame_of(model)
    limit = min(longest, DOCUMENT_TOKENS)
    token_lists = list(split_text(tokenizer_of(model), text, row_tokens=limit, head=head, tail=tail))
    if sum(map(len, token_lists)) < 2:
        raise SpLensError(f"the text {text[:40]!r} has fewer than two tokens: remove it from the corpus.")
    return map(torch.tensor, token_lists)


def _unpadded_rows(model: Any, batch: Mapping[str, Any]) -> Iterator[torch.Tensor]:
    """Yield the rows of a batch of token ids [row pos], or of a single row [pos], without the masked positions."""
    columns = {name: _as_tensor(name, values) for name, values in batch.items()}
    tokens = columns["input_ids"]
    if tokens.numel() and (tokens.is_floating_point() or tokens.dtype == torch.bool):
        raise SpLensError(f"token ids have the dtype {tokens.dtype}: expected integers.")
    if tokens.ndim not in (1, 2):
        raise SpLensError(f"token ids have shape {tuple(tokens.shape)}: expected [pos] or [row pos].")
    for name, values in columns.items():
        if values.shape != tokens.shape:
            raise SpLensError(
                f"{name} has shape {tuple(values.shape)} and input_ids {tuple(tokens.shape)}: expected equal shapes."
            )
    keep = _checked_mask(columns["attention_mask"]) if "attention_mask" in columns else torch.ones_like(tokens).bool()
    _check_defaults(columns, keep)
    for row, row_keep in zip(torch.atleast_2d(tokens.long()), torch.atleast_2d(keep), strict=True):
        if "attention_mask" not in columns and tokens.ndim == 2:
            _check_not_padded(model, row)
        yield row[row_keep]


def _as_tensor(name: str, values: Any) -> torch.Tensor:
    try:
        return torch.as_tensor(values).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise SpLensError(
            f"cannot read {name} of the type {type(values).__name__} as rows of tokens: expected a datasets.Dataset "
            f"with 'input_ids', a list of strings, or an iterable of batches [row pos] ({error})."
        ) from error


def _check_defaults(columns: Mapping[str, torch.Tensor], keep: Bool[torch.Tensor, "*row pos"]) -> None:
    """Raise SpLensError if a batch sets something that sp_lens does not pass on to the model."""
    if "token_type_ids" in columns and bool(columns["token_type_ids"][keep].any()):
        raise SpLensError(
            "the rows have token_type_ids other than 0, as pairs of sentences do: every row is read as one text. Pass "
            "the sentences as rows of their own, or leave out token_type_ids."
        )
    if "position_ids" in columns:
        expected = keep.long().cumsum(-1) - 1
        if not torch.equal(columns["position_ids"][keep].long(), expected[keep]):
            raise SpLensError(
                "the rows have position_ids that do not count from 0, as rows that pack several texts do: tokens of "
                "one text would attend to another. Pass each text as a row of its own."
            )


def _checked_mask(mask: torch.Tensor) -> Bool[torch.Tensor, "*row pos"]:
    """Return a mask as booleans.

    Raises:
        SpLensError: If it has other values than 0 and 1, or a row in which tokens are on both sides of a gap.
    """
    if bool(((mask != 0) & (mask != 1)).any()):
        other = sorted(set(mask.flatten().tolist()))[:3]
        raise SpLensError(
            f"attention_mask has the values {other}: expected 1 at tokens and 0 at padding. An additive mask is 0 at "
            "tokens, so pass attention_mask == 0 instead."
        )
    keep = mask.bool()
    starts = torch.nn.functional.pad(keep.int(), (1, 0)).diff(dim=-1) == 1
    if bool((starts.sum(-1) > 1).any()):
        raise SpLensError(
            "attention_mask has a row with a gap, such as [1, 1, 0, 1]: expected padding on the left or right of the "
            "tokens only. Remove the tokens in the gap from the row, or pass the parts as rows of their own."
        )
    return keep


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
