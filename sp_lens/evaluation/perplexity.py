"""Perplexity of one long text, read through a window that slides over it."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Int
from tqdm.auto import tqdm

from sp_lens.data.batching import Batch
from sp_lens.data.tokenization import frame_of, tokenizer_of
from sp_lens.errors import SpLensError
from sp_lens.evaluation.evaluate import Evaluation, Tally, most_common
from sp_lens.evaluation.predictions import predictions
from sp_lens.models.forward import inference
from sp_lens.models.task import require_causal
from sp_lens.typing import BATCH_TOKENS

# Between the documents of a text, as in WikiText's perplexity wherever it is published.
JOINT = "\n\n"


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
    """Perplexity of one long text by a sliding window, ablations in force included: WikiText's, as it is published.

    The procedure of Hugging Face's guide "Perplexity of fixed-length models". A window is read, moved on by
    `stride`, and read again; of each window only the tokens that no window before it has scored are scored. So every
    token of the text is scored once, with at least `window - stride` tokens before it. `evaluate` cuts the text into
    rows instead, where a token may have one: its perplexity is higher.

    Three things to know beside the guide's loop. What TransformerLens puts before a text (BOS) is put before this one,
    once, and is not scored. A "<unk>" in the text is text, and scored. And the guide weighs the mean of a window by
    one token too few; here nats are summed and divided once. With `stride=window` the windows are disjoint, and the
    first token of each, which has no context, is not scored.

    Costs a pass over each window, some `window / stride` passes over the text.

    Args:
        model: a bridge or a `HookedTransformer` that predicts the next token.
        text: one text, or documents, joined by two line breaks.
        window: tokens that the model reads at once; None is its context.
        stride: by how many tokens the window moves; None is half of it.
        tokens: read no more than so many of the text; None reads all.
        batch_tokens: tokens in a batch; one window at least.
        progress: show a bar.

    Returns:
        `Evaluation`: beside the perplexity, how many tokens were scored, the loss, and the accuracies.

    Raises:
        SpLensError: for a masked language model or a model of images, a window that the model has no room for, a
            stride longer than the window, something that is no text, and logits that are NaN.

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
        raise SpLensError(f"window={window}: expected 2 to {model.cfg.n_ctx} tokens, which the model reads at once.")
    if not 1 <= stride <= window:
        raise SpLensError(f"stride={stride}: expected 1 to {window}, or tokens between two windows would be left out.")
    if tokens is not None and tokens < 1:
        raise SpLensError(f"tokens={tokens}: expected how many tokens to read, or None for all.")
    head, read = frame_of(model)[0], _tokens(model, text)[:tokens]
    common = most_common(Counter(read))
    tally = Tally()
    with inference(model), tqdm(desc="perplexity", unit=" predictions", disable=not progress) as bar:
        for batch in _batches(torch.tensor([*head, *read]), window, stride, at_once=max(1, batch_tokens // window)):
            judged = Tally.from_logits(*predictions(model, batch, seed=0), common)
            tally += judged
            bar.update(judged.tokens)
    return tally.result()


def _tokens(model: Any, text: str | Iterable[str]) -> list[int]:
    """The tokens of the whole text, without special ones around it."""
    documents = [text] if isinstance(text, str) else list(text)
    if stranger := next((item for item in documents if not isinstance(item, str)), None):
        raise SpLensError(
            f"expected a text or a list of texts, got one of {type(stranger).__name__}: rows of tokens have lost the "
            "text that they were cut from; give the column with the text, dataset['text']."
        )
    return tokenizer_of(model)(JOINT.join(documents), add_special_tokens=False, verbose=False)["input_ids"]


def _batches(tokens: Int[torch.Tensor, " pos"], window: int, stride: int, at_once: int) -> Iterator[Batch]:
    """The windows in batches without padding: what `counted` marks is scored."""
    windows: list[tuple[torch.Tensor, torch.Tensor]] = []
    scored = end = 0
    for start in range(0, len(tokens), stride):
        end = min(start + window, len(tokens))
        if windows and (len(windows) == at_once or end - start < window):  # the last window may be shorter
            yield _batch(windows)
            windows = []
        windows.append((tokens[start:end], torch.arange(start, end) >= scored))
        scored = end
        if end == len(tokens):
            break
    if windows:
        yield _batch(windows)


def _batch(windows: list[tuple[torch.Tensor, torch.Tensor]]) -> Batch:
    tokens, counted = (torch.stack(part) for part in zip(*windows, strict=True))
    return Batch(tokens, torch.ones_like(tokens), counted, rows=())
