"""Compare sliding-window perplexity with the loop of the Hugging Face guide on plain transformers."""

import math
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import transformers
from factories import DEMO_FOLDER, Tiny, random_mask, tiny_bridge, tiny_hf, zero_rows
from hypothesis import given, settings
from hypothesis import strategies as st

import sp_lens as sp
from sp_lens.evaluation.perplexity import _window_batches

pytestmark = pytest.mark.model

TEXT = "The boat left the harbour at noon, and <unk> was on it. Nobody had seen the captain since Tuesday. " * 12


def guide(hf: Any, tokens: list[int], max_length: int, stride: int) -> tuple[float, int]:
    """Run the loop of "Perplexity of fixed-length models"; the mean of a window is weighted by its scored tokens."""
    input_ids = torch.tensor([tokens])
    seq_len = input_ids.size(1)
    nll_sum, n_tokens, prev_end_loc = 0.0, 0, 0
    for begin_loc in range(0, seq_len, stride):
        end_loc = min(begin_loc + max_length, seq_len)
        trg_len = end_loc - prev_end_loc
        window = input_ids[:, begin_loc:end_loc]
        target_ids = window.clone()
        target_ids[:, :-trg_len] = -100
        with torch.no_grad():
            loss = hf(window, labels=target_ids).loss
        scored = int((target_ids[:, 1:] != -100).sum())
        nll_sum += loss.item() * scored if scored else 0.0
        n_tokens += scored
        prev_end_loc = end_loc
        if end_loc == seq_len:
            break
    return nll_sum / n_tokens, n_tokens


@pytest.fixture(scope="module")
def plain() -> Any:
    """The bundled model in plain transformers, in float64."""
    return transformers.AutoModelForCausalLM.from_pretrained(DEMO_FOLDER, dtype=torch.float64).eval()


def tokens_of(text: str) -> list[int]:
    """Return BOS and the tokens of the text, from the bundled tokenizer in plain transformers."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO_FOLDER)
    return [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]


@pytest.mark.parametrize(("window", "stride"), [(64, 32), (64, 64), (50, 7), (256, 128), (2, 1), (256, 256)])
def test_perplexity_matches_the_loop_of_the_guide(demo: Any, plain: Any, window: int, stride: int) -> None:
    text = TEXT if stride > 10 else TEXT[:300]
    loss, scored = guide(plain, tokens_of(text), window, stride)
    for batch_tokens in (1, 500):
        result = sp.sliding_perplexity(
            demo, text, window=window, stride=stride, batch_tokens=batch_tokens, progress=False
        )
        assert result.tokens == scored
        assert result.loss == pytest.approx(loss, rel=1e-5)
        assert result.perplexity == pytest.approx(math.exp(loss), rel=1e-4)


def test_the_default_window_is_the_context_and_moves_by_half(demo: Any, plain: Any) -> None:
    loss, scored = guide(plain, tokens_of(TEXT), 256, 128)
    result = sp.sliding_perplexity(demo, TEXT, progress=False)
    assert (result.tokens, result.loss) == (scored, pytest.approx(loss, rel=1e-5))


def test_documents_are_joined_and_disjoint_windows_equal_rows(demo: Any) -> None:
    documents = [TEXT, "A second document, about nothing."]
    joined = sp.sliding_perplexity(demo, "\n\n".join(documents), window=40, stride=40, progress=False)
    assert sp.sliding_perplexity(demo, iter(documents), window=40, stride=40, progress=False) == joined
    tokens = torch.tensor(tokens_of("\n\n".join(documents)))
    rows = sp.evaluate(demo, list(tokens.split(40)), progress=False)  # only BOS is a special token here
    assert (joined.tokens, joined.top1, joined.top10) == (rows.tokens, rows.top1, rows.top10)
    assert joined.loss == pytest.approx(rows.loss, rel=1e-6)


def test_tokens_limits_the_text_to_its_first_tokens(demo: Any) -> None:
    for count in (5, 33, 10_000):
        start = demo.tokenizer.decode(tokens_of(TEXT)[1:][:count])
        cut = sp.sliding_perplexity(demo, start, window=32, stride=16, progress=False)
        assert sp.sliding_perplexity(demo, TEXT, window=32, stride=16, tokens=count, progress=False) == cut


def test_active_ablations_apply(tiny: Tiny) -> None:
    mask = random_mask(tiny.model, 0.3)
    tokens = tiny.model.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    head = [tiny.model.tokenizer.bos_token_id] if getattr(tiny.model.cfg, "default_prepend_bos", True) else []
    before = sp.sliding_perplexity(tiny.model, TEXT, window=32, stride=16, progress=False)
    with sp.ablate(tiny.model, mask):
        ablated = sp.sliding_perplexity(tiny.model, TEXT, window=32, stride=16, progress=False)
    hf = tiny_hf(tiny.family)
    zero_rows(tiny.family, hf, mask)
    loss, scored = guide(hf, [*head, *tokens], 32, 16)
    assert ablated.tokens == scored
    assert ablated.loss == pytest.approx(loss, rel=1e-5)
    assert abs(ablated.loss - before.loss) > 1e-3


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 60), st.integers(2, 20), st.data())
def test_each_token_is_scored_once_with_context(length: int, window: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, window))
    at_once = data.draw(st.integers(1, 5))
    seen: list[int] = []
    for batch in _window_batches(torch.arange(length), window, stride, at_once):
        assert len(batch.tokens) <= at_once
        for tokens, counted in zip(batch.tokens, batch.counted, strict=True):
            seen += tokens[counted].tolist()
            context = counted.nonzero()[0].item()
            assert tokens[0] == 0 or context >= window - stride
    assert seen == list(range(length))


@pytest.mark.skipif("SP_LENS_DATA" not in os.environ, reason="reads WikiText from the folder SP_LENS_DATA")
def test_more_context_lowers_the_perplexity_of_wikitext(demo: Any) -> None:
    lines = pd.read_parquet(Path(os.environ["SP_LENS_DATA"]) / "wikitext2-test.parquet")["text"]
    text = "\n\n".join(lines)[:3000]
    near, far = (sp.sliding_perplexity(demo, text, stride=stride, progress=False) for stride in (64, 256))
    assert near.perplexity < far.perplexity


def test_invalid_arguments_raise_an_error(demo: Any) -> None:
    errors: dict[str, dict[str, Any]] = {
        r"window=300: expected 2 to 256": {"window": 300},
        r"window=1: expected": {"window": 1},
        r"stride=65: expected 1 to 64": {"window": 64, "stride": 65},
        r"stride=0: expected": {"stride": 0},
        r"tokens=0: expected": {"tokens": 0},
    }
    for message, options in errors.items():
        with pytest.raises(sp.SpLensError, match=message):
            sp.sliding_perplexity(demo, TEXT, **options)
    with pytest.raises(sp.SpLensError, match="got one of dict: rows of tokens"):
        sp.sliding_perplexity(demo, [{"input_ids": [1, 2]}])  # pyright: ignore
    with pytest.raises(sp.SpLensError, match="nothing to predict"):
        sp.sliding_perplexity(demo, "")
    with pytest.raises(sp.SpLensError, match="predicts masked tokens, but the perplexity of a text needs"):
        sp.sliding_perplexity(tiny_bridge("bert"), TEXT)
    with pytest.raises(sp.SpLensError, match="predicts the class of an image"):
        sp.sliding_perplexity(tiny_bridge("vit"), TEXT)
