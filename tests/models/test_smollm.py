"""Test a real language model, SmolLM2-135M: grouped-query attention, gated MLP, 30 layers."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from factories import corpora

import sp_lens as sp

pytestmark = pytest.mark.smollm


def test_the_model_has_the_expected_layout_and_loss(smollm: Any) -> None:
    layout = sp.layout_of(smollm)
    assert {group.width for group in layout.select("mlp")} == {1536}
    assert {(group.width, group.heads) for group in layout.select("attn")} == {(576, 9)}
    code = "def fibonacci(n):\n    if n < 2:\n        return n\n    return fibonacci(n - 1) + fibonacci(n - 2)\n" * 2
    assert sp.evaluate(smollm, [code], progress=False).loss < 1.6


def test_the_complete_workflow_runs_on_smollm(smollm: Any, tmp_path: Path) -> None:
    """The workflow is: statistics, scores, two steps of pruning, evaluation, export, and loading the result."""
    text = corpora(smollm, "code", "prose", 800)
    stats = sp.collect(smollm, text["forget"], progress=False)
    assert stats.count == 800 - len(text["forget"])  # the first token of a row has no context
    assert np.isfinite(stats.frame()[["abs", "rms", "std", "freq"]].to_numpy()).all()
    run = sp.prune(smollm, **text, fraction=0.025, steps=2, out=tmp_path / "run", progress=False)
    last = run.history.iloc[-1]
    assert last["forget_drop"] > 0.12
    assert last["forget_drop"] > 2 * last["retain_drop"]
    folder = sp.export(smollm, run.mask, tmp_path / "pruned")
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    row = torch.tensor(text["eval_forget"]["input_ids"][0][:100])[None]
    with torch.no_grad(), sp.ablate(smollm, run.mask):
        torch.testing.assert_close(plain(row).logits, smollm(row), rtol=0, atol=1e-3)
        nats = torch.nn.functional.cross_entropy(plain(row).logits[0, :-1], row[0, 1:]).item()
        assert math.isclose(nats, sp.evaluate(smollm, [row], progress=False).loss, rel_tol=1e-3)


def test_protecting_attention_sinks_preserves_the_retained_text(smollm: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The metric abs selects a few neurons of attention sinks, and a warning is logged if they are not protected."""
    text = corpora(smollm, "prose", "code", 1_500)
    sinks = sp.collect(smollm, text["retain"], progress=False).sinks()
    assert {(2, 90), (2, 430), (11, 1229), (28, 678)} <= set(
        sinks.frame().query("value")[["layer", "neuron"]].itertuples(index=False)
    )
    assert sinks.count() < 40
    protected = sp.prune(smollm, **text, fraction=0.02, steps=1, protect=sinks, progress=False)
    assert not caplog.records
    last = protected.history.iloc[-1]
    assert last["forget_drop"] > 0.05
    assert last["forget_drop"] > 2 * last["retain_drop"]
    unprotected = sp.prune(smollm, **text, fraction=0.02, steps=1, progress=False)
    assert "attention sinks that all text needs" in caplog.text
    assert unprotected.history.iloc[-1]["retain_drop"] > 2 * last["retain_drop"]
