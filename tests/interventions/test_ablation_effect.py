"""`ablation_effect` compared with one evaluation per unit, and `effect_estimate` with derivatives of the loss."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from factories import (
    DEMO_FOLDER,
    HERE,
    TINY,
    Tiny,
    bridge_of,
    count_hooks,
    output_modules,
    random_mask,
    random_rows,
    tiny_bridge,
    tiny_hf,
)
from scipy.stats import spearmanr

import sp_lens as sp
from sp_lens.models.hooks import attached

pytestmark = pytest.mark.model

ROWS = random_rows(5)
# Step of the central differences: small enough that few ReLUs change sign, and large enough that the float32 rounding
# of transformers' softmax is negligible.
STEP = 2e-3
Unit = tuple[str, list[int]]


def heads_of(model: Any) -> list[Unit]:
    units = []
    for group in sp.layout_of(model).select("attn"):
        width = group.width // group.heads
        units += [(group.name, list(range(width * head, width * head + width))) for head in range(group.heads)]
    return units


def loss_increases(
    model: Any, corpus: Any, units: list[Unit], *, batch_tokens: int = 4096, **ablation: Any
) -> torch.Tensor:
    """Compute the increase of the loss without each unit by evaluating the whole model for each of them."""
    options: dict[str, Any] = {"seed": 3, "batch_tokens": batch_tokens, "progress": False}
    baseline = sp.evaluate(model, corpus, **options).loss
    increases = []
    for name, neurons in units:
        with sp.ablate(model, sp.NeuronMask.from_neurons(sp.layout_of(model), {name: neurons}), **ablation):
            increases.append(sp.evaluate(model, corpus, **options).loss - baseline)
    return torch.tensor(increases, dtype=torch.float64)


def check_effects(model: Any, corpus: Any, *, batch_tokens: int = 4096, **ablation: Any) -> None:
    """Compare the effects of all heads, and of some neurons of the last block, with `loss_increases`."""
    options: dict[str, Any] = {"seed": 3, "batch_tokens": batch_tokens, "progress": False, **ablation}
    heads = torch.cat(list(sp.ablation_effect(model, corpus, **options).values()))
    expected = loss_increases(model, corpus, heads_of(model), batch_tokens=batch_tokens, **ablation)
    torch.testing.assert_close(heads, expected, rtol=0, atol=1e-6)
    assert expected.abs().max() > 1e-5  # the ablations have an effect

    chosen = [(group.name, neuron) for group in sp.layout_of(model)[-2:] for neuron in (2, 17)]
    mask = sp.NeuronMask.from_neurons(sp.layout_of(model), {name: [2, 17] for name, _ in chosen})
    effects = sp.ablation_effect(model, corpus, unit="neuron", neurons=mask, **options)
    measured = torch.stack([effects[name][neuron] for name, neuron in chosen])
    units = [(name, [neuron]) for name, neuron in chosen]
    torch.testing.assert_close(
        measured, loss_increases(model, corpus, units, batch_tokens=batch_tokens, **ablation), rtol=0, atol=1e-6
    )
    assert sum(int(values.isfinite().sum()) for values in effects.values()) == len(chosen)


def test_effects_are_those_of_complete_passes(tiny: Tiny) -> None:
    check_effects(tiny.model, ROWS, batch_tokens=60)  # batches with padding, with one or several copies per pass


@pytest.mark.parametrize("batch_tokens", [24, 4096])  # one row per pass; all units of a layer in one pass
def test_effects_do_not_depend_on_the_batches(opt: Any, batch_tokens: int) -> None:
    check_effects(opt, ROWS, batch_tokens=batch_tokens)


def test_effects_are_correct_with_mean_ablation_and_within_another_ablation(tiny: Tiny) -> None:
    stats, hooks = sp.collect(tiny.model, ROWS, progress=False), count_hooks(tiny.model)
    with sp.ablate(tiny.model, random_mask(tiny.model, 0.3)):
        check_effects(tiny.model, ROWS, mode="mean", reference=stats)
        ablated_head = sp.NeuronMask.from_neurons(sp.layout_of(tiny.model), {"blocks.1.attn.hook_z": range(8, 16)})
        with sp.ablate(tiny.model, ablated_head):
            effects = sp.ablation_effect(tiny.model, ROWS, progress=False)
            estimate = sp.effect_estimate(tiny.model, ROWS, progress=False).heads("sum")
        assert abs(effects["blocks.1.attn.hook_z"][1]) < 1e-6  # already ablated
        assert estimate["blocks.1.attn.hook_z"][1] == 0
        assert effects["blocks.1.attn.hook_z"][0] != 0
    assert count_hooks(tiny.model) == hooks
    assert not any("forward" in vars(module) for module in tiny.model.modules())


@pytest.mark.parametrize("family", ["opt-post-norm", "gemma3", "bert", "vit"])
def test_effects_are_correct_for_families_with_other_block_outputs(family: str) -> None:
    model = tiny_bridge(family)
    generator = torch.Generator().manual_seed(1)
    images = [{"pixel_values": torch.randn(3, 16, 16, generator=generator), "labels": label} for label in range(3)]
    check_effects(model, images if family == "vit" else ROWS, batch_tokens=60)


@pytest.mark.skipif(HERE < (4, 3), reason="needs the Gemma 4 bridge of TransformerLens 4.3")
def test_effects_are_correct_for_blocks_that_share_keys_and_values() -> None:
    settings: dict[str, Any] = {
        "vocab_size": 4096, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "head_dim": 8,
        "num_key_value_heads": 2, "global_head_dim": 8, "intermediate_size": 48, "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 8,
        "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 4096, "attn_implementation": "eager",
    }  # fmt: skip
    torch.manual_seed(0)
    kind: Any = transformers.Gemma4ForCausalLM
    hf = kind(kind.config_class(**settings)).eval()
    hf.config.architectures = ["Gemma4ForCausalLM"]
    check_effects(bridge_of(hf, "tiny-gemma4"), ROWS[:2])


@pytest.mark.skipif(HERE < (4,), reason="TransformerLens 3.9 does not support weights on disk")
def test_effects_are_correct_for_a_model_offloaded_to_disk(tmp_path: Path) -> None:
    tiny_hf("gpt2").save_pretrained(tmp_path / "gpt2")
    transformers.AutoTokenizer.from_pretrained(DEMO_FOLDER).save_pretrained(tmp_path / "gpt2")
    in_memory, on_disk = (sp.load_model(tmp_path / "gpt2", device_map={"": device}) for device in ("cpu", "disk"))
    for measure in (sp.ablation_effect, sp.effect_estimate):
        expected, effects = (
            torch.cat(list(measure(model, ROWS, progress=False).values())) for model in (in_memory, on_disk)
        )
        torch.testing.assert_close(effects, expected, rtol=1e-4, atol=1e-7)


def test_modules_that_an_ablation_does_not_affect_are_not_recomputed() -> None:
    """Counts the rows that pass through each MLP and each attention pattern, with four heads per block."""
    model, rows = tiny_bridge("llama"), [torch.arange(2, 12)] * 3
    seen: dict[str, int] = {}

    def counter(name: str) -> Any:
        def count(activation: torch.Tensor, hook: Any) -> None:
            seen[name] = seen.get(name, 0) + len(activation)

        return count

    names = [f"blocks.{layer}.{hook}" for layer in (0, 1) for hook in ("mlp.hook_post", "attn.hook_pattern")]
    with model.hooks(fwd_hooks=[(name, counter(name)) for name in names]):
        sp.ablation_effect(model, rows, progress=False)
    assert seen == {
        "blocks.0.attn.hook_pattern": 3,  # the pass without ablation
        "blocks.0.mlp.hook_post": 3 + 4 * 3,
        "blocks.1.attn.hook_pattern": 3 + 4 * 3,
        "blocks.1.mlp.hook_post": 3 + 8 * 3,
    }


def test_several_units_share_a_pass_up_to_batch_tokens() -> None:
    model, rows = tiny_bridge("opt"), [torch.arange(2, 12)] * 3
    sizes: list[int] = []
    handle = model.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].numel()))
    for batch_tokens in (30, 60, 4096):
        sp.ablation_effect(model, rows, batch_tokens=batch_tokens, progress=False)
    handle.remove()
    assert sizes == [30] + [30] * 8 + [30] + [60] * 4 + [30] + [120] * 2


def test_hooks_and_forward_methods_are_restored_after_an_exception() -> None:
    model = tiny_bridge("gpt2")
    hooks, values = count_hooks(model), model.state_dict()

    def broken() -> Iterator[Any]:
        yield from ROWS
        raise RuntimeError("inside")

    class Corpus(list[Any]):
        def __iter__(self) -> Iterator[Any]:
            return broken()

    for measure in (sp.ablation_effect, sp.effect_estimate):
        with pytest.raises(RuntimeError, match="inside"):
            measure(model, Corpus(), progress=False)

    def stop(activation: torch.Tensor, hook: Any) -> None:
        if len(activation) > len(ROWS):  # in the middle of a pass that reuses the recorded one
            raise RuntimeError("inside")

    last = sp.layout_of(model)[-1]
    with pytest.raises(RuntimeError, match="inside"), attached(model, [(last, stop)]):
        sp.ablation_effect(model, ROWS, progress=False)
    assert count_hooks(model) == hooks
    assert not any("forward" in vars(module) for module in model.modules())
    assert model.state_dict().keys() == values.keys()
    assert all(parameter.requires_grad for parameter in model.parameters())


def slope(family: str, hf: Any, rows: list[torch.Tensor], unit: Unit, rest: torch.Tensor | float) -> float:
    """Compute the derivative of plain transformers' loss with respect to the ablated amount, by central difference."""
    name, neurons = unit
    loss: dict[float, float] = {}
    for amount in (STEP, -STEP):

        def ablate(_: Any, inputs: tuple[torch.Tensor], amount: float = amount) -> tuple[torch.Tensor]:
            z = inputs[0].clone()
            z[..., neurons] += amount * (rest - z[..., neurons])
            return (z,)

        handle = output_modules(family, hf)[name].register_forward_pre_hook(ablate)
        with torch.no_grad():
            nats = [torch.nn.functional.cross_entropy(hf(r[None]).logits[0, :-1], r[1:], reduction="sum") for r in rows]
        handle.remove()
        loss[amount] = float(sum(nats)) / sum(len(row) - 1 for row in rows)
    return (loss[STEP] - loss[-STEP]) / (2 * STEP)


