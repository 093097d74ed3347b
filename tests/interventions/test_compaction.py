"""Removing neurons from the weights gives the same results as zeroing them, in `compact`, `export` and `prune`.

The tests in tests/families cover more architectures.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import transformers
from factories import HERE, bridge_of, count_hooks, random_mask, random_rows, tiny_bridge
from hypothesis import given
from hypothesis import strategies as st

import sp_lens as sp
from sp_lens.cli.__main__ import main
from sp_lens.interventions import compaction, export
from sp_lens.interventions.compaction import pruned
from sp_lens.models.mlp_weights import Cut, Matrices, Sliced
from sp_lens.neurons.layout import NeuronGroup
from sp_lens.pruning import algorithm

pytestmark = pytest.mark.model

TOKENS = torch.randint(2, 4096, (3, 20), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def narrow_tiny_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Narrow the layers of tiny models too, which lose fewer neurons than `MIN_REMOVED`."""
    monkeypatch.setattr(compaction, "MIN_REMOVED", 1)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS)


def ablated(model: Any, mask: sp.NeuronMask) -> torch.Tensor:
    with sp.ablate(model, mask):
        return logits(model)


def widths(model: Any) -> list[int]:
    return [group.width for group in sp.layout_of(model).select("mlp")]


def snapshot(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(model: Any, before: dict[str, torch.Tensor]) -> None:
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in after.items())


@given(st.lists(st.booleans(), min_size=1, max_size=20), st.integers(0, 20))
def test_a_cut_layer_is_the_sum_over_its_remaining_neurons(marks: list[bool], filling: int) -> None:
    """Compares with the sum in float64 for a layer of two matrices; a temporary cut is undone on exit."""
    marked, neurons = torch.tensor(marks), len(marks)
    width = min(neurons, max(1, neurons - sum(marks) + filling))
    torch.manual_seed(0)
    inward, outward = torch.nn.Linear(3, neurons).double(), torch.nn.Linear(neurons, 2, bias=False).double()
    group = NeuronGroup("mlp", 0, neurons)
    inputs = (Sliced(inward, "weight", 0, "out_features"), Sliced(inward, "bias", 0))
    cut = Cut(Matrices(group, inputs, Sliced(outward, "weight", 1, "in_features")), marked, width)
    x, parameters = torch.randn(4, 3).double(), [*inward.parameters(), *outward.parameters()]
    before = [parameter.detach().clone() for parameter in parameters]
    activations = inward(x).relu()
    expected = sum(activations[:, [n]] * outward.weight[:, n] for n in range(neurons) if not marks[n])
    with cut.in_force():
        assert (outward.in_features, outward.weight.shape) == (width, (2, width))
        left = inward(x).relu()
        torch.testing.assert_close(left[:, : len(cut.first)], activations[:, cut.first])
        torch.testing.assert_close(outward(left), expected + torch.zeros(4, 2).double())
    assert all(map(torch.equal, before, parameters))
    after = (*inward.parameters(), *outward.parameters())
    assert all(parameter is original for parameter, original in zip(after, parameters, strict=True))
    assert (inward.out_features, outward.in_features) == (neurons, neurons)
    cut.apply()
    assert outward.weight.shape == (2, width)
    torch.testing.assert_close(outward(inward(x).relu()), expected + torch.zeros(4, 2).double())
    torch.testing.assert_close(inward(x).relu()[:, : len(cut.kept)], activations[:, ~marked])


@pytest.mark.usefixtures("narrow_tiny_layers")
def test_statistics_have_the_layout_of_the_whole_model(opt: Any) -> None:
    mask, before, rows = random_mask(opt, 0.5), snapshot(opt), random_rows(8)
    with sp.ablate(opt, mask):
        expected = sp.collect(opt, rows, progress=False)
    with pruned(opt, mask) as in_whole_layout:
        assert widths(opt) == [32, 24]
        stats = in_whole_layout(sp.collect(opt, rows, progress=False))
    with pytest.raises(RuntimeError, match="inside"), pruned(opt, mask):
        raise RuntimeError("inside")
    assert_same(opt, before)
    assert (stats.layout, stats.count) == (expected.layout, expected.count)
    for name, moments in stats.items():
        for field, values in moments.tensors().items():
            torch.testing.assert_close(values, expected[name].tensors()[field], rtol=1e-5, atol=1e-6)
            assert not values[mask[name]].any()
    assert stats.sinks() == expected.sinks()


