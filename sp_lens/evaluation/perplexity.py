"""Measure the perplexity of one long text with a sliding window."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Int
from tqdm.auto import tqdm

from sp_lens.data.batch import Batch
from sp_lens.data.rows import Row
from sp_lens.data.tokenization import frame_of, tokenizer_of
from sp_lens.errors import SpLensError
from sp_lens.evaluation.evaluate import Evaluation, Tally, most_common
from sp_lens.evaluation.predictions import predictions
from sp_lens.models.forward import inference
from sp_lens.models.task import require_causal
from sp_lens.typing import BATCH_TOKENS

# Joins the documents of a text, as in published perplexities of WikiText.
SEPARATOR = "\n\n"


def sliding_perplexity(
    model: Any,
    text: str | Iterable[str],
    *,
    window: int | None = None,
    stride: int | None = None,
    tokens: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = True,
) -> Evaluation:
    """Measure the perplexity of one long text with a sliding window, as published for WikiText.

    This is the procedure of the Hugging Face guide "Perplexity of fixed-length models". The model reads a window of the
    text, the window moves by `stride` tokens, and in each window only the tokens that no earlier window scored are
    scored. Every token of the text is therefore scored once, with at least `window - stride` tokens before it. Active
    ablations apply. `evaluate` instead cuts the text into rows, where a token may have only one token before it, so its
    perplexity is higher.

    Differences from the loop in the guide: The BOS token that TransformerLens puts before a text is put before this
    text once, and is not scored. "<unk>" in the text is text and is scored. The guide weights the mean of a window by
    one token too few; here losses are summed and divided once. With `stride=window` the windows are disjoint, and the
    first token of each is not scored because it has no context.

    The model runs about `window / stride` times over the text.

    Args:
        model: A `TransformerBridge` or a `HookedTransformer` that predicts the next token.
        text: One text, or documents, which are joined by two line breaks.
        window: Number of tokens that the model reads at once. None uses its whole context.
        stride: Number of tokens by which the window moves. None uses half of `window`.
        tokens: Maximum number of tokens of the text to read. None reads all.
        batch_tokens: Number of tokens per batch, at least one window.
        progress: Whether to show a progress bar.

    Returns:
        `Evaluation` with the perplexity, the loss, the accuracies and the number of scored tokens.

    Raises:
        SpLensError: If the model does not predict the next token, the window is longer than its context, the stride is
            longer than the window, `text` is not text, or logits are NaN.

    Example:
        >>> import sp_lens as sp
        >>> model = sp.load_model("demo")
        >>> sliding_perplexity(model, ["One thing.", "Another thing."], window=8, progress=False).tokens
        9
    """
    require_causal(model, "the perplexity of a text")
    if window is None:
        window = int(model.cfg.n_ctx)
    if stride is None:
        stride = max(1, window // 2)
    if not 2 <= window <= model.cfg.n_ctx:
        raise SpLensError(f"window={window}: expected 2 to {model.cfg.n_ctx} tokens, the context of the model.")
    if not 1 <= stride <= window:
        raise SpLensError(
            f"stride={stride}: expected 1 to {window}. With a longer stride, tokens between windows would be left out."
        )
    if tokens is not None and tokens < 1:
        raise SpLensError(f"tokens={tokens}: expected a number of tokens from 1, or None to read all.")
    head, text_tokens = frame_of(model)[0], _tokens(model, text)[:tokens]
    common = most_common(Counter(text_tokens))
    batches = _window_batches(torch.tensor([*head, *text_tokens]), window, stride, max(1, batch_tokens // window))
    tally = Tally()
    with inference(model), tqdm(desc="perplexity", unit=" predictions", disable=not progress) as bar:
        for batch in batches:
            batch_tally = Tally.from_logits(*predictions(model, batch, seed=0), common)
            tally += batch_tally
            bar.update(batch_tally.tokens)
    return tally.result()


def _tokens(model: Any, text: str | Iterable[str]) -> list[int]:
    """Return the tokens of the whole text, without special tokens around it."""
    documents = [text] if isinstance(text, str) else list(text)
    if other := next((document for document in documents if not isinstance(document, str)), None):
        raise SpLensError(
            f"expected a text or a list of texts, got one of {type(other).__name__}: rows of tokens no longer have the "
            "text that they come from. Pass the column with the text, dataset['text']."
        )
    return tokenizer_of(model)(SEPARATOR.join(documents), add_special_tokens=False, verbose=False)["input_ids"]


def _window_batches(tokens: Int[torch.Tensor, " pos"], window: int, stride: int, batch_windows: int) -> Iterator[Batch]:
    """Yield the windows in batches without padding, with `counted` True at the tokens to score."""
    windows: list[Row] = []
    scored = end = 0
    for number, start in enumerate(range(0, len(tokens), stride)):
        end = min(start + window, len(tokens))
        if windows and (len(windows) == batch_windows or end - start < window):  # the last window may be shorter
            yield _batch(windows)
            windows = []
        windows.append(Row(tokens[start:end], torch.arange(start, end) >= scored, number, document=None))
        scored = end
        if end == len(tokens):
            break
    if windows:
        yield _batch(windows)


def _batch(windows: list[Row]) -> Batch:
    tokens, counted = (torch.stack([getattr(row, name) for row in windows]) for name in ("tokens", "counted"))
    return Batch(tokens, torch.ones_like(tokens), counted, rows=tuple(windows))
