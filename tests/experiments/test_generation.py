"""Sampling: against plain transformers read anew at each step, with the same noise; and against the softmax."""

from typing import Any

import numpy as np
import pytest
import torch
import transformer_lens
from factories import Tiny, random_mask, tiny_bridge, tiny_hf, zero_rows
from families.architectures import FAMILIES

import sp_lens as sp
from sp_lens.experiments import generation
from sp_lens.experiments.generation import continuations_of

pytestmark = pytest.mark.model

PROMPT = "The boat left the harbour"
CAUSAL = [name for name, family in FAMILIES.items() if family.causal]


def sampled(model: Any, **options: Any) -> list[str]:
    """A few short continuations."""
    settings = {"continuations": 5, "tokens": 12, "temperature": 1.0, "seed": 0, "batch": 5, "progress": False}
    return continuations_of(model, PROMPT, **{**settings, **options})


def by_hand(hf: Any, model: Any, *, place: int, tokens: int, temperature: float, seed: int) -> str:
    """One continuation: plain transformers reads the whole text for each token, alone and without a cache."""
    tokenizer = model.tokenizer
    head = [tokenizer.bos_token_id] if getattr(model.cfg, "default_prepend_bos", True) else []
    text = [*head, *tokenizer(PROMPT, add_special_tokens=False)["input_ids"]]
    start, generator = len(text), np.random.default_rng([seed, place])
    for _ in range(tokens):
        with torch.no_grad():
            logits = hf(torch.tensor([text])).logits[0, -1].double().numpy()
        text.append(int(np.argmax(logits / temperature - np.log(generator.standard_exponential(len(logits))))))
        if text[-1] == tokenizer.eos_token_id:
            return tokenizer.decode(text[start:-1], skip_special_tokens=True)
    return tokenizer.decode(text[start:], skip_special_tokens=True)


@pytest.mark.parametrize("batch", [2, 5])
def test_it_is_plain_transformers_with_the_weights_pruned(tiny: Tiny, batch: int) -> None:
    mask = random_mask(tiny.model, 0.3)
    hf = tiny_hf(tiny.family)
    zero_rows(tiny.family, hf, mask)
    with sp.ablate(tiny.model, mask):
        texts = sampled(tiny.model, batch=batch, temperature=0.1, seed=3)
    assert texts == [by_hand(hf, tiny.model, place=i, tokens=12, temperature=0.1, seed=3) for i in range(5)]
    assert texts != sampled(tiny.model, batch=batch, temperature=0.1, seed=3)  # so cold that the mask shows
    assert len(set(texts)) == 5


@pytest.mark.parametrize("family", CAUSAL)
def test_the_cache_changes_nothing(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each architecture, with hooks: past a sliding window of 8 tokens too."""
    model = tiny_bridge(family)
    with sp.ablate(model, random_mask(model, 0.3)):
        texts = sampled(model, temperature=0.1)
        cached = generation._next_logits
        monkeypatch.setattr(generation, "_next_logits", lambda model, text, _: (cached(model, text, None)[0], None))
        assert sampled(model, temperature=0.1) == texts


def test_without_a_cache_the_whole_text_is_read() -> None:
    """A model without attention keeps no keys and values."""
    texts = sampled(tiny_bridge("mamba"), continuations=2, temperature=0.1)
    hf = tiny_hf("mamba")
    options = {"tokens": 12, "temperature": 0.1, "seed": 0}
    assert texts == [by_hand(hf, tiny_bridge("mamba"), place=place, **options) for place in range(2)]


def test_a_step_reads_one_token(tiny: Tiny) -> None:
    widths = []
    point = tiny.model.hook_dict["blocks.0.mlp.hook_post"]
    with tiny.model.hooks(fwd_hooks=[("blocks.0.mlp.hook_post", lambda z, hook: widths.append(z.shape[1]))]):
        sampled(tiny.model, continuations=1, tokens=4)
    assert widths[0] > 1
    old_bridge = hasattr(tiny.model, "original_model") and hasattr(transformer_lens, "TransformerLensKeyValueCache")
    assert widths[1:] == [widths[0] + more if old_bridge else 1 for more in (1, 2, 3)]
    assert not point.fwd_hooks


def test_the_same_seed_says_the_same(demo: Any) -> None:
    texts = sampled(demo)
    assert sampled(demo) == texts
    assert sampled(demo, batch=1) == sampled(demo, batch=3) == texts
    assert sampled(demo, continuations=2) == texts[:2]
    assert not set(sampled(demo, seed=1)) & set(texts)
    assert len(set(texts)) == 5


def test_samples_are_of_the_softmax() -> None:
    """3,000 draws of five tokens, at a temperature, within three standard deviations."""
    logits, temperature, draws = torch.tensor([[0.0, 1.0, -1.0, 2.0, -30.0]]), 1.5, 3000
    generators = [np.random.default_rng([0, place]) for place in range(draws)]
    drawn = generation._draw(logits.expand(draws, -1), generators, temperature)
    share = torch.bincount(drawn, minlength=5) / draws
    expected = (logits[0] / temperature).softmax(-1)
    assert ((share - expected).abs() <= 3 * (expected * (1 - expected) / draws).sqrt()).all()


def test_a_text_ends_where_the_model_ends_it(demo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 0 ends at its third token, row 1 at its second; no step is made after both have."""
    eos, word = demo.tokenizer.eos_token_id, demo.tokenizer("boat", add_special_tokens=False)["input_ids"][0]
    steps = iter([[word, word], [word, eos], [eos, word], [word, word]])
    monkeypatch.setattr(generation, "_draw", lambda *_: torch.tensor(next(steps)))
    said = demo.tokenizer.decode([word])
    assert sampled(demo, continuations=2) == [said * 2, said]
    assert next(steps) == [word, word]


def test_what_it_refuses(demo: Any) -> None:
    refusals: dict[str, dict[str, Any]] = {
        r"continuations=0, batch=5": {"continuations": 0},
        r"continuations=5, batch=0": {"batch": 0},
        r"temperature=0: expected a number above 0": {"temperature": 0},
        r"seed=-1": {"seed": -1},
        r"tokens=0: expected at least 1": {"tokens": 0},
        r"tokens=256: expected at least 1, and at most 2\d\d, as the model reads 256": {"tokens": 256},
    }
    for message, options in refusals.items():
        with pytest.raises(sp.SpLensError, match=message):
            sampled(demo, **options)
    with pytest.raises(sp.SpLensError, match=r"the prompt '' has no tokens"):
        continuations_of(demo, "", continuations=1, tokens=1, temperature=1, seed=0, batch=1, progress=False)
    for family, predicts in {"bert": "masked tokens", "vit": "the class of an image"}.items():
        with pytest.raises(sp.SpLensError, match=f"predicts {predicts}, but continuing a text needs"):
            sampled(tiny_bridge(family))


def test_nan_is_an_error(opt: Any) -> None:
    with (
        opt.hooks(fwd_hooks=[("blocks.0.mlp.hook_post", lambda z, hook: z * torch.nan)]),
        pytest.raises(sp.SpLensError, match="logits are NaN"),
    ):
        sampled(opt)
