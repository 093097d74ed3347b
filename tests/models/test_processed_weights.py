"""Weights that TransformerLens has processed: what they change, and that they are not mixed with original weights."""

import logging
from typing import Any

import pytest
import torch
from factories import KINDS, bridge_of, random_rows, tiny_bridge, tiny_hf, tiny_hooked

import sp_lens as sp
from sp_lens.models.hooks import model_name
from sp_lens.models.processed_weights import value_biases_are_folded

pytestmark = pytest.mark.model

OPTIONS = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")
ROWS = random_rows(6)


def bridge(family: str, *processing: str) -> Any:
    """Return a random model with biases, whose weights are processed in the given ways."""
    hf = tiny_hf(family)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    model = bridge_of(hf, f"tiny-{family}")
    if processing:
        model.enable_compatibility_mode(**{option: option in processing for option in OPTIONS})
    return model


def importances(model: Any, site: Any) -> torch.Tensor:
    values = sp.collect(model, ROWS, progress=False).importance("abs").select(site)
    return torch.cat([values[name] for name in values])


@pytest.mark.parametrize("family", ["gpt2", "opt", "neox", "qwen2"])
def test_only_folding_value_biases_changes_activations(family: str) -> None:
    original = {site: importances(bridge(family), site) for site in ("attn", "mlp")}
    for processing in ((), OPTIONS[:3], OPTIONS):
        model = bridge(family, *processing)
        torch.testing.assert_close(importances(model, "mlp"), original["mlp"], rtol=1e-4, atol=1e-6)
        difference = (importances(model, "attn") / original["attn"] - 1).abs().median()
        folded = "fold_value_biases" in processing
        assert (difference > 0.05) if folded else (difference < 1e-5)
        assert value_biases_are_folded(model) is folded


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3", "bert"])
def test_models_that_are_not_processed_are_not_reported(family: str, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_bridge(family)
    sp.layout_of(model)
    assert not value_biases_are_folded(model)
    assert "folded" not in model_name(model)
    assert not caplog.records


def test_llama_has_no_biases_to_fold() -> None:
    assert not value_biases_are_folded(bridge("llama", *OPTIONS))


def test_the_warning_is_logged_once_for_each_model(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        model = bridge("opt", *OPTIONS)
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                sp.collect(model, ROWS, progress=False)
    warnings = [record.getMessage() for record in caplog.records if "folded" in record.getMessage()]
    assert len(warnings) == 2
    assert "from_pretrained_no_processing" in warnings[0]


def test_results_of_processed_and_original_weights_are_not_mixed(tmp_path: Any) -> None:
    original, processed = bridge("opt"), bridge("opt", *OPTIONS)
    stats, other = (sp.collect(model, ROWS, progress=False) for model in (original, processed))
    assert other.about["model"] == "tiny-opt with folded value biases"
    for mix in (lambda: stats.merge(other), lambda: sp.score(stats, other, metric="abs")):
        with pytest.raises(sp.SpLensError, match=r"different models.*with folded value biases"):
            mix()
    mask, own = (each.importance("abs").top(0.1, site="attn") for each in (stats, other))
    with (
        pytest.raises(sp.SpLensError, match="made for the model 'tiny-opt', not for 'tiny-opt with folded"),
        sp.ablate(processed, mask),
    ):
        pass
    for change in (lambda: sp.fold_mask(processed, own), lambda: sp.export(processed, own, tmp_path / "pruned")):
        with pytest.raises(sp.SpLensError, match="value biases of this model were folded"):
            change()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif("hooked" not in KINDS, reason="TransformerLens 4 has no HookedTransformer")
@pytest.mark.parametrize("family", ["gpt2", "opt", "neox"])
def test_a_hooked_transformer_with_processed_weights_is_detected(family: str) -> None:
    model = tiny_hooked(family)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for block in model.blocks:
            for bias in (block.attn.b_V, block.attn.b_O):
                bias.add_(torch.randn(bias.shape, generator=generator))
    assert not value_biases_are_folded(model)
    model.process_weights_(fold_ln=True, center_writing_weights=False, center_unembed=False)
    assert value_biases_are_folded(model)
