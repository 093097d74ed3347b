"""Continuations of a prompt, sampled from a hooked model."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from tqdm.auto import tqdm

from sp_lens.data.tokenization import frame_of, tokenizer_of
from sp_lens.errors import SpLensError
from sp_lens.evaluation.predictions import nan_logits
from sp_lens.models.forward import inference, input_device
from sp_lens.models.task import require_causal


def prompt_tokens(model: Any, prompt: str, *, tokens: int) -> list[int]:
    """The prompt as the model reads it, BOS before it where TransformerLens puts one.

    Raises:
        SpLensError: for a model that continues no text, and a prompt without tokens or without room for `tokens` more.
    """
    require_causal(model, "continuing a text")
    text = tokenizer_of(model)(prompt, add_special_tokens=False, verbose=False)["input_ids"]
    found = [*frame_of(model)[0], *text]
    if not text:
        raise SpLensError(f"the prompt {prompt!r} has no tokens: give one that has.")
    if tokens < 1 or len(found) + tokens > model.cfg.n_ctx:
        raise SpLensError(
            f"tokens={tokens}: expected at least 1, and at most {model.cfg.n_ctx - len(found)}, as the model reads "
            f"{model.cfg.n_ctx} at once and the prompt has {len(found)}."
        )
    return found


def continuations_of(
    model: Any,
    prompt: str,
    *,
    continuations: int,
    tokens: int,
    temperature: float,
    seed: int,
    batch: int,
    progress: bool,
) -> list[str]:
    """Texts that the model goes on with, each sampled token by token, ablations in force included.

    A token is the largest of logits / temperature + Gumbel noise, which is a sample of the softmax. The noise of a
    continuation comes from a generator of its own, seeded by (seed, number of the continuation): neither the batch
    nor how many continuations are asked for changes it. The logits themselves differ in the last bits from one size
    of batch to another, so that two tokens that are level to within that may change places. (One uniform number a
    token, put through the cumulative probabilities, would be cheaper; but there all the boundaries between tokens
    move a little, and 50,000 of them move often enough.)

    All rows of a batch start from the same prompt and grow together, so there is no padding that a hook could see.
    One that has ended (EOS) runs on until all have, and its text is cut at the end.

    The keys and values of what has been read are kept, so that a step reads one token: `tokens` passes a batch, all
    but the first over one position. Where a model keeps none, each step reads the whole text; so does a bridge of
    TransformerLens 3, which with them in hand gives other logits (GPT-2, Llama, Gemma, ...; measured on 3.9 with
    transformers 5.24).
    """
    if continuations < 1 or batch < 1:
        raise SpLensError(f"continuations={continuations}, batch={batch}: expected at least one.")
    if not 0 < temperature < math.inf:
        raise SpLensError(f"temperature={temperature}: expected a number above 0; 1 samples what the model believes.")
    if seed < 0:
        raise SpLensError(f"seed={seed}: expected 0 or more.")
    start = torch.tensor(prompt_tokens(model, prompt, tokens=tokens), device=input_device(model))
    texts = []
    with inference(model), tqdm(total=continuations * tokens, unit=" tokens", disable=not progress) as bar:
        for first in range(0, continuations, batch):
            places = range(first, min(first + batch, continuations))
            generators = [np.random.default_rng([seed, place]) for place in places]
            prompts = start.expand(len(places), -1)
            new = _sample(model, prompts, generators, tokens=tokens, temperature=temperature, bar=bar)
            texts += [_text(model.tokenizer, row) for row in new.tolist()]
    return texts


def _sample(
    model: Any,
    text: Int[torch.Tensor, "row pos"],
    generators: Sequence[np.random.Generator],
    *,
    tokens: int,
    temperature: float,
    bar: Any,
) -> Int[torch.Tensor, "row new"]:
    """The tokens that follow; fewer than asked for where all rows have ended."""
    read, cache = text.shape[1], None
    ended = torch.zeros(len(text), dtype=torch.bool, device=text.device)
    for _ in range(tokens):
        logits, cache = _next_logits(model, text, cache)
        drawn = _draw(logits, generators, temperature)
        text = torch.cat([text, drawn[:, None].to(text.device)], dim=1)
        bar.update(len(text))
        ended |= text[:, -1] == model.tokenizer.eos_token_id
        if ended.all():
            break
    return text[:, read:]


def _next_logits(
    model: Any, text: Int[torch.Tensor, "row pos"], cache: Any
) -> tuple[Float[torch.Tensor, "row d_vocab"], Any]:
    """The logits of the token after the text, of which all but the last token is in the cache, if there is one."""
    import transformer_lens

    mask = torch.ones_like(text)  # said, as either class may take an id for padding that stands in the text
    if hasattr(model, "original_model"):
        if hasattr(transformer_lens, "TransformerLensKeyValueCache"):  # TransformerLens 3
            return model(text, attention_mask=mask, return_type="logits")[:, -1], None
        new = text if cache is None else text[:, -1:]
        kept = {} if cache is None else {"past_key_values": cache}
        logits, cache = model(new, attention_mask=mask, return_type="logits_and_cache", use_cache=True, **kept)
        return logits[:, -1], cache
    if cache is None:  # by name, as TransformerLens 4 has no such class, and no HookedTransformer
        kind = getattr(transformer_lens, "TransformerLensKeyValueCache")  # noqa: B009
        cache, new = kind.init_cache(model.cfg, text.device, len(text)), text
    else:
        new = text[:, -1:]
    logits = model(new, attention_mask=mask[:, : new.shape[1]], past_kv_cache=cache, return_type="logits")
    return logits[:, -1], cache


def _draw(
    logits: Float[torch.Tensor, "row d_vocab"], generators: Sequence[np.random.Generator], temperature: float
) -> Int[torch.Tensor, " row"]:
    """A token of each row: the largest of logits and noise, -log of a standard exponential being Gumbel's."""
    if logits.isnan().any():
        raise nan_logits()
    noise = -np.log(np.stack([generator.standard_exponential(logits.shape[1]) for generator in generators]))
    return (logits.float() / temperature + torch.from_numpy(noise).float().to(logits.device)).argmax(dim=-1)


def _text(tokenizer: Any, new: list[int]) -> str:
    """The continuation alone, up to where it ended."""
    if tokenizer.eos_token_id in new:
        new = new[: new.index(tokenizer.eos_token_id)]
    return tokenizer.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)