@pytest.mark.usefixtures("narrow_tiny_layers")
@pytest.mark.parametrize("steps", range(6))
def test_an_interrupt_at_any_point_restores_the_weights(opt: Any, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C after some steps of cutting two layers, where a step moves the slices of a parameter or narrows it."""
    mask, before, hooks, remaining = random_mask(opt, 0.5), snapshot(opt), count_hooks(opt), [steps]

    def interrupted(step: Any) -> Any:
        def run(*arguments: Any) -> Any:
            result = step(*arguments)
            remaining[0] -= 1
            if remaining[0] == -1:  # only once, and not while the weights are restored
                raise KeyboardInterrupt
            return result

        return run

    monkeypatch.setattr(Sliced, "put_tensor", interrupted(Sliced.put_tensor))
    monkeypatch.setattr(torch.Tensor, "index_copy_", interrupted(torch.Tensor.index_copy_))
    with pytest.raises(KeyboardInterrupt), pruned(opt, mask):
        pass
    assert_same(opt, before)
    assert count_hooks(opt) == hooks


@contextmanager
def by_hooks(model: Any, mask: sp.NeuronMask) -> Iterator[Any]:
    """Ablate with hooks instead of `pruned`, so that layers keep their width."""
    with sp.ablate(model, mask):
        yield lambda stats: stats


def test_prune_gives_the_same_result_with_narrower_layers(
    demo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is resumed from an earlier step also ends with the same history, bit for bit."""
    texts = {"forget": "code", "retain": "prose"}
    splits: dict[str, Any] = {"": "collect", "eval_": "evaluate"}
    corpora = {
        f"{prefix}{side}": sp.load_corpus(name, demo, tokens=400, split=split, offline=True)
        for side, name in texts.items()
        for prefix, split in splits.items()
    }
    settings: dict[str, Any] = {**corpora, "site": "both", "fraction": 0.25, "progress": False}
    seen: list[list[int]] = []

    @contextmanager
    def watched(model: Any, mask: sp.NeuronMask) -> Iterator[Any]:
        with pruned(model, mask) as in_whole_layout:
            seen.append(widths(model))
            yield in_whole_layout

    before = snapshot(demo)
    with monkeypatch.context() as patch:
        patch.setattr(algorithm, "pruned", watched)
        run = sp.prune(demo, **settings, steps=3, out=tmp_path / "run")
    assert_same(demo, before)
    assert seen[0] == [768] * 4  # step 0 evaluates the whole model
    assert max(seen[-1]) < 600
    with monkeypatch.context() as patch:
        patch.setattr(algorithm, "pruned", by_hooks)
        with_hooks = sp.prune(demo, **settings, steps=3)
    assert run.mask == with_hooks.mask
    pd.testing.assert_frame_equal(run.history, with_hooks.history, rtol=1e-5)
    (tmp_path / "run" / "step-0003.safetensors").unlink()
    resumed = sp.prune(demo, **settings, steps=3, out=tmp_path / "run")
    assert resumed.mask == run.mask
    pd.testing.assert_frame_equal(resumed.history, run.history, check_exact=True)


def test_a_compacted_model_can_be_run_compacted_again_and_trained(tmp_path: Path) -> None:
    model = tiny_bridge("llama", seed=3)
    layout = sp.layout_of(model)
    names = layout.select("mlp").names
    mask = sp.NeuronMask(layout, {**random_mask(model, 0.4), names[1]: torch.ones(48, dtype=torch.bool)})
    expected, parameters = ablated(model, mask), sum(p.numel() for p in model.parameters())
    with sp.ablate(model, mask):
        _, whole = model.run_with_cache(TOKENS)
    assert sp.compact(model, mask) is None
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)
    left = int((~mask[names[0]]).sum())
    assert widths(model) == [-(-left // 8) * 8, 8]  # a layer without neurons keeps eight zeroed ones
    assert (
        parameters - sum(p.numel() for p in model.parameters()) == sum(48 - width for width in widths(model)) * 3 * 32
    )
    _, cache = model.run_with_cache(TOKENS)
    torch.testing.assert_close(cache[names[0]][..., :left], whole[names[0]][..., ~mask[names[0]]])
    smaller = random_mask(model, 0.5)
    folded = ablated(model, smaller)
    sp.compact(model, smaller)  # again, with a mask for the current widths
    torch.testing.assert_close(logits(model), folded, rtol=0, atol=1e-5)
    model(TOKENS, return_type="loss").backward()  # training works although the cache holds the old graph
    with pytest.raises(sp.SpLensError, match=r"mask is of another model: it has 48 neurons"):
        sp.compact(model, mask)
    nothing = sp.NeuronMask.from_neurons(sp.layout_of(model), {})
    with pytest.raises(
        sp.SpLensError, match=r"gate_proj.weight has the shape \(\d+, 32\), .* requires \(48, 32\).*original"
    ):
        sp.export(model, nothing, tmp_path / "small")


@pytest.mark.skipif(HERE < (4,), reason="TransformerLens has a bridge for dense blocks of Llama 4 since 4.0")
def test_modules_with_other_names_are_found_or_named_in_the_error() -> None:
    def llama4() -> Any:
        torch.manual_seed(0)
        config = transformers.Llama4TextConfig(
            vocab_size=4096, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            head_dim=8, intermediate_size=16, intermediate_size_mlp=48, moe_layers=[], pad_token_id=0,
            architectures=["Llama4ForCausalLM"],
        )  # fmt: skip
        return bridge_of(transformers.Llama4ForCausalLM(config).eval(), "tiny-llama4")

    model = llama4()
    mask = random_mask(model, 0.5)
    expected = ablated(model, mask)
    sp.compact(model, mask)
    assert max(widths(model)) < 48
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)
    model = llama4()
    for name in ("in", "gate"):
        delattr(model.blocks[1].mlp, f"dense_{name}")
    with pytest.raises(sp.SpLensError, match=r"blocks\.1\.mlp\.hook_post of Llama4.* does not name \(dense_out\)"):
        sp.compact(model, mask)


@pytest.mark.parametrize("seed", [0, 1])
def test_gate_and_up_remain_views_of_one_parameter(seed: int) -> None:
    """Phi-3 has both in one parameter, which is saved; TransformerLens computes with views of it."""
    model = tiny_bridge("phi3", seed)
    sp.compact(model, random_mask(model, 0.6, seed))
    mlp = model.blocks[0].mlp
    joined, parts = mlp.original_component.gate_up_proj, [mlp.gate.weight, getattr(mlp, "in").weight]
    assert torch.equal(joined.weight, torch.cat(parts))
    assert joined.out_features == len(joined.weight) < 96
    joined.weight.data.zero_()
    assert not any(part.any() for part in parts)


def test_an_export_has_the_width_of_the_widest_layer(opt: Any, tmp_path: Path) -> None:
    names = sp.layout_of(opt).select("mlp").names
    mask = sp.NeuronMask.from_neurons(sp.layout_of(opt), {names[0]: range(20), names[1]: range(10, 40)})
    folder = sp.export(opt, mask, tmp_path / "small", compact=True)
    exported: Any = sp.load_model(folder, device="cpu")
    assert (exported.original_model.config.ffn_dim, widths(exported), widths(opt)) == (32, [32, 32], [48, 48])
    torch.testing.assert_close(logits(exported), ablated(opt, mask), rtol=0, atol=1e-5)
    for name, block, saved in zip(names, opt.blocks, exported.blocks, strict=True):
        left = ~mask[name]
        assert torch.equal(saved.mlp.W_out[: left.sum()], block.mlp.W_out[left])
        assert not saved.mlp.W_out[left.sum() :].any()
    first_layer = mask.select("mlp").layout.groups[:1]
    mask = sp.NeuronMask(sp.Layout(first_layer), {names[0]: mask[names[0]]})
    assert widths(sp.load_model(sp.export(opt, mask, tmp_path / "one", compact=True), device="cpu")) == [48, 48]


def test_the_command_line_exports_a_compact_model(demo: Any, tmp_path: Path) -> None:
    mask = sp.NeuronMask(
        sp.layout_of(demo), {group.name: torch.arange(group.width) >= 96 for group in sp.layout_of(demo)}
    )
    mask.select("mlp").save(tmp_path / "mask.safetensors")
    options = ["--mask", str(tmp_path / "mask.safetensors"), "--out", str(tmp_path / "small"), "--compact"]
    assert main(["export", "--model", "demo", *options]) == 0
    assert widths(sp.load_model(tmp_path / "small")) == [96] * 4


def test_an_architecture_without_a_width_setting_is_not_exported_compact(
    opt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(opt)
    monkeypatch.setattr(export, "_WIDTHS", ("n_inner",))
    with pytest.raises(sp.SpLensError, match="OPTConfig has no known setting for the width"):
        sp.export(opt, random_mask(opt, 0.5), tmp_path / "small", compact=True)
    assert_same(opt, before)


@pytest.mark.usefixtures("narrow_tiny_layers")
def test_neurons_that_depend_on_each_other_are_not_removed(caplog: pytest.LogCaptureFixture) -> None:
    """With a softmax over the layer as activation function, removing neurons increases the others, unlike hooks."""
    model = tiny_bridge("opt")
    for layer in model.original_model.model.decoder.layers:
        layer._original_component.activation_fn = torch.nn.Softmax(-1)
    mask, before = random_mask(model, 0.5), snapshot(model)
    expected = ablated(model, mask)
    with pytest.raises(sp.SpLensError, match=r"neurons at blocks\.0\.mlp\.hook_post depend on each other"):
        sp.compact(model, mask)
    assert_same(model, before)
    with caplog.at_level(logging.WARNING), pruned(model, mask):
        assert torch.equal(logits(model), expected)
    assert "by hooks, which is slower" in caplog.text
    assert_same(model, before)


@pytest.mark.usefixtures("narrow_tiny_layers")
def test_hooks_for_the_original_width_remain_in_force(opt: Any) -> None:
    """Hooks of an ablation around a call of prune have the original width and do not fit narrower layers."""
    outer, inner = random_mask(opt, 0.3, seed=1), random_mask(opt, 0.5, seed=2)
    expected = ablated(opt, outer | inner)
    with sp.ablate(opt, outer), pruned(opt, inner):
        assert torch.equal(logits(opt), expected)
    with sp.ablate(opt, outer), pytest.raises(sp.SpLensError, match="does not run with narrower layers"):
        sp.compact(opt, inner)


class Packed(torch.nn.Linear):
    """A projection of another package, which stores its weight in its own format."""


@pytest.mark.usefixtures("narrow_tiny_layers")
@pytest.mark.parametrize("reason", ["are in a Packed", "are shared with another layer", "are quantized or offloaded"])
def test_weights_that_cannot_be_cut_raise_an_error_and_are_ablated_with_hooks(reason: str) -> None:
    model = tiny_bridge("opt")
    first, last = (getattr(block.mlp, "in").original_component for block in model.blocks)
    if "Packed" in reason:
        last.__class__ = Packed
    elif "shared" in reason:
        last.weight = first.weight
    else:
        last.weight.__class__ = type("Int8", (torch.nn.Parameter,), {})
    mask, before = random_mask(model, 0.5), snapshot(model)
    expected = ablated(model, mask)
    with pytest.raises(sp.SpLensError, match=rf"blocks\.\d\.mlp\.hook_post of OPTForCausalLM {reason}.*hooks works"):
        sp.compact(model, mask)
    assert_same(model, before)
    with pruned(model, mask):
        assert torch.equal(logits(model), expected)
