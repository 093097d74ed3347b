"""Sampling against softmax and transformers' own; perplexity against Hugging Face's loop; classifiers."""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
import transformers
from conftest import DEMO_FOLDER, random_mask, tiny_bridge, tiny_hf

import sp_lens as sp
from sp_lens.generation import continuations
from sp_lens.sliding import sliding_perplexity
from sp_lens.toxicity import Toxicity, toxicity, toxicity_classifier, tweet_classifier

PROMPT = "The boat left the harbour"
TEXT = "\n\n".join(
    f"Sentence {place} of a text that says very little, but says it at some length." for place in range(9)
)


@pytest.mark.model
def test_a_cold_sample_is_what_transformers_generates(opt: Any) -> None:
    hf = tiny_hf("opt")
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO_FOLDER)
    (text,) = continuations(opt, PROMPT, count=1, tokens=8, temperature=1e-6, progress=False)
    start = tokenizer(PROMPT, return_tensors="pt")
    with torch.no_grad():
        rows = hf.generate(**start, do_sample=False, max_new_tokens=8, min_new_tokens=8, eos_token_id=None)
    assert text == tokenizer.decode(rows[0, start["input_ids"].shape[1] :])


@pytest.mark.model
def test_samples_are_those_of_the_softmax_whatever_the_batch(opt: Any) -> None:
    count = 400
    texts = continuations(opt, PROMPT, count=count, tokens=1, temperature=0.05, batch=100, progress=False)
    assert texts == continuations(opt, PROMPT, count=count, tokens=1, temperature=0.05, batch=37, progress=False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO_FOLDER)
    with torch.no_grad():
        logits = tiny_hf("opt")(**tokenizer(PROMPT, return_tensors="pt")).logits[0, -1]
    p = (logits.double() / 0.05).softmax(0)
    likely = p.topk(3).indices
    words = [tokenizer.decode([token]) for token in likely]
    seen = np.array([texts.count(word) for word in words])
    expected = count * p[likely].numpy()
    both = [*seen, count - seen.sum()], [*expected, count - expected.sum()]
    assert scipy.stats.chisquare(*both).pvalue > 1e-3


@pytest.mark.model
def test_an_ablation_in_force_changes_what_is_written(opt: Any) -> None:
    options: dict[str, Any] = {"count": 2, "tokens": 6, "temperature": 1e-6, "progress": False}
    plain = continuations(opt, PROMPT, **options)
    with sp.ablate(opt, random_mask(opt, 0.6)):
        assert continuations(opt, PROMPT, **options) != plain
    assert continuations(opt, PROMPT, **options) == plain


@pytest.mark.model
@pytest.mark.parametrize("stride", [5, 16, 31])
def test_perplexity_is_that_of_hugging_faces_loop(opt: Any, stride: int) -> None:
    hf = tiny_hf("opt").double()
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO_FOLDER)
    ids = torch.tensor(tokenizer(TEXT, add_special_tokens=False)["input_ids"])
    room, end, nats, judged = 31, 0, 0.0, 0  # a window of 32, of which BOS is one
    for begin in range(0, len(ids), stride):
        before, end = end, min(begin + room, len(ids))
        row = torch.cat([torch.tensor([tokenizer.bos_token_id]), ids[begin:end]])[None]
        labels = row.clone()
        labels[:, : -(end - before)] = -100
        with torch.no_grad():
            nats += float(hf(row, labels=labels).loss) * (end - before)
        judged += end - before
        if end == len(ids):
            break
    assert judged == len(ids)
    found = sliding_perplexity(opt, TEXT.split("\n\n"), window=32, stride=stride, batch_tokens=100, progress=False)
    assert found == pytest.approx(math.exp(nats / judged), rel=1e-5)


@pytest.mark.model
def test_what_can_not_be_measured_is_refused(opt: Any) -> None:
    bert = tiny_bridge("bert")
    for call in (lambda: continuations(bert, PROMPT, count=1, tokens=1), lambda: sliding_perplexity(bert, TEXT)):
        with pytest.raises(sp.SpLensError, match="causal"):
            call()
    with pytest.raises(sp.SpLensError, match="context"):
        continuations(opt, PROMPT, count=1, tokens=10_000)
    with pytest.raises(sp.SpLensError, match="above 0"):
        continuations(opt, PROMPT, count=1, tokens=1, temperature=0)
    with pytest.raises(sp.SpLensError, match="stride"):
        sliding_perplexity(opt, TEXT, window=32, stride=32)
    with pytest.raises(sp.SpLensError, match="nothing to predict"):
        sliding_perplexity(opt, "")


@pytest.mark.model
def test_a_classifier_of_transformers_judges_as_its_softmax(opt: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO_FOLDER)
    config = transformers.BertConfig(
        vocab_size=4096, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        id2label={0: "kind", 1: "toxic"}, label2id={"kind": 0, "toxic": 1}, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    bert = transformers.BertForSequenceClassification(config).eval()
    bert.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    classifier = toxicity_classifier(tmp_path, label="toxic")
    found = toxicity(opt, classifier, prompt=PROMPT, count=3, tokens=5, progress=False)
    for text, score in zip(found.texts, found.scores, strict=True):
        with torch.no_grad():
            logits = bert(**tokenizer(text or " ", return_tensors="pt", return_token_type_ids=False)).logits
        assert score == pytest.approx(float(logits.softmax(-1)[0, 1]), abs=1e-5)
    assert found.mean.value == pytest.approx(np.mean(found.scores))
    found.save(tmp_path / "toxicity.json")
    assert Toxicity.load(tmp_path / "toxicity.json") == found
    with pytest.raises(sp.SpLensError, match="'rude'"):
        toxicity_classifier(tmp_path, label="rude")
    with pytest.raises(sp.SpLensError, match="cannot load"):
        toxicity_classifier(tmp_path / "nothing", label="toxic")


@pytest.mark.skipif("SP_LENS_DATA" not in os.environ, reason="the tweets lie in the folder that SP_LENS_DATA names")
def test_the_classifier_of_tweets_is_as_good_as_it_says() -> None:
    classifier = tweet_classifier()
    assert classifier.about["balanced_accuracy"] > 0.9
    nice, rude = classifier.score(["what a lovely morning in the garden", "shut up you stupid bitch"])
    assert nice < 0.5 < rude
