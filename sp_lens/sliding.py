"""The perplexity of long text by a sliding window, as WikiText's is reported."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from tqdm.auto import tqdm

from sp_lens.batches import Batch
from sp_lens.collect import BATCH_TOKENS
from sp_lens.errors import SpLensError
from sp_lens.evaluate import losses, nothing_to_predict
from sp_lens.models import forward, inference
from sp_lens.rows import frame_of, tokenizer_of
from sp_lens.tasks import task_of


def sliding_perplexity(
    model: Any,
    texts: str | Iterable[str],
    *,
    window: int | None = None,
    stride: int | None = None,
    tokens: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = True,
) -> float:
    """exp(mean nats per token) of texts read as one, each token with at least `window - stride` tokens before it.

    As Hugging Face's guide on the perplexity of fixed-length models has it: texts are joined by an empty line, and
    the window moves on by `stride`; what was judged in an earlier window is context alone. The first token of all
    has nothing before it but BOS, where the model has one, and else is not judged. Ablations in force count.

    Args:
        model: a causal language model.
        texts: one, or several in their order.
        window: tokens that the model sees at once, BOS included; by default its context.
        stride: by default half the window.
        tokens: read no more than so many; None reads all.
        batch_tokens: tokens in a batch of windows.
        progress: show a bar.

    Raises:
        SpLensError: for a model that predicts no next token, a window beyond its context, a stride that is not below
            the window, and text of less than two tokens.
    """
    if task_of(model) != "causal":
        raise SpLensError("perplexity by a sliding window is of causal language models: load one, such as 'demo'.")
    longest = int(model.cfg.n_ctx)
    window = window or longest
    head = frame_of(model)[0]
    room = window - len(head)
    stride = stride or max(1, room // 2)
    if not 1 <= stride <= room or window > longest or room < 2:
        raise SpLensError(
            f"window={window}, stride={stride}: expected a window of at most the model's context, {longest}, and a "
            f"stride of 1 to {max(room, 1)}, which is the window without BOS."
        )
    text = texts if isinstance(texts, str) else "\n\n".join(texts)
    ids = tokenizer_of(model)(text, add_special_tokens=False, verbose=False)["input_ids"][:tokens]
    if len(ids) + len(head) < 2:
        raise nothing_to_predict()
    nats, judged = 0.0, 0
    windows = list(_windows(len(ids), room, stride))
    size = max(1, batch_tokens // window)
    with inference(model), tqdm(total=len(ids), desc="slide", unit=" tokens", disable=not progress) as bar:
        for first in range(0, len(windows), size):
            for row, new in _losses(model, ids, head, windows[first : first + size]):
                nats += float(row[-new:].double().sum())
                judged += min(new, len(row))
                bar.update(new)
    return math.exp(nats / judged)


def _windows(length: int, room: int, stride: int) -> Iterable[tuple[int, int, int]]:
    """Where each window begins and ends, and how many of its tokens no window had before."""
    end = 0
    for begin in range(0, length, stride):
        before, end = end, min(begin + room, length)
        yield begin, end, end - before
        if end == length:
            return


def _losses(
    model: Any, ids: list[int], head: list[int], windows: list[tuple[int, int, int]]
) -> Iterable[tuple[torch.Tensor, int]]:
    """The nats of each token of each window but its first, and how many of them, the last, are to be counted."""
    rows = [torch.tensor([*head, *ids[begin:end]]) for begin, end, _ in windows]
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    real = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    logits = forward(model, Batch(tokens, real, real.bool(), ()))
    for row, row_logits, (_, _, new) in zip(rows, logits, windows, strict=True):
        targets = row[1:].to(row_logits.device)
        yield losses(row_logits[: len(targets)].float(), targets), new
