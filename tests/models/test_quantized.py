"""Test weights in 8 and 4 bits, with all quantization packages that run on a CPU, against plain transformers."""

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

pytestmark = [pytest.mark.model, pytest.mark.quantized]

DEMO = str(files("sp_lens.assets") / "demo")
ROWS = random_rows(8, longest=40)
TOKENS = torch.randint(2, 4096, (4, 60), generator=torch.Generator().manual_seed(0))


class Method(NamedTuple):
    """A quantization method.

    Attributes:
        package: Name of the package to import.
        config: Function that creates the configuration.
        within: Largest allowed difference of the logits from those of the same weights in float32, whose standard
            deviation is 2.6. bitsandbytes also rounds activations: to 8 bits, or to bfloat16 with 4-bit weights.
    """

    package: str
    config: Callable[[], Any]
    within: float


def _torchao() -> Any:
    return transformers.TorchAoConfig(importlib.import_module("torchao.quantization").Int8WeightOnlyConfig())


METHODS = {
    "bitsandbytes 8": Method("bitsandbytes", lambda: transformers.BitsAndBytesConfig(load_in_8bit=True), 0.5),
    "bitsandbytes 4": Method("bitsandbytes", lambda: transformers.BitsAndBytesConfig(load_in_4bit=True), 0.3),
    "torchao 8": Method("torchao", _torchao, 1e-4),
    "quanto 8": Method("optimum.quanto", lambda: transformers.QuantoConfig(weights="int8"), 1e-4),
    "quanto 4": Method("optimum.quanto", lambda: transformers.QuantoConfig(weights="int4"), 1e-4),
}


@pytest.fixture(scope="module", params=list(METHODS))
def method(request: pytest.FixtureRequest) -> Method:
    method = METHODS[request.param]
    if method.package == "bitsandbytes":  # it logs the conversion of activations for each batch
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    pytest.importorskip(method.package, reason=f"needs {method.package}, which make test-models installs")
    return method


@pytest.fixture(scope="module")
def quantized(method: Method) -> Any:
    return sp.load_model("demo", quantization_config=method.config())


def plain(method: Method) -> Any:
    """Return the plain transformers model with the same quantization."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        DEMO, quantization_config=method.config(), attn_implementation="eager", dtype=torch.float32
    )


def dequantized(method: Method) -> Any:
    """Return the plain transformers model in float32 with the dequantized weights."""
    packed = plain(method)
    if method.package == "bitsandbytes":
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


def test_the_layout_equals_that_of_the_model_in_float32(quantized: Any, demo: Any, method: Method) -> None:
    assert sp.layout_of(quantized) == sp.layout_of(demo)
    stored = quantized.blocks[0].mlp.out.original_component.weight
    assert type(stored) is not torch.nn.Parameter
    assert torch.equal(logits(quantized), logits(plain(method)))


def test_statistics_equal_those_of_plain_transformers(quantized: Any, method: Method) -> None:
    for row in ROWS[:2]:  # one at a time: the rounding of 8-bit activations depends on the other rows
        values = sp.collect(quantized, [row], progress=False).importance("abs")
        for name, z in plain_activations("opt", plain(method), [row]).items():
            torch.testing.assert_close(values[name], z.abs().mean(0), rtol=1e-4, atol=1e-5)


def test_ablation_by_hooks_equals_zeroed_rows(quantized: Any, method: Method) -> None:
    mask, zeroed, hooked = random_mask(quantized, 0.3), dequantized(method), plain(method)
    whole = logits(quantized)
    zero_rows("opt", zeroed, mask)
    for name, module in output_modules("opt", hooked).items():
        module.register_forward_pre_hook(lambda _, z, name=name: (z[0].masked_fill(mask[name], 0),))
    with sp.ablate(quantized, mask):
        ablated = logits(quantized)
    assert torch.equal(ablated, logits(hooked))
    assert float((ablated - logits(zeroed)).abs().max()) < method.within
    assert float((ablated - whole).abs().max()) > 5  # far more than the rounding
    with torch.no_grad():
        assert torch.equal(quantized.run_with_hooks(TOKENS, fwd_hooks=sp.ablation_hooks(mask)), ablated)


def test_pruning_and_ablation_effects_work(quantized: Any, tmp_path: Path) -> None:
    heads = sp.ablation_effect(quantized, ROWS[:2], progress=False)
    assert all(value.isfinite().all() for value in heads.values())
    held_out = {"eval_forget": random_rows(4, seed=1), "eval_retain": random_rows(4, seed=2)}
    settings: dict[str, Any] = {"fraction": 0.1, "out": tmp_path / "run", "progress": False, **held_out}
    sp.prune(quantized, ROWS[:4], ROWS[4:], steps=1, **settings)
    run = sp.prune(quantized, ROWS[:4], ROWS[4:], steps=2, **settings)  # resumes the run
    assert run.mask.count() == 2 * 307
    with sp.ablate(quantized, run.mask):
        loss = sp.evaluate(quantized, held_out["eval_retain"], progress=False).loss
    assert loss == pytest.approx(run.history["retain_loss"].iloc[-1])


def test_packed_weights_are_not_changed(quantized: Any, tmp_path: Path) -> None:
    """quanto unpacks a weight when it is transposed, so writing to the result would silently have no effect."""
    mask, before = random_mask(quantized, 0.3), logits(quantized)
    with pytest.raises(sp.SpLensError, match=r"quantized or offloaded.*load the model in float16 or bfloat16"):
        fold_mask(quantized, mask)
    with pytest.raises(sp.SpLensError, match=r"'demo' is quantized.*load the model in float16 or bfloat16"):
        sp.export(quantized, mask, tmp_path / "pruned")
    assert torch.equal(logits(quantized), before)
    assert not list(tmp_path.iterdir())


def test_a_saved_quantized_model_can_be_loaded(method: Method, quantized: Any, tmp_path: Path) -> None:
    if method.package != "bitsandbytes":
        pytest.skip("only bitsandbytes is tested with saved integers")
    plain(method).save_pretrained(tmp_path / "demo")
    transformers.AutoTokenizer.from_pretrained(DEMO).save_pretrained(tmp_path / "demo")
    assert torch.equal(logits(sp.load_model(tmp_path / "demo", device="cpu")), logits(quantized))


def test_a_quantized_fused_projection_is_rejected(method: Method, tmp_path: Path) -> None:
    """TransformerLens splits GPT-2's projection into queries, keys and values, and packed integers cannot be split."""
    if method.package != "bitsandbytes":
        pytest.skip("the other packages do not quantize the projection of GPT-2")
    tiny_hf("gpt2").save_pretrained(tmp_path)
    with pytest.raises(sp.SpLensError, match=r"with this quantization_config.*split a fused QKV projection"):
        sp.load_model(tmp_path, quantization_config=method.config())


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.quantizers import quantizer_quanto

    monkeypatch.setattr(quantizer_quanto, "is_optimum_quanto_available", lambda: False)
    with pytest.raises(sp.SpLensError, match=r"with this quantization_config.*requires optimum-quanto"):
        sp.load_model("demo", quantization_config=transformers.QuantoConfig(weights="int8"))
