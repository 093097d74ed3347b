"""Sampled continuations equal those of plain transformers without a cache and with the same noise."""

from typing import Any

import numpy as np
import pytest
import torch
from factories import Tiny, random_mask, tiny_bridge, tiny_hf, zero_rows
from families.architectures import FAMILIES

import sp_lens as sp
from sp_lens.experiments import generation
from sp_lens.experiments.generation import sample_continuations

pytestmark = pytest.mark.model

PROMPT = "The boat left the harbour"
CAUSAL = [name for name, family in FAMILIES.items() if family.causal and not family.is_long]


def sampled(model: Any, **options: Any) -> list[str]:
    """Sample a few short continuations."""
    settings = {"continuations": 5, "tokens": 12, "temperature": 1.0, "seed": 0, "batch": 5, "progress": False}
    return sample_continuations(model, PROMPT, **{**settings, **options})


def plain_continuation(hf: Any, model: Any, *, index: int, tokens: int, temperature: float, seed: int) -> str:
    """Sample one continuation with plain transformers, which reads the whole text for each token without a cache."""
    tokenizer = model.tokenizer
    head = [tokenizer.bos_token_id] if getattr(model.cfg, "default_prepend_bos", True) else []
    text = [*head, *tokenizer(PROMPT, add_special_tokens=False)["input_ids"]]
    start, generator = len(text), np.random.default_rng([seed, index])
    for _ in range(tokens):
        with torch.no_grad():
            logits = hf(torch.tensor([text])).logits[0, -1].double().numpy()
        text.append(int(np.argmax(logits / temperature - np.log(generator.standard_exponential(len(logits))))))
        if text[-1] == tokenizer.eos_token_id:
            return tokenizer.decode(text[start:-1], skip_special_tokens=True)
    return tokenizer.decode(text[start:], skip_special_tokens=True)


@pytest.mark.parametrize("batch", [2, 5])
def test_texts_equal_those_of_plain_transformers_with_zeroed_weights(tiny: Tiny, batch: int) -> None:
    mask = random_mask(tiny.model, 0.3)
    hf = tiny_hf(tiny.family)
    zero_rows(tiny.family, hf, mask)
    with sp.ablate(tiny.model, mask):
        texts = sampled(tiny.model, batch=batch, temperature=0.1, seed=3)
    assert texts == [plain_continuation(hf, tiny.model, index=i, tokens=12, temperature=0.1, seed=3) for i in range(5)]
    assert texts != sampled(
        tiny.model, batch=batch, temperature=0.1, seed=3
    )  # a low temperature, so that the mask matters
    assert len(set(texts)) == 5


@pytest.mark.parametrize("family", CAUSAL)
def test_the_cache_does_not_change_the_texts(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The texts are longer than the sliding window of 8 tokens that some architectures have."""
    model = tiny_bridge(family)
    with sp.ablate(model, random_mask(model, 0.3)):
        texts = sampled(model, temperature=0.1)
        cached = generation._next_logits
        monkeypatch.setattr(generation, "_next_logits", lambda model, text, _: (cached(model, text, None)[0], None))
        assert sampled(model, temperature=0.1) == texts


def test_a_model_without_attention_reads_the_whole_text() -> None:
    texts = sampled(tiny_bridge("mamba"), continuations=2, temperature=0.1)
    hf = tiny_hf("mamba")
    options = {"tokens": 12, "temperature": 0.1, "seed": 0}
    assert texts == [plain_continuation(hf, tiny_bridge("mamba"), index=index, **options) for index in range(2)]


def test_each_step_after_the_first_reads_one_token(tiny: Tiny) -> None:
    widths = []
    point = tiny.model.hook_dict["blocks.0.mlp.hook_post"]
    with tiny.model.hooks(fwd_hooks=[("blocks.0.mlp.hook_post", lambda z, hook: widths.append(z.shape[1]))]):
        sampled(tiny.model, continuations=1, tokens=4)
    assert widths[0] > 1
    assert widths[1:] == [1, 1, 1]
    assert not point.fwd_hooks


def test_settings_stored_with_a_model_do_not_change_the_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The `generate` of transformers would apply a repetition penalty that the model's files ask for."""
    model = tiny_bridge("llama")
    texts = sampled(model)
    monkeypatch.setattr(model.original_model.generation_config, "repetition_penalty", 5.0)
    assert sampled(model) == texts


def test_texts_depend_on_the_seed_and_not_on_the_batch(demo: Any) -> None:
    texts = sampled(demo)
    assert sampled(demo) == texts
    assert sampled(demo, batch=1) == sampled(demo, batch=3) == texts
    assert sampled(demo, continuations=2) == texts[:2]
    assert not set(sampled(demo, seed=1)) & set(texts)
    assert len(set(texts)) == 5


def test_samples_follow_the_softmax() -> None:
    """Frequencies of five tokens in 3,000 samples are within three standard deviations of their probabilities."""
    logits, temperature, draws = torch.tensor([[0.0, 1.0, -1.0, 2.0, -30.0]]), 1.5, 3000
    generators = [np.random.default_rng([0, index]) for index in range(draws)]
    samples = generation._sample(logits.expand(draws, -1), generators, temperature)
    share = torch.bincount(samples, minlength=5) / draws
    expected = (logits[0] / temperature).softmax(-1)
    assert ((share - expected).abs() <= 3 * (expected * (1 - expected) / draws).sqrt()).all()


def test_a_text_ends_where_the_model_ends_it(demo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 0 ends at its third token and row 1 at its second. There is no step after both have ended."""
    eos, word = demo.tokenizer.eos_token_id, demo.tokenizer("boat", add_special_tokens=False)["input_ids"][0]
    steps = iter([[word, word], [word, eos], [eos, word], [word, word]])
    monkeypatch.setattr(generation, "_sample", lambda *_: torch.tensor(next(steps)))
    text = demo.tokenizer.decode([word])
    assert sampled(demo, continuations=2) == [text * 2, text]
    assert next(steps) == [word, word]


def test_invalid_arguments_are_errors(demo: Any) -> None:
    errors: dict[str, dict[str, Any]] = {
        r"continuations=0, batch=5": {"continuations": 0},
        r"continuations=5, batch=0": {"batch": 0},
        r"temperature=0: expected a finite number above 0": {"temperature": 0},
        r"seed=-1": {"seed": -1},
        r"tokens=0: expected at least 1": {"tokens": 0},
        r"tokens=256: expected at least 1 and at most 2\d\d, because the context of the model has 256": {"tokens": 256},
    }
    for message, options in errors.items():
        with pytest.raises(sp.SpLensError, match=message):
            sampled(demo, **options)
    with pytest.raises(sp.SpLensError, match=r"the prompt '' has no tokens"):
        sample_continuations(demo, "", continuations=1, tokens=1, temperature=1, seed=0, batch=1, progress=False)
    for family, predicts in {"bert": "masked tokens", "vit": "the class of an image"}.items():
        with pytest.raises(sp.SpLensError, match=f"predicts {predicts}, but continuing a text needs"):
            sampled(tiny_bridge(family))


def test_nan_logits_are_an_error(opt: Any) -> None:
    with (
        opt.hooks(fwd_hooks=[("blocks.0.mlp.hook_post", lambda z, hook: z * torch.nan)]),
        pytest.raises(sp.SpLensError, match="logits are NaN"),
    ):
        sampled(opt)
