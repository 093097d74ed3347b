"""Sample continuations of a prompt from a hooked model, with a random number generator for each continuation.

This is a short loop of our own instead of the `generate` of transformers. With a logits processor that adds the same
noise, `generate` gave the same texts on 13 bridged architectures, in the same time. But a `HookedTransformer` is not a
transformers model, its own `generate` draws all rows from one generator, and `generate` applies the settings in a
model's `generation_config`, such as a repetition penalty, which would change what is measured.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from tqdm.auto import tqdm
from transformer_lens import TransformerLensKeyValueCache

from sp_lens.data.tokenization import frame_of, tokenizer_of
from sp_lens.errors import SpLensError
from sp_lens.evaluation.predictions import nan_logits
from sp_lens.models.forward import Place, inference, input_device, placed
from sp_lens.models.task import require_causal


def prompt_tokens(model: Any, prompt: str, *, tokens: int) -> list[int]:
    """Tokenize a prompt, with BOS in front if TransformerLens prepends it for this model.

    Args:
        model: A causal language model.
        prompt: Text to continue.
        tokens: Number of tokens that will be sampled after the prompt.

    Raises:
        SpLensError: If the model is not a causal language model, the prompt has no tokens, or prompt and continuation
            are longer than the context of the model.
    """
    require_causal(model, "continuing a text")
    text = tokenizer_of(model)(prompt, add_special_tokens=False, verbose=False)["input_ids"]
    if not text:
        raise SpLensError(f"the prompt {prompt!r} has no tokens: give a prompt that is not empty.")
    start = [*frame_of(model)[0], *text]
    context = model.cfg.n_ctx
    if tokens < 1 or len(start) + tokens > context:
        raise SpLensError(
            f"tokens={tokens}: expected at least 1 and at most {context - len(start)}, because the context of the "
            f"model has {context} tokens and the prompt takes {len(start)} of them."
        )
    return start


def sample_continuations(
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
    """Sample texts that continue a prompt, token by token, with all attached hooks and active ablations applied.

    Each token is the argmax of logits / temperature + Gumbel noise, which is a sample of the softmax. The noise of a
    continuation comes from its own generator, seeded by (seed, index of the continuation), so it does not depend on
    the batch size or on the number of continuations. The logits differ in the last bits between batch sizes, which can
    swap two tokens whose values are equal to within that rounding. (Inverting the cumulative distribution with one
    uniform number per token would be cheaper, but rounding then moves all boundaries between the tokens a little, and
    with 50,000 tokens that changes samples often.)

    All rows of a batch have the same prompt and the same length, so hooks never see padding. A row that has reached
    EOS continues until all rows have, and its text is cut at EOS.

    Keys and values are cached, so each step after the first reads one token per row. Models without attention, such as
    Mamba, read the whole text in each step.
    """
    if continuations < 1 or batch < 1:
        raise SpLensError(f"continuations={continuations}, batch={batch}: expected at least 1 of each.")
    if not 0 < temperature < math.inf:
        raise SpLensError(
            f"temperature={temperature}: expected a finite number above 0; 1 samples the model's distribution."
        )
    if seed < 0:
        raise SpLensError(f"seed={seed}: expected 0 or more.")
    start = torch.tensor(prompt_tokens(model, prompt, tokens=tokens), device=input_device(model))
    texts = []
    with inference(model), tqdm(total=continuations * tokens, unit=" tokens", disable=not progress) as bar:
        for first in range(0, continuations, batch):
            indices = range(first, min(first + batch, continuations))
            generators = [np.random.default_rng([seed, index]) for index in indices]
            text, cache, eos = start.expand(len(indices), -1), None, model.tokenizer.eos_token_id
            for _ in range(tokens):
                with placed(Place(indices, start=0 if cache is None else text.shape[1] - 1)):
                    logits, cache = _next_logits(model, text, cache)
                sampled = _sample(logits, generators, temperature)
                text = torch.cat([text, sampled[:, None].to(text.device)], dim=1)
                bar.update(len(text))
                if (text[:, len(start) :] == eos).any(dim=1).all():
                    break
            texts += [_decode(model.tokenizer, row) for row in text[:, len(start) :].tolist()]
    return texts


def _next_logits(
    model: Any, text: Int[torch.Tensor, "row pos"], cache: Any
) -> tuple[Float[torch.Tensor, "row d_vocab"], Any]:
    """Return the logits of the next token, and the cache of keys and values that now covers the whole text.

    A bridge is called through the transformers model inside it, which runs the same hooks. With a cache, the forward
    method of the bridge of TransformerLens 3.9 returned different logits for GPT-2, Llama, Gemma and other models.

    Args:
        model: A `TransformerBridge` or a `HookedTransformer`.
        text: Token ids of all rows.
        cache: Cache of all but the last token, or None to read the whole text.
    """
    new = text if cache is None else text[:, -1:]
    if hasattr(model, "original_model"):
        # The mask is explicit because the id of the padding token may occur in the text.
        output = model.original_model(
            input_ids=new, attention_mask=torch.ones_like(text), past_key_values=cache, use_cache=True
        )
        return output.logits[:, -1], getattr(output, "past_key_values", None)
    if cache is None:
        cache = TransformerLensKeyValueCache.init_cache(model.cfg, text.device, len(text))
    logits = model(new, attention_mask=torch.ones_like(new), past_kv_cache=cache, return_type="logits")
    return logits[:, -1], cache


def _sample(
    logits: Float[torch.Tensor, "row d_vocab"], generators: Sequence[np.random.Generator], temperature: float
) -> Int[torch.Tensor, " row"]:
    """Sample one token per row. The Gumbel noise is -log of standard exponential random numbers."""
    if logits.isnan().any():
        raise nan_logits()
    noise = -np.log(np.stack([generator.standard_exponential(logits.shape[1]) for generator in generators]))
    return (logits.float() / temperature + torch.from_numpy(noise).float().to(logits.device)).argmax(dim=-1)


def _decode(tokenizer: Any, new: list[int]) -> str:
    """Decode the sampled tokens up to EOS."""
    if tokenizer.eos_token_id in new:
        new = new[: new.index(tokenizer.eos_token_id)]
    return tokenizer.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)
