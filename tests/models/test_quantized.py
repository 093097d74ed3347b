"""Weights in 8 and 4 bits, by what transformers quantises with on a CPU, held against plain transformers."""

import importlib
import logging
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from factories import output_modules, plain_activations, random_mask, random_rows, tiny_hf, zero_rows

import sp_lens as sp
from sp_lens.interventions.ablation import fold_mask

pytestmark = [pytest.mark.model, pytest.mark.quantised]

DEMO = str(files("sp_lens.assets") / "demo")
ROWS = random_rows(8, longest=40)
TOKENS = torch.randint(2, 4096, (4, 60), generator=torch.Generator().manual_seed(0))


class Way(NamedTuple):
    """A quantisation.

    Attributes:
        package: to import.
        config: makes the configuration.
        within: how far the logits are from those of the same weights in float32 at most, where their standard
            deviation is 2.6. bitsandbytes rounds activations too: to 8 bits, and to bfloat16 with 4-bit weights.
    """

    package: str
    config: Callable[[], Any]
    within: float


def _torchao() -> Any:
    return transformers.TorchAoConfig(importlib.import_module("torchao.quantization").Int8WeightOnlyConfig())


WAYS = {
    "bitsandbytes 8": Way("bitsandbytes", lambda: transformers.BitsAndBytesConfig(load_in_8bit=True), 0.5),
    "bitsandbytes 4": Way("bitsandbytes", lambda: transformers.BitsAndBytesConfig(load_in_4bit=True), 0.3),
    "torchao 8": Way("torchao", _torchao, 1e-4),
    "quanto 8": Way("optimum.quanto", lambda: transformers.QuantoConfig(weights="int8"), 1e-4),
    "quanto 4": Way("optimum.quanto", lambda: transformers.QuantoConfig(weights="int4"), 1e-4),
}


@pytest.fixture(scope="module", params=list(WAYS))
def way(request: pytest.FixtureRequest) -> Way:
    way = WAYS[request.param]
    if way.package == "bitsandbytes":  # it says for each batch what it does to activations
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    pytest.importorskip(way.package, reason=f"needs {way.package}, which make test-models installs")
    return way


@pytest.fixture(scope="module")
def quantised(way: Way) -> Any:
    return sp.load_model("demo", quantization_config=way.config())


def plain(way: Way) -> Any:
    """Plain transformers, quantised alike."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        DEMO, quantization_config=way.config(), attn_implementation="eager", dtype=torch.float32
    )


def dequantised(way: Way) -> Any:
    """Plain transformers in float32 with the weights that the integers stand for."""
    packed = plain(way)
    if way.package == "bitsandbytes":
        return packed.dequantize()
    model = transformers.AutoModelForCausalLM.from_pretrained(DEMO, attn_implementation="eager", dtype=torch.float32)
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and "layers" in name:
                module.weight.copy_(packed.get_submodule(name).weight.dequantize())
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        output = model(TOKENS)
    return output if isinstance(output, torch.Tensor) else output.logits


def test_neurons_are_those_of_the_model_in_floats(quantised: Any, demo: Any, way: Way) -> None:
    assert sp.layout_of(quantised) == sp.layout_of(demo)
    stored = quantised.blocks[0].mlp.out.original_component.weight
    assert type(stored) is not torch.nn.Parameter
    assert torch.equal(logits(quantised), logits(plain(way)))


def test_statistics_are_those_of_pre_hooks_on_plain_transformers(quantised: Any, way: Way) -> None:
    for row in ROWS[:2]:  # one at a time: what 8-bit activations are rounded to depends on what is beside them
        values = sp.collect(quantised, [row], progress=False).importance("abs")
        for name, z in plain_activations("opt", plain(way), [row]).items():
            torch.testing.assert_close(values[name], z.abs().mean(0), rtol=1e-4, atol=1e-5)


def test_ablation_by_hooks_is_zeroed_rows(quantised: Any, way: Way) -> None:
    mask, zeroed, hooked = random_mask(quantised, 0.3), dequantised(way), plain(way)
    whole = logits(quantised)
    zero_rows("opt", zeroed, mask)
    for name, module in output_modules("opt", hooked).items():
        module.register_forward_pre_hook(lambda _, z, name=name: (z[0].masked_fill(mask[name], 0),))
    with sp.ablate(quantised, mask):
        ablated = logits(quantised)
    assert torch.equal(ablated, logits(hooked))
    assert float((ablated - logits(zeroed)).abs().max()) < way.within
    assert float((ablated - whole).abs().max()) > 5  # far more than what rounding does
    with torch.no_grad():
        assert torch.equal(quantised.run_with_hooks(TOKENS, fwd_hooks=sp.ablation_hooks(mask)), ablated)


def test_pruning_and_the_effects_of_heads(quantised: Any, tmp_path: Path) -> None:
    heads = sp.ablation_effect(quantised, ROWS[:2], progress=False)
    assert all(value.isfinite().all() for value in heads.values())
    held_out = {"eval_forget": random_rows(4, seed=1), "eval_retain": random_rows(4, seed=2)}
    settings: dict[str, Any] = {"fraction": 0.1, "out": tmp_path / "run", "progress": False, **held_out}
    sp.prune(quantised, ROWS[:4], ROWS[4:], steps=1, **settings)
    run = sp.prune(quantised, ROWS[:4], ROWS[4:], steps=2, **settings)  # the weights are known again
    assert run.mask.count() == 2 * 307
    with sp.ablate(quantised, run.mask):
        loss = sp.evaluate(quantised, held_out["eval_retain"], progress=False).loss
    assert loss == pytest.approx(run.history["retain_loss"].iloc[-1])


def test_rows_of_packed_weights_are_not_written_to(quantised: Any, tmp_path: Path) -> None:
    """quanto unpacks a weight that is transposed: writing to that would change nothing, and say nothing."""
    mask, before = random_mask(quantised, 0.3), logits(quantised)
    with pytest.raises(sp.SpLensError, match=r"quantised or offloaded.*load the model in float16 or bfloat16"):
        fold_mask(quantised, mask)
    with pytest.raises(sp.SpLensError, match=r"'demo' is quantised.*load the model in float16 or bfloat16"):
        sp.export(quantised, mask, tmp_path / "pruned")
    assert torch.equal(logits(quantised), before)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_was_saved_quantised(way: Way, quantised: Any, tmp_path: Path) -> None:
    if way.package != "bitsandbytes":
        pytest.skip("only bitsandbytes' integers are saved here")
    plain(way).save_pretrained(tmp_path / "demo")
    transformers.AutoTokenizer.from_pretrained(DEMO).save_pretrained(tmp_path / "demo")
    assert torch.equal(logits(sp.load_model(tmp_path / "demo", device="cpu")), logits(quantised))


def test_a_fused_projection_is_refused(way: Way, tmp_path: Path) -> None:
    """TransformerLens cuts GPT-2's projection into queries, keys and values, which packed integers can't be."""
    if way.package != "bitsandbytes":
        pytest.skip("the others leave the projection of GPT-2 in floats")
    tiny_hf("gpt2").save_pretrained(tmp_path)
    with pytest.raises(sp.SpLensError, match=r"with this quantization_config.*split a fused QKV projection"):
        sp.load_model(tmp_path, quantization_config=way.config())


def test_a_package_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.quantizers import quantizer_quanto

    monkeypatch.setattr(quantizer_quanto, "is_optimum_quanto_available", lambda: False)
    with pytest.raises(sp.SpLensError, match=r"with this quantization_config.*requires optimum-quanto"):
        sp.load_model("demo", quantization_config=transformers.QuantoConfig(weights="int8"))
