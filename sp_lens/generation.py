"""Continuations of a prompt, sampled from a model with whatever ablations are in force."""

from typing import Any

import torch
from tqdm.auto import tqdm

from sp_lens.batches import Batch
from sp_lens.errors import SpLensError
from sp_lens.models import forward, inference
from sp_lens.rows import frame_of, tokenizer_of
from sp_lens.tasks import task_of


def continuations(
    model: Any,
    prompt: str,
    *,
    count: int,
    tokens: int,
    temperature: float = 1.0,
    seed: int = 0,
    batch: int = 50,
    progress: bool = True,
) -> list[str]:
    """Sample texts that go on from a prompt.

    Each has random numbers of its own, drawn from the seed and its place, so that the size of a batch changes no text.
    Every token is one forward pass over all that is there so far, without a cache of keys and values: a cache made
    before an ablation would outlive it.

    Args:
        model: a causal language model, a bridge or a `HookedTransformer`.
        prompt: what they begin with; it is not in what is returned.
        count: how many.
        tokens: how long each is; one that ends earlier, with the model's end of text, is cut there.
        temperature: logits are divided by it; above 0.
        seed: of the sampling.
        batch: how many at once.
        progress: show a bar.

    Raises:
        SpLensError: for a model that predicts no next token, an empty prompt, numbers below 1, and a prompt that
            leaves too little of the model's context.
    """
    if task_of(model) != "causal":
        raise SpLensError("only a causal language model goes on from a prompt: load one, such as 'demo'.")
    if min(count, tokens, batch) < 1 or not 0 < temperature < float("inf"):
        raise SpLensError(
            f"count={count}, tokens={tokens}, batch={batch}, temperature={temperature}: expected numbers above 0."
        )
    tokenizer = tokenizer_of(model)
    start = [*frame_of(model)[0], *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    if not start or len(start) + tokens > model.cfg.n_ctx:
        raise SpLensError(
            f"the prompt has {len(start)} tokens, {tokens} are to follow, and the model's context is "
            f"{model.cfg.n_ctx}: give a prompt of one token or more, and ask for fewer tokens."
        )
    texts: list[str] = []
    with inference(model), tqdm(total=count * tokens, desc="continue", unit=" tokens", disable=not progress) as bar:
        for first in range(0, count, batch):
            places = range(first, min(first + batch, count))
            rows = _sampled(model, start, places, tokens, temperature, seed, bar)
            texts += [tokenizer.decode(_until_end(row, tokenizer.eos_token_id)) for row in rows]
    return texts


def _sampled(  # noqa: PLR0917
    model: Any, start: list[int], places: range, tokens: int, temperature: float, seed: int, bar: tqdm
) -> list[list[int]]:
    """The tokens after the start, row by row."""
    generators = [torch.Generator().manual_seed(seed * 1_000_003 + place) for place in places]
    rows = torch.tensor([start] * len(places))
    for _ in range(tokens):
        ones = torch.ones_like(rows)
        logits = forward(model, Batch(rows, ones, ones.bool(), ())).float()[:, -1].cpu()
        if logits.isnan().any():
            raise SpLensError("the model's logits are NaN: load it in float32 or bfloat16.")
        # The largest of logits with Gumbel noise is a sample of the softmax.
        noise = torch.stack([torch.empty(logits.shape[1]).exponential_(generator=one) for one in generators])
        rows = torch.cat([rows, (logits / temperature - noise.log()).argmax(dim=1, keepdim=True)], dim=1)
        bar.update(len(places))
    return rows[:, len(start) :].tolist()


def _until_end(row: list[int], end: int | None) -> list[int]:
    return row[: row.index(end)] if end in row else row
