"""Compare accuracy and loss with plain transformers in float64."""

import math
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import Tiny, random_rows
from hypothesis import given, settings
from hypothesis import strategies as st

import sp_lens as sp
from sp_lens.evaluation.evaluate import _ranks

pytestmark = pytest.mark.model


def by_hand(hf: Any, rows: list[torch.Tensor]) -> dict[str, float]:
    """Compute the fields of `Evaluation` token by token from the logits of plain transformers."""
    common = {token for token, _ in Counter(torch.cat(rows).tolist()).most_common(50)}
    nats, top1, top10, uncommon = [], [], [], []
    for row in rows:
        with torch.no_grad():
            rows_logits = hf(row[None]).logits[0].double()
        for scores, target in zip(rows_logits[:-1], row[1:].tolist(), strict=True):
            nats.append(-scores.log_softmax(-1)[target].item())
            top1.append(scores.argmax().item() == target)
            top10.append(target in scores.topk(10).indices.tolist())
            if target not in common:
                uncommon.append(top1[-1])
    mean = {"loss": nats, "top1": top1, "top10": top10, "top1_skip50": uncommon}
    return {name: sum(values) / len(values) for name, values in mean.items()} | {"tokens": len(nats)}


@pytest.mark.parametrize("batch_tokens", [1, 100, 4096])
def test_an_evaluation_matches_plain_transformers(tiny: Tiny, batch_tokens: int) -> None:
    # Fifty tokens that are clearly the most common ones, and rare tokens.
    rows = random_rows(8) + [torch.arange(2, 52).repeat(2)] * 2
    with torch.no_grad():  # rows that the model continues itself, so that some predictions are correct
        start = torch.randint(60, 4096, (8, 4), generator=torch.Generator().manual_seed(3))
        rows += list(torch.cat([start, tiny.hf(start).logits[:, -1:].argmax(-1)], dim=1))
    result = sp.evaluate(tiny.model, rows, batch_tokens=batch_tokens, progress=False)
    expected = by_hand(tiny.hf, rows)
    assert result.top1 > 0
    assert result.top1_skip50 > 0
    for name, value in expected.items():
        assert getattr(result, name) == pytest.approx(value, rel=1e-6), name
    assert result.perplexity == pytest.approx(math.exp(expected["loss"]), rel=1e-5)


def test_special_tokens_and_padding_are_not_predicted(opt: Any) -> None:
    rows = [torch.cat([torch.tensor([1]), row, torch.tensor([1])]) for row in random_rows(4)]
    result = sp.evaluate(opt, rows, progress=False)
    assert result.tokens == sum(len(row) - 2 for row in rows)


def test_an_iterator_can_be_evaluated(opt: Any) -> None:
    rows = random_rows(4)
    results = [asdict(sp.evaluate(opt, corpus, progress=False)) for corpus in (iter(rows), rows)]
    assert results[0] == pytest.approx(results[1], rel=0, abs=0, nan_ok=True)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=4), st.integers(0, 5))
def test_equal_logits_are_ranked_as_by_argmax(scores: list[list[int]], target: int) -> None:
    logits = torch.tensor(scores, dtype=torch.float32)
    targets = torch.full((len(scores),), target)
    order = torch.argsort(logits, dim=1, descending=True, stable=True)
    assert torch.equal(_ranks(logits, targets), (order == target).int().argmax(dim=1))
    assert torch.equal(_ranks(logits, targets) == 0, logits.argmax(dim=1) == target)


def test_a_saved_evaluation_is_loaded(opt: Any, tmp_path: Path) -> None:
    result = sp.evaluate(opt, random_rows(3), progress=False)
    result.save(tmp_path / "evaluation.json")
    again = sp.Evaluation.load(tmp_path / "evaluation.json")
    assert asdict(again) == pytest.approx(asdict(result), rel=0, abs=0, nan_ok=True)
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(sp.SpLensError, match="is not an Evaluation"):
        sp.Evaluation.load(tmp_path / "other.json")


def test_a_corpus_with_nothing_to_predict_is_an_error(opt: Any) -> None:
    with pytest.raises(sp.SpLensError, match="nothing to predict"):
        sp.evaluate(opt, [torch.tensor([5, 1, 1])], progress=False)
