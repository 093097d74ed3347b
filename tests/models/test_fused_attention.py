"""Test where fused attention is used and that it is removed again. tests/families compares its results."""

from typing import Any

import pytest
import torch
from factories import bridge_of, tiny_bridge, tiny_hf
from torch.utils._python_dispatch import TorchDispatchMode

import sp_lens as sp
from sp_lens.models.forward import inference
from sp_lens.models.plain_model import mark_verified

pytestmark = pytest.mark.model

TOKENS = torch.arange(2, 42).view(2, 20)
FUSED, UNFUSED = {"aten::scaled_dot_product_attention"}, {"aten::_softmax"}


def kernels(model: Any) -> set[str]:
    """Return the attention kernels that torch runs in a forward pass: the fused one, or the softmax without it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        model(TOKENS)
    events = {str(event.key) for event in profile.key_averages()}
    return events & (FUSED | UNFUSED)


@pytest.fixture(params=["llama", "gpt2", "opt"])
def model(request: pytest.FixtureRequest) -> Any:
    return tiny_bridge(request.param)


def test_inference_uses_the_fused_kernel(model: Any) -> None:
    assert kernels(model) == UNFUSED
    with inference(model):
        assert kernels(model) == FUSED
        with inference(model):
            assert kernels(model) == FUSED
        assert kernels(model) == FUSED
    assert kernels(model) == UNFUSED


def test_the_model_is_restored(model: Any) -> None:
    """This includes an exception in the middle of a forward pass."""

    def state() -> list[tuple[list[tuple[str, Any]], set[str]]]:
        return [(list(module._modules.items()), set(vars(module))) for module in model.blocks.modules()]

    def stop(activation: torch.Tensor, hook: Any) -> None:
        raise KeyboardInterrupt

    with inference(model):
        model(TOKENS)  # transformers adds its own hooks in the first pass
    before = state()
    with model.hooks(fwd_hooks=[("blocks.1.mlp.hook_post", stop)]), pytest.raises(KeyboardInterrupt):
        sp.collect(model, list(TOKENS), progress=False)
    assert state() == before
    assert model.original_model.config._attn_implementation == "eager"
    assert kernels(model) == UNFUSED


@pytest.mark.parametrize("name", ["hook_pattern", "hook_attn_scores"])
def test_hooks_inside_attention_have_an_effect(name: str) -> None:
    """A hook that restricts attention to the first token changes the loss of `evaluate`."""
    model = tiny_bridge("llama")
    rows = list(TOKENS)

    def first_only(inner: torch.Tensor, hook: Any) -> torch.Tensor:
        if hook.name.endswith("scores"):
            return inner.index_fill(-1, torch.arange(1, inner.shape[-1]), torch.finfo(inner.dtype).min)
        return torch.zeros_like(inner).index_fill(-1, torch.tensor([0]), 1)

    whole = sp.evaluate(model, rows, progress=False).loss
    with model.hooks(fwd_hooks=[(f"blocks.1.attn.{name}", first_only)]):
        with torch.no_grad():
            logits = model(TOKENS)[:, :-1].flatten(0, 1)
        expected = float(torch.nn.functional.cross_entropy(logits, TOKENS[:, 1:].flatten()))
        assert sp.evaluate(model, rows, progress=False).loss == pytest.approx(expected, rel=1e-5)
    assert whole != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", ["hook_q", "hook_k", "hook_v"])
def test_hooks_on_queries_keys_and_values_have_an_effect(model: Any, name: str) -> None:
    rows = list(TOKENS)
    whole = sp.evaluate(model, rows, progress=False).loss
    with model.hooks(fwd_hooks=[(f"blocks.1.attn.{name}", lambda vectors, hook: -2 * vectors)]):
        with torch.no_grad():
            logits = model(TOKENS)[:, :-1].flatten(0, 1)
        expected = float(torch.nn.functional.cross_entropy(logits, TOKENS[:, 1:].flatten()))
        assert sp.evaluate(model, rows, progress=False).loss == pytest.approx(expected, rel=1e-5)
    assert abs(whole - expected) > 1e-4


@pytest.mark.parametrize(
    ("family", "dtype"), [("neox", torch.float32), ("gpt2", torch.float32), ("gpt2", torch.float64)], ids=str
)
def test_trained_weights_are_used(family: str, dtype: torch.dtype) -> None:
    """TransformerLens trains the projections of queries, keys and values, which transformers has in one matrix.

    For GPT-NeoX they are copies. For GPT-2 they are views, which may become copies if the dtype is converted.
    """
    model = tiny_bridge(family).to(dtype)
    whole = sp.evaluate(model, list(TOKENS), progress=False).loss
    with torch.no_grad():
        model.blocks[0].attn.v.original_component.weight.mul_(3)
        logits = model(TOKENS)[:, :-1].flatten(0, 1)
    expected = float(torch.nn.functional.cross_entropy(logits, TOKENS[:, 1:].flatten()))
    assert sp.evaluate(model, list(TOKENS), progress=False).loss == pytest.approx(expected, rel=1e-5)
    assert abs(whole - expected) > 1e-4


def test_the_fused_kernel_can_be_the_original_setting_of_the_model() -> None:
    hf = tiny_hf("llama")
    hf.set_attn_implementation("sdpa")
    model = bridge_of(hf, "tiny-llama")
    before = hf.config._attn_implementation  # TransformerLens 3.9 keeps it, TransformerLens 4 sets it to eager
    assert kernels(model) == UNFUSED
    with inference(model):
        assert kernels(model) == FUSED
    assert kernels(model) == UNFUSED
    assert hf.config._attn_implementation == before
    expected = sp.collect(tiny_bridge("llama"), list(TOKENS), progress=False).importance("abs")
    for name, values in sp.collect(model, list(TOKENS), progress=False).importance("abs").items():
        torch.testing.assert_close(values, expected[name], rtol=1e-5, atol=1e-7)


def test_models_with_processed_weights_are_not_changed() -> None:
    model = tiny_bridge("llama")
    model.enable_compatibility_mode(disable_warnings=True)
    with inference(model):
        assert kernels(model) == UNFUSED


def test_memory_grows_linearly_with_the_length_of_rows() -> None:
    """Compare the largest floating-point tensors in forward passes on rows of different length."""

    class Largest(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.numel = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.is_floating_point():
                self.numel = max(self.numel, result.numel())
            return result

    def largest(length: int, *, fused: bool) -> int:
        model = tiny_bridge("llama")
        mark_verified(model)  # the comparison with transformers is not what is measured
        watch = [] if fused else [("blocks.0.attn.hook_pattern", lambda pattern, hook: None)]
        with model.hooks(fwd_hooks=watch), Largest() as mode:
            sp.collect(model, [torch.arange(2, 2 + length)], progress=False)
        return mode.numel

    assert largest(128, fused=True) == 2 * largest(64, fused=True)
    assert largest(128, fused=False) == 4 * largest(64, fused=False)
