"""Split text into rows of tokens: the tokenizer of a model, its special tokens, and the longest row."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from sp_lens.errors import SpLensError
from sp_lens.models.task import require_tokens, task_of

logger = logging.getLogger(__name__)

# An entry of the model's attributes, which records that its tokenizer was compared with its embeddings.
_CHECKED = "_sp_lens_checked_tokenizer"
# The released experiments cut documents at this number of tokens.
DOCUMENT_TOKENS = 1000
# A longer text is tokenized in parts of this many characters, because a tokenizer needs about 200 bytes per character.
PART_CHARACTERS = 1_000_000


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
    _warn_of_lost_tokens(model)
    return model.tokenizer


def _warn_of_lost_tokens(model: Any) -> None:
    """Log a warning, once for each model, if embeddings were added that belong to no token of the tokenizer.

    TransformerLens reads the tokenizer that it is given again from disk, without tokens that were added in memory.
    """
    from transformers import AutoConfig

    if vars(model).get(_CHECKED) or len(model.tokenizer) >= model.cfg.d_vocab:
        return
    vars(model)[_CHECKED] = True
    try:
        config = AutoConfig.from_pretrained(model.tokenizer.name_or_path, local_files_only=True)
    except (OSError, ValueError):  # the tokenizer was made in memory, or comes without a model
        return
    if model.cfg.d_vocab > (stored := getattr(config.get_text_config(), "vocab_size", model.cfg.d_vocab)):
        logger.warning(
            "the model has %d embeddings, %d more than on disk, but its tokenizer has %d tokens: TransformerLens reads "
            "a tokenizer again from disk, so tokens that were added in memory are lost. To use them, save your "
            "tokenizer in a folder, load it from there, and make the bridge with that one.",
            model.cfg.d_vocab,
            model.cfg.d_vocab - stored,
            len(model.tokenizer),
        )


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


def original_tokenizer(model: Any) -> Any:
    """Return the tokenizer of a model as it was before TransformerLens changed it (prepended BOS, added a pad token).

    Tokens and a chat template that were added to the tokenizer in memory are kept, if the tokens have embeddings.

    Raises:
        SpLensError: If the added tokens have other ids in the tokenizer on disk.
    """
    from transformers import AutoTokenizer

    tokenizer = tokenizer_of(model)
    try:
        original = AutoTokenizer.from_pretrained(tokenizer.name_or_path, local_files_only=True)
    except (OSError, ValueError):  # the tokenizer was made in memory, or its folder no longer exists
        return tokenizer
    known = original.get_vocab()
    added = {index: token for index, token in tokenizer.added_tokens_decoder.items() if index < model.cfg.d_vocab}
    for index, token in sorted(added.items()):
        if str(token) not in known:
            original.add_tokens([token], special_tokens=token.special)
        if (other := original.convert_tokens_to_ids(str(token))) != index:
            raise SpLensError(
                f"the token {str(token)!r} has the id {index} in the tokenizer of the model and {other} in the one at "
                f"{tokenizer.name_or_path}: save your tokenizer in a folder of its own, and load it from there."
            )
    if tokenizer.chat_template:
        original.chat_template = tokenizer.chat_template
    return original
