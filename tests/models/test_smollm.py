"""Test a real language model, SmolLM2-135M: grouped-query attention, gated MLP, 30 layers."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cells
import numpy as np
import pytest
import torch
import transformers
from factories import corpora

import sp_lens as sp
from sp_lens.typing import SIDES

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")

pytestmark = pytest.mark.smollm


def test_the_model_has_the_expected_layout_and_loss(smollm: Any) -> None:
    layout = sp.layout_of(smollm)
    assert {group.width for group in layout.select("mlp")} == {1536}
    assert {(group.width, group.heads) for group in layout.select("attn")} == {(576, 9)}
    code = "def fibonacci(n):\n    if n < 2:\n        return n\n    return fibonacci(n - 1) + fibonacci(n - 2)\n" * 2
    assert sp.evaluate(smollm, [code], progress=False).loss < 1.6


def test_the_complete_workflow_runs_on_smollm(smollm: Any, tmp_path: Path) -> None:
    """The workflow is: statistics, scores, a step of pruning, evaluation, export, and loading the result."""
    text = corpora(smollm, "code", "prose", 800)
    run = sp.prune(smollm, **text, fraction=0.05, steps=1, out=tmp_path / "run", progress=False)
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


def test_protecting_attention_sinks_preserves_the_retained_text(smollm: Any) -> None:
    """The metric abs selects a few neurons of attention sinks, without which the model loses all text."""
    text = corpora(smollm, "prose", "code", 1_500)
    forget, retain = (sp.collect(smollm, text[side], progress=False) for side in SIDES)
    sinks, scores = retain.sinks(), sp.score(forget, retain, metric="abs")
    assert forget.count == 1_500 - len(text["forget"])  # the first token of a row has no context
    assert np.isfinite(forget.frame()[["abs", "rms", "std", "freq"]].to_numpy()).all()
    assert {(2, 90), (2, 430), (11, 1229), (28, 678)} <= set(
        sinks.frame().query("value")[["layer", "neuron"]].itertuples(index=False)
    )
    assert sinks.count() < 40
    before = accuracies(smollm, text)
    with sp.ablate(smollm, scores.top(0.02, site="mlp", exclude=sinks)):
        protected = accuracies(smollm, text)
    with sp.ablate(smollm, scores.top(0.02, site="mlp")):
        unprotected = accuracies(smollm, text)
    assert before["forget"] - protected["forget"] > 0.05
    assert before["forget"] - protected["forget"] > 2 * (before["retain"] - protected["retain"])
    assert before["retain"] - unprotected["retain"] > 2 * (before["retain"] - protected["retain"])


def accuracies(model: Any, text: Mapping[str, Any]) -> dict[str, float]:
    """Return the accuracy on both held-out corpora."""
    return {side: sp.evaluate(model, text[f"eval_{side}"], progress=False).top1 for side in SIDES}


def test_the_example_of_the_readme_prints_what_the_readme_says(
    smollm_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / smollm_file.name).symlink_to(smollm_file)
    monkeypatch.chdir(tmp_path)
    cells.run(cells.blocks(README, "python", comment="smollm"), "README.md")
    line = re.compile(r"^(\w+): next-token accuracy ([0-9.]+) -> ([0-9.]+)$", flags=re.MULTILINE)
    printed, promised = line.findall(capsys.readouterr().out), line.findall(README)
    assert [name for name, _, _ in printed] == [name for name, _, _ in promised] == ["code", "prose"]
    # The text is that of the running Python and its packages, so the numbers may differ slightly.
    for (_, *measured), (_, *stated) in zip(printed, promised, strict=True):
        assert [float(number) for number in measured] == pytest.approx([float(number) for number in stated], abs=0.02)
