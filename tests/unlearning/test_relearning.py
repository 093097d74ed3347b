"""Compare relearning with updates of plain torch on plain transformers, and test that it restores the model."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import padded, random_mask, random_rows, tiny_bridge, tiny_hf, zero_rows

import sp_lens as sp

pytestmark = pytest.mark.model

MODULE = importlib.import_module("sp_lens.unlearning.relearning")  # sp.unlearning.relearning is the function


def corpora() -> dict[str, Any]:
    """Rows of one length, so that a mean over a batch is a mean over its rows."""
    return {
        name: [torch.arange(12) * (7 + n) + 2 + 31 * row for row in range(6)]
        for n, name in enumerate(("forget", "eval_forget", "eval_retain"))
    }


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The predictions of the model for the held-out text at each evaluation."""
    predictions: list[torch.Tensor] = []
    evaluate = MODULE.evaluate

    def recording_evaluate(model: Any, corpus: Any, **options: Any) -> Any:
        with torch.no_grad():
            predictions.append(model(torch.stack(corpus), return_type="logits").log_softmax(-1))
        return evaluate(model, corpus, **options)

    monkeypatch.setattr(MODULE, "evaluate", recording_evaluate)
    return predictions


@pytest.mark.parametrize("pruned", [False, True])
def test_updates_are_those_of_plain_torch(pruned: bool, evaluated: list[torch.Tensor]) -> None:
    """Pruned neurons stay pruned while the others learn."""
    hf, model, text = tiny_hf("opt"), tiny_bridge("opt"), corpora()
    mask = random_mask(model, 0.3 if pruned else 0.0)
    zero_rows("opt", hf, mask)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with sp.ablate(model, mask):
        result = sp.unlearning.relearning(
            model,
            text["forget"],
            eval_forget=text["eval_forget"],
            updates=3,
            every=2,
            learning_rate=1e-3,
            progress=False,
        )
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), before, strict=True))
    assert result.history["update"].tolist() == [0, 2, 3]
    optimizer = torch.optim.AdamW(hf.parameters(), lr=1e-3, weight_decay=0.0)
    held_out = torch.stack(text["eval_forget"])
    for update in range(4):
        if update:
            optimizer.zero_grad()
            rows = torch.stack(text["forget"])
            logits = hf(rows).logits[:, :-1]
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).backward()
            optimizer.step()
            zero_rows("opt", hf, mask)
        if update == 1:
            continue
        with torch.no_grad():
            logits = hf(held_out).logits
        # Where a gradient is close to 0, rounding decides the sign of AdamW's step.
        torch.testing.assert_close(evaluated.pop(0), logits.log_softmax(-1), atol=5e-3, rtol=0)
        top1 = float((logits[:, :-1].argmax(-1) == held_out[:, 1:]).double().mean())
        assert dict(zip(result.history["update"], result.history["forget_top1"], strict=True))[update] == top1
    assert not evaluated


def test_relearning_starts_from_the_weights_of_an_applied_run(opt: Any, evaluated: list[torch.Tensor]) -> None:
    text, rows = corpora(), random_rows(6)
    ascent = sp.unlearning.gradient_ascent(
        opt, text["forget"], rows, eval_forget=text["eval_forget"], eval_retain=text["eval_retain"], steps=1,
        learning_rate=1e-2, progress=False,
    )  # fmt: skip
    before = [parameter.detach().clone() for parameter in opt.parameters()]
    with ascent.applied(opt):
        changed = [parameter.detach().clone() for parameter in opt.parameters()]
        result = sp.unlearning.relearning(opt, **text, updates=2, every=1, progress=False)
        assert all(torch.equal(*pair) for pair in zip(opt.parameters(), changed, strict=True))
        expected = opt(torch.stack(text["eval_forget"]), return_type="logits").log_softmax(-1)
    assert all(torch.equal(*pair) for pair in zip(opt.parameters(), before, strict=True))
    torch.testing.assert_close(evaluated[0], expected)
    assert list(result.history) == ["update", "forget_top1", "retain_top1"]


def test_the_model_is_restored_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = tiny_bridge("opt"), []
    model.train()
    before = [(parameter.detach().clone(), parameter.requires_grad) for parameter in model.parameters()]
    evaluate = MODULE.evaluate

    def failing(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return evaluate(*arguments, **options)

    monkeypatch.setattr(MODULE, "evaluate", failing)
    text = corpora()
    with pytest.raises(RuntimeError, match="out of memory"):
        sp.unlearning.relearning(model, text["forget"], eval_forget=text["eval_forget"], updates=1, progress=False)
    assert model.training
    for parameter, (value, requires_grad) in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, value)
        assert parameter.requires_grad == requires_grad


def test_pruned_code_is_relearned(demo: Any, tmp_path: Path) -> None:
    def read(name: str, tokens: int, split: Any = "collect") -> Any:
        return sp.load_corpus(name, demo, tokens=tokens, split=split, offline=True)

    code, held_out = read("code", 8000), read("code", 1000, "evaluate")
    options: dict[str, Any] = {"progress": False}
    scores = sp.score(*(sp.collect(demo, read(name, 1000), **options) for name in ("code", "prose")))
    whole = sp.evaluate(demo, held_out, **options).top1
    with sp.ablate(demo, scores.top(0.3, site="mlp")):
        result = sp.unlearning.relearning(
            demo, code, eval_forget=held_out, updates=8, every=4, batch_tokens=1024, **options
        )
    top1 = result.history["forget_top1"].tolist()
    assert top1[0] < 0.8 * whole
    assert top1[0] + 0.01 < top1[-1] < whole
    assert result.updates_to(top1[0]) == 0
    assert result.updates_to(top1[0] + 0.01) in (4, 8)
    assert result.updates_to(1.0) is None
    result.save(tmp_path / "relearning.json")
    assert sp.unlearning.Relearning.load(tmp_path / "relearning.json") == result


def test_invalid_input_raises(opt: Any, tmp_path: Path) -> None:
    text = corpora()
    for name in ("updates", "every", "learning_rate"):
        with pytest.raises(sp.SpLensError, match=f"{name}=0"):
            sp.unlearning.relearning(opt, text["forget"], eval_forget=text["eval_forget"], **{name: 0}, progress=False)
    long = padded([torch.arange(20) + 9 * n for n in range(4)], "right", 0)
    for name in ("eval_forget", "eval_retain"):
        with pytest.raises(sp.SpLensError, match=f"{name} has 4 rows that are in forget too"):
            sp.unlearning.relearning(opt, long, **{"eval_forget": text["eval_forget"], name: long}, progress=False)
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(sp.SpLensError, match="is not a Relearning"):
        sp.unlearning.Relearning.load(tmp_path / "other.json")
