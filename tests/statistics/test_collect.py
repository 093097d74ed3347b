"""Collect statistics from a model and compare them with activations of plain transformers."""

from typing import Any

import numpy as np
import pytest
import torch
from factories import Tiny, count_hooks, padded, plain_activations, random_mask, random_rows, tiny_bridge, tiny_hf
from hypothesis import given, settings
from hypothesis import strategies as st

import sp_lens as sp
from sp_lens.data.batching import text_batches
from sp_lens.models.forward import inference

pytestmark = pytest.mark.model

METRICS = {
    "freq": lambda z: (z > 0).double().mean(0),
    "abs": lambda z: z.abs().mean(0),
    "rms": lambda z: z.square().mean(0).sqrt(),
    "std": lambda z: (z - z.mean(0)).square().mean(0).sqrt(),
}


def collect(model: Any, corpus: Any, **options: Any) -> sp.ActivationStats:
    return sp.collect(model, corpus, progress=False, **options)


@pytest.mark.parametrize("batch_tokens", [1, 37, 4096])
def test_statistics_match_the_formulas_on_plain_transformers(tiny: Tiny, batch_tokens: int) -> None:
    rows = random_rows(12)
    stats = collect(tiny.model, rows, batch_tokens=batch_tokens)
    expected = plain_activations(tiny.family, tiny.hf, rows)
    assert set(stats) == set(expected)
    assert stats.count == sum(len(row) - 1 for row in rows)
    for metric, formula in METRICS.items():
        values = stats.importance(metric)  # type: ignore[arg-type]
        for name, z in expected.items():
            # The float32 forward passes differ by rounding (with or without padding), the reduction by 1e-6.
            torch.testing.assert_close(values[name], formula(z), rtol=1e-5, atol=1e-7)
    for name, z in expected.items():
        torch.testing.assert_close(stats[name].min, z.amin(0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(stats[name].max, z.amax(0), rtol=1e-5, atol=1e-6)
    for name, z in plain_activations(tiny.family, tiny.hf, rows, positions=slice(1)).items():
        torch.testing.assert_close(stats[name].uncounted_peak, z.abs().amax(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch_tokens", [50, 300])
def test_reduction_is_within_1e6_of_float64(tiny: Tiny, batch_tokens: int) -> None:
    """Compare with the formulas on the activations of the same padded batches, kept in memory."""
    rows = random_rows(40)
    stats = collect(tiny.model, rows, batch_tokens=batch_tokens)
    kept: dict[str, list[torch.Tensor]] = {name: [] for name in stats}
    with inference(tiny.model):
        for batch in text_batches(tiny.model, rows, batch_tokens=batch_tokens):
            options = {"attention_mask": batch.attention_mask, "names_filter": list(kept)}
            _, cache = tiny.model.run_with_cache(batch.tokens, **options)
            for name, parts in kept.items():
                parts.append(cache[name].flatten(2)[batch.counted & (torch.arange(batch.counted.shape[1]) > 0)])
    for name, parts in kept.items():
        z = torch.cat(parts).double()
        for metric, formula in METRICS.items():
            torch.testing.assert_close(stats.importance(metric)[name], formula(z), rtol=1e-6, atol=0)  # type: ignore[arg-type]


def test_activations_of_a_float64_model_are_reduced_in_float64() -> None:
    model, hf = tiny_bridge("opt").to(torch.float64), tiny_hf("opt").to(torch.float64)
    # Values of 1e6 that vary by 1e-3 are all equal in float32.
    for projection in hf.model.decoder.layers[0].fc1, model.original_model.model.decoder.layers[0].fc1:
        with torch.no_grad():
            projection.weight.mul_(1e-3)
            projection.bias.add_(1e6)
    rows, name = random_rows(12), "blocks.0.mlp.hook_post"
    stats, z = collect(model, rows, batch_tokens=100), plain_activations("opt", hf, rows)[name]
    for metric, formula in METRICS.items():
        torch.testing.assert_close(stats.importance(metric)[name], formula(z), rtol=1e-5, atol=0)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1e36, 1e38])
def test_a_sum_that_overflows_raises_an_error(size: float) -> None:
    model = tiny_bridge("opt")
    model.blocks[1].attn.hook_z.add_hook(lambda z, hook: z.sign() * size, is_permanent=True)
    with pytest.raises(sp.SpLensError, match="infinite activation at site 'attn', layer 1, batch 0, or so"):
        collect(model, random_rows(100))


def test_a_cache_is_reduced_by_the_same_formulas(tiny: Tiny) -> None:
    tokens = torch.stack([row[:8] for row in random_rows(40) if len(row) >= 8])
    _, cache = tiny.model.run_with_cache(tokens)
    for metric, formula in METRICS.items():
        for name, values in sp.ActivationStats.from_cache(cache).importance(metric).items():  # type: ignore[arg-type]
            torch.testing.assert_close(
                values, formula(cache[name].reshape(-1, len(values)).double()), rtol=1e-6, atol=0
            )


@settings(max_examples=8, deadline=None)
@given(batch_tokens=st.integers(1, 200), seed=st.integers(0, 3))
def test_statistics_do_not_depend_on_batches_and_order(opt: Any, batch_tokens: int, seed: int) -> None:
    rows = random_rows(10, seed=seed)
    whole = collect(opt, rows).frame()
    other = collect(opt, rows[::-1], batch_tokens=batch_tokens).frame()
    np.testing.assert_allclose(other.iloc[:, 4:], whole.iloc[:, 4:], rtol=1e-5, atol=1e-6)


def test_merged_statistics_of_parts_equal_those_of_the_whole(opt: Any) -> None:
    rows = random_rows(12)
    merged = collect(opt, rows[:5]).merge(collect(opt, rows[5:]))
    np.testing.assert_allclose(merged.frame().iloc[:, 4:], collect(opt, rows).frame().iloc[:, 4:], rtol=1e-5, atol=1e-6)
    assert len(merged.about["corpora"]) == 2


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_special_tokens_do_not_count(tiny: Tiny, side: str) -> None:
    """The padding id is also BOS and EOS. The statistics are those of the rows without padding."""
    rows = [torch.cat([torch.tensor([1]), row]) for row in random_rows(6)]
    stats = collect(tiny.model, [padded(rows, side, pad_id=1)])
    assert stats.count == sum(len(row) - 2 for row in rows)
    alone = plain_activations(tiny.family, tiny.hf, rows)
    keep = torch.cat([torch.arange(len(row) - 1) > 0 for row in rows])
    for name, values in stats.importance("abs").items():
        torch.testing.assert_close(values, alone[name][keep].abs().mean(0), rtol=1e-5, atol=1e-7)


def test_histograms_match_numpy(opt: Any) -> None:
    tokens = torch.stack([row[:8] for row in random_rows(40) if len(row) >= 8])
    first = collect(opt, tokens)
    edges = first.edges("attn", bins=20)
    chosen = sp.NeuronMask.from_neurons(first.layout, {"blocks.1.attn.hook_z": [3, 30]})
    stats = collect(opt, tokens, edges=edges, neurons=chosen)
    assert stats["blocks.0.attn.hook_z"].histogram is None
    histogram = stats["blocks.1.attn.hook_z"].histogram
    assert histogram is not None
    _, cache = opt.run_with_cache(tokens, return_type=None)
    z = cache["blocks.1.attn.hook_z"][:, 1:].reshape(-1, 32)[:, [3, 30]].numpy()
    for row, counts in enumerate(histogram.counts):
        np.testing.assert_array_equal(counts, np.histogram(z[:, row], bins=edges.numpy())[0])
    frame = stats.histogram_frame("attn", 1)
    area = (frame["density"] * (frame["right"] - frame["left"])).groupby(frame["neuron"]).sum()
    np.testing.assert_allclose(area, 1)  # no activation is outside the edges


def test_active_ablations_apply(tiny: Tiny) -> None:
    mask = random_mask(tiny.model, 0.3)
    rows = random_rows(4)
    with sp.ablate(tiny.model, mask):
        stats = collect(tiny.model, rows)
    for name, values in stats.importance("rms").items():
        assert (values[mask[name]] == 0).all()
        assert (values[~mask[name]] > 0).double().mean() > 0.9  # a ReLU may never fire


def test_the_unembedding_is_not_computed(tiny: Tiny) -> None:
    collect(tiny.model, random_rows(1))  # verifies the model once, with its unembedding
    calls = []
    handle = tiny.model.unembed.register_forward_hook(lambda *_: calls.append(1))
    collect(tiny.model, random_rows(3))
    assert calls == []
    tiny.model(random_rows(1)[0][None])
    assert calls == [1]
    handle.remove()


def test_hooks_are_removed_and_those_of_the_user_are_kept(tiny: Tiny) -> None:
    point = tiny.model.blocks[0].mlp.hook_post
    point.add_hook(lambda activation, hook: None)
    before = count_hooks(tiny.model)
    collect(tiny.model, random_rows(2))
    assert count_hooks(tiny.model) == before > 0
    point.remove_hooks()


def test_the_error_for_nan_names_site_layer_and_batch() -> None:
    model = tiny_bridge("opt", seed=5)
    hooks = count_hooks(model)
    with torch.no_grad():
        model.blocks[1].mlp.W_in[:, 7] = torch.nan
    with pytest.raises(sp.SpLensError, match=r"site 'mlp', layer 1, batch 0"):
        collect(model, random_rows(3))
    assert count_hooks(model) == hooks


def test_a_mixture_of_experts_is_refused() -> None:
    with pytest.raises(sp.SpLensError, match="mixture of experts"):
        collect(tiny_bridge("mixtral"), random_rows(1))


def test_a_cache_without_batch_axis_and_a_saved_file_give_the_same_statistics(opt: Any, tmp_path: Any) -> None:
    row = random_rows(1, longest=30)[0]
    _, cache = opt.run_with_cache(row[None])
    counted = torch.arange(len(row)) > 0
    stats = sp.ActivationStats.from_cache(cache.remove_batch_dim(), counted=counted)
    np.testing.assert_allclose(stats.frame().iloc[:, 4:], collect(opt, [row]).frame().iloc[:, 4:], rtol=1e-5, atol=1e-7)
    collected = collect(opt, [row], edges={"mlp": torch.linspace(0, 1, 5)})
    collected.save(tmp_path / "stats.safetensors")
    loaded = sp.ActivationStats.load(tmp_path / "stats.safetensors")
    assert loaded.frame().equals(collected.frame())
    assert loaded.histogram_frame("mlp", 0).equals(collected.histogram_frame("mlp", 0))
    assert loaded.about == collected.about


def test_dropout_is_off_while_collecting_and_the_training_mode_is_restored() -> None:
    model = tiny_bridge("gpt2", seed=1)  # GPT-2's configuration has dropout
    model.train()
    rows = random_rows(3)
    first, second = collect(model, rows).frame(), collect(model, rows).frame()
    assert first.equals(second)
    assert model.training
    model.blocks[1].eval()  # each module keeps the mode that its user gave it
    modes = [module.training for module in (*model.modules(), *model.original_model.modules())]
    assert collect(model, rows).frame().equals(first)
    assert [module.training for module in (*model.modules(), *model.original_model.modules())] == modes


def test_sinks_are_the_neurons_that_are_extreme_at_uncounted_tokens() -> None:
    """A neuron that is made to fire only at BOS is found, also after merging with a corpus without BOS."""
    model = tiny_bridge("opt")
    rows = [torch.cat([torch.tensor([1]), row]) for row in random_rows(8)]
    name = "blocks.1.mlp.hook_post"
    quiet = collect(model, rows)
    planted = sp.NeuronMask.from_neurons(quiet.layout, {name: [7]})

    def fire_on_bos(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        activation = activation.clone()
        activation[..., 7] = -0.1
        activation[:, 0, 7] = 30.0
        return activation

    model.add_hook(name, fire_on_bos)
    stats = collect(model, rows)
    assert quiet.sinks().count() == 0
    assert stats.sinks() == planted
    peaks = stats.frame().query("site == 'mlp' and layer == 1")[["min", "max"]].abs().max(axis=1)
    large = 0.1 + sorted(peaks)[len(peaks) // 2 - 1]  # the lower of the two middle values, as in torch.median
    assert stats.sinks(ratio=0.99 * 30 / large) == planted
    assert stats.sinks(ratio=1.01 * 30 / large).count() == 0
    model.reset_hooks()
    assert stats.merge(collect(model, random_rows(2))).sinks(ratio=5) == planted
    with pytest.raises(sp.SpLensError, match="above 0"):
        stats.sinks(ratio=0)