@pytest.mark.parametrize("mode", ["zero", "mean"])
@pytest.mark.parametrize("family", TINY)
def test_the_estimate_is_the_derivative_of_plain_transformers_loss(family: str, mode: Any) -> None:
    model, hf = bridge_of(tiny_hf(family).double(), f"tiny-{family}"), tiny_hf(family).double()
    stats = sp.collect(model, ROWS, progress=False) if mode == "mean" else None
    estimate = sp.effect_estimate(model, ROWS, mode=mode, reference=stats, batch_tokens=48, progress=False)
    for group in estimate.layout:
        values = estimate[group.name]
        for neuron in (int(values.argmax()), int(values.argmin())):
            rest = float(stats[group.name].mean[neuron]) if stats else 0.0
            expected = slope(family, hf, ROWS, (group.name, [neuron]), rest)
            assert float(values[neuron]) == pytest.approx(expected, rel=5e-3)
    if stats is None:
        heads = torch.cat(list(estimate.heads("sum").values()))
        name, neurons = heads_of(model)[int(heads.abs().argmax())]
        assert float(heads.abs().max()) == pytest.approx(abs(slope(family, hf, ROWS, (name, neurons), 0.0)), rel=5e-3)


def test_the_estimate_is_the_derivative_of_the_evaluated_loss(tiny: Tiny) -> None:
    """Includes `HookedTransformer`: the derivative with respect to a factor on one neuron, at 1."""
    group = sp.layout_of(tiny.model)[1]
    estimate = sp.effect_estimate(tiny.model, ROWS, progress=False)[group.name]
    neuron = int(estimate.abs().argmax())
    losses = []
    for factor in (0.99, 1.01):

        def scale(activation: torch.Tensor, hook: Any, factor: float = factor) -> torch.Tensor:
            scaled = activation.clone()
            scaled[..., neuron] *= factor
            return scaled

        with attached(tiny.model, [(group, scale)]):
            losses.append(sp.evaluate(tiny.model, ROWS, progress=False).loss)
    assert float(estimate[neuron]) == pytest.approx((losses[0] - losses[1]) / 0.02, rel=0.02, abs=1e-5)


def test_estimates_are_correct_for_masked_language_models_and_image_classifiers() -> None:
    """The estimate of the neuron with the largest one has the sign and roughly the size of its ablation effect."""
    generator = torch.Generator().manual_seed(1)
    images = [{"pixel_values": torch.randn(3, 16, 16, generator=generator), "labels": label} for label in range(3)]
    for family, corpus in (("bert", ROWS), ("vit", images)):
        model = tiny_bridge(family)
        estimate = sp.effect_estimate(model, corpus, seed=3, progress=False)
        for name, values in estimate.items():
            top = int(values.abs().argmax())
            assert float(values[top]) == pytest.approx(float(loss_increases(model, corpus, [(name, [top])])), rel=0.35)


def test_the_estimate_changes_no_parameter_and_no_gradient() -> None:
    model = tiny_bridge("llama").train()
    frozen, with_gradient = model.blocks[0].ln1.weight, next(model.parameters())
    frozen.requires_grad_(False)
    with_gradient.grad = torch.ones_like(with_gradient)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    with torch.no_grad():
        sp.effect_estimate(model, ROWS, progress=False)
        assert not torch.is_grad_enabled()
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert not all(flags)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters() if parameter is not with_gradient)
    assert torch.equal(with_gradient.grad, torch.ones_like(with_gradient))


def test_the_estimate_ranks_the_neurons_of_the_bundled_model(demo: Any) -> None:
    held_out = sp.load_corpus("code", demo, tokens=500, split="evaluate", offline=True)
    estimate = sp.effect_estimate(demo, held_out, progress=False)
    chosen = {f"blocks.{layer}.mlp.hook_post": range(0, 768, 128) for layer in range(4)}
    mask = sp.NeuronMask.from_neurons(sp.layout_of(demo), chosen)
    effects = sp.ablation_effect(demo, held_out, unit="neuron", neurons=mask, progress=False)
    estimated, measured = (torch.cat([values[name][mask[name]] for name in mask]) for values in (estimate, effects))
    correlation: Any = spearmanr(estimated, measured)[0]
    assert correlation > 0.6


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("unknown mode 'resample'", {"mode": "resample"}),
        ("reference=collect", {"mode": "mean"}),
        ("collected from the model 'other'", {"mode": "mean", "reference": "other"}),
    ],
)
def test_invalid_input_raises_an_error(opt: Any, message: str, options: dict[str, Any]) -> None:
    if "reference" in options:
        stats = sp.collect(opt, ROWS, progress=False)
        options = {**options, "reference": sp.ActivationStats(stats.layout, dict(stats), {"model": "other"})}
    for measure in (sp.ablation_effect, sp.effect_estimate):
        with pytest.raises(sp.SpLensError, match=message):
            measure(opt, ROWS, progress=False, **options)
