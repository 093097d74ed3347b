"""Ablation with hooks, folding and export agree with zeroed weights in plain transformers, and clean up after use."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy
import torch
import transformers
from factories import (
    Tiny,
    count_hooks,
    little_memory,
    plain_activations,
    random_mask,
    random_rows,
    tiny_bridge,
    tiny_hf,
    zero_rows,
)

import sp_lens as sp
from sp_lens.experiments.generation import sample_continuations
from sp_lens.interventions.ablation import _random_numbers, folded
from sp_lens.models.forward import Place

pytestmark = pytest.mark.model

TOKENS = torch.randint(2, 4096, (3, 20), generator=torch.Generator().manual_seed(1))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS)


def pruned_plain(tiny: Tiny, mask: sp.NeuronMask) -> torch.Tensor:
    """Compute the logits of plain transformers with the output weights of the masked neurons set to zero."""
    hf = tiny_hf(tiny.family)
    zero_rows(tiny.family, hf, mask)
    with torch.no_grad():
        return hf(TOKENS).logits


def test_hooks_folding_and_export_agree_with_zeroed_weights(tiny: Tiny, tmp_path: Path) -> None:
    mask = random_mask(tiny.model, 0.3)
    expected = pruned_plain(tiny, mask)
    assert (expected - logits(tiny.model)).abs().max() > 1e-2  # the mask has an effect
    with sp.ablate(tiny.model, mask):
        torch.testing.assert_close(logits(tiny.model), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        tiny.model.run_with_hooks(TOKENS, fwd_hooks=sp.ablation_hooks(mask)), expected, rtol=0, atol=1e-5
    )
    with tiny.model.hooks(fwd_hooks=sp.ablation_hooks(mask)):
        torch.testing.assert_close(logits(tiny.model), expected, rtol=0, atol=1e-5)
    with folded(tiny.model, mask):
        torch.testing.assert_close(logits(tiny.model), expected, rtol=0, atol=1e-5)
    folder = sp.export(tiny.model, mask, tmp_path / "pruned", hf_model=tiny.hf)
    reloaded = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        torch.testing.assert_close(reloaded(TOKENS).logits, expected, rtol=0, atol=1e-5)
    assert transformers.AutoTokenizer.from_pretrained(folder)("def f")["input_ids"]


def test_fold_mask_equals_zero_ablation() -> None:
    model = tiny_bridge("llama", seed=3)
    mask = random_mask(model, 0.2)
    with sp.ablate(model, mask):
        ablated = logits(model)
    sp.fold_mask(model, mask)
    torch.testing.assert_close(logits(model), ablated, rtol=0, atol=1e-5)


def test_folded_weights_are_restored_bit_for_bit_after_an_exception(tiny: Tiny) -> None:
    before = {name: value.clone() for name, value in tiny.model.state_dict().items()}
    with pytest.raises(RuntimeError, match="inside"), folded(tiny.model, random_mask(tiny.model, 0.4)):
        raise RuntimeError("inside")
    assert all(torch.equal(value, before[name]) for name, value in tiny.model.state_dict().items())


def test_hooks_are_removed_after_an_exception(tiny: Tiny) -> None:
    before, hooks = logits(tiny.model), count_hooks(tiny.model)
    with pytest.raises(RuntimeError, match="inside"), sp.ablate(tiny.model, random_mask(tiny.model, 0.5)):
        raise RuntimeError("inside")
    assert count_hooks(tiny.model) == hooks
    assert torch.equal(logits(tiny.model), before)


def test_hooks_and_calls_of_the_user_work_during_an_ablation(tiny: Tiny) -> None:
    """A user's hook stays attached, `run_with_cache` works inside the context, and reset_hooks() raises no error."""
    mask = random_mask(tiny.model, 0.3)
    seen: list[int] = []
    point = tiny.model.blocks[0].attn.hook_z
    point.add_hook(lambda activation, hook: seen.append(1))
    with sp.ablate(tiny.model, mask):
        first = logits(tiny.model)
        tiny.model.run_with_cache(TOKENS)
        assert torch.equal(logits(tiny.model), first)
        tiny.model.reset_hooks()
    assert len(seen) == 3
    point.remove_hooks()


def test_nested_ablations_are_the_ablation_of_the_union(opt: Any) -> None:
    first, second = random_mask(opt, 0.2, seed=1), random_mask(opt, 0.2, seed=2)
    with sp.ablate(opt, first | second):
        expected = logits(opt)
    with sp.ablate(opt, first), sp.ablate(opt, second):
        assert torch.equal(logits(opt), expected)


def test_mean_ablation_replaces_activations_by_their_means(tiny: Tiny) -> None:
    rows = random_rows(6)
    means = {name: z.mean(0) for name, z in plain_activations(tiny.family, tiny.hf, rows).items()}
    mask = random_mask(tiny.model, 0.3).select("attn")
    stats = sp.collect(tiny.model, rows, progress=False)
    _, original = tiny.model.run_with_cache(TOKENS)
    with sp.ablate(tiny.model, mask, mode="mean", reference=stats):
        _, cache = tiny.model.run_with_cache(TOKENS)
    name = "blocks.0.attn.hook_z"
    marked = mask[name]
    flat, before = cache[name].flatten(2), original[name].flatten(2)
    torch.testing.assert_close(flat[..., marked], means[name][marked].float().expand_as(flat[..., marked]))
    assert torch.equal(flat[..., ~marked], before[..., ~marked])


def test_resampling_takes_all_neurons_from_one_token_of_the_corpus(tiny: Tiny) -> None:
    rows = random_rows(6)
    activations = plain_activations(tiny.family, tiny.hf, rows)
    mask = random_mask(tiny.model, 0.3).select("mlp")
    sample = sp.sample_activations(tiny.model, rows, mask, tokens=32)
    name = "blocks.0.mlp.hook_post"
    marked = mask[name]
    assert sample.values[name].shape == (32, int(marked.sum()))

    def run(seed: int) -> Any:
        with sp.ablate(tiny.model, mask, mode="resample", reference=sample, seed=seed):
            return tiny.model.run_with_cache(TOKENS)[1][name]

    resampled = run(0)[..., marked].flatten(0, 1).double()
    distance = torch.cdist(resampled, activations[name][:, marked]).amin(dim=1)
    assert distance.max() < 1e-4  # each row is what the neurons computed together at one token of the corpus
    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))


def test_resampling_does_not_depend_on_batches_or_earlier_calls(tiny: Tiny) -> None:
    rows, everything = random_rows(12), random_mask(tiny.model, 1)
    samples = {n: sp.sample_activations(tiny.model, rows, everything, tokens=32, batch_tokens=n) for n in (37, 4096)}

    def loss(rows: list[torch.Tensor], tokens: int = 4096) -> float:
        with sp.ablate(tiny.model, everything, mode="resample", reference=samples[37 if tokens == 37 else 4096]):
            return sp.evaluate(tiny.model, rows, batch_tokens=tokens, progress=False).loss

    expected = loss(rows)
    for tokens in (1, 37):
        assert loss(rows, tokens) == pytest.approx(expected, abs=1e-5)
    with little_memory(tiny.model, 3):
        assert loss(rows) == pytest.approx(expected, abs=1e-5)
    assert loss(rows[::-1]) != pytest.approx(expected, abs=1e-3)  # other row numbers, other tokens
    mask = random_mask(tiny.model, 0.5)
    with sp.ablate(tiny.model, mask, mode="resample", reference=sp.sample_activations(tiny.model, rows, mask)):
        first, second = logits(tiny.model), logits(tiny.model)
        assert torch.equal(first, second)
        # The draws of a row do not depend on other rows, and those of a position not on later positions.
        torch.testing.assert_close(tiny.model(TOKENS[:2, :9]), first[:2, :9], rtol=0, atol=1e-4)


def test_windows_and_continuations_are_resampled_independently_of_the_batch_size(opt: Any) -> None:
    mask = random_mask(opt, 0.9)
    text = " ".join(f"word{number}" for number in range(60))
    with sp.ablate(opt, mask, mode="resample", reference=sp.sample_activations(opt, random_rows(6), mask)):
        losses = [
            sp.sliding_perplexity(opt, text, window=16, batch_tokens=tokens, progress=False).loss
            for tokens in (16, 4096)
        ]
        options: dict[str, Any] = {"tokens": 6, "temperature": 1.0, "seed": 0, "progress": False}
        texts = [sample_continuations(opt, "def f", continuations=5, batch=batch, **options) for batch in (1, 5)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert texts[0] == texts[1]


def test_random_tokens_are_independent_and_uniform() -> None:
    def draw(seed: int = 0, name: str = "blocks.0.mlp.hook_post", start: int = 0) -> np.ndarray:
        return (_random_numbers(seed, name, Place(range(200), start), 300) % 64).numpy()

    numbers = draw()
    assert scipy.stats.chisquare(np.bincount(numbers.ravel(), minlength=64)).pvalue > 0.01
    shifted = [numbers[1:], numbers[:, 1:], draw(seed=1), draw(name="blocks.1.mlp.hook_post")]
    for other in shifted:  # equal as often as by chance, which is once in 64
        share = (numbers[: other.shape[0], : other.shape[1]] == other).mean()
        assert abs(share - 1 / 64) < 4 * math.sqrt(1 / 64 / other.size)
    np.testing.assert_array_equal(draw(start=5)[:, :-5], numbers[:, 5:])  # the same with earlier positions in a cache


def test_a_sample_larger_than_the_corpus_contains_every_token_once(opt: Any) -> None:
    rows = random_rows(8)
    mask = random_mask(opt, 0.3).select("mlp")
    sample = sp.sample_activations(opt, rows, mask, tokens=10_000, batch_tokens=30)
    name = "blocks.1.mlp.hook_post"
    expected = plain_activations("opt", tiny_hf("opt"), rows)[name][:, mask[name]]
    torch.testing.assert_close(sample.values[name].double().sum(0), expected.sum(0), rtol=1e-4, atol=1e-5)
    assert len(sample.values[name]) == sum(len(row) - 1 for row in rows)


def cross_entropy(hf: Any, rows: list[torch.Tensor]) -> float:
    with torch.no_grad():
        nats = [
            torch.nn.functional.cross_entropy(hf(r[None]).logits[0, :-1].double(), r[1:], reduction="sum") for r in rows
        ]
    return float(sum(nats)) / sum(len(row) - 1 for row in rows)


def test_the_effect_of_a_head_is_the_increase_of_plain_transformers_loss(tiny: Tiny) -> None:
    rows = random_rows(5)
    effects = sp.ablation_effect(tiny.model, rows, progress=False)
    base = cross_entropy(tiny.hf, rows)
    for layer, head in [(0, 0), (0, 3), (1, 2)]:
        hf = tiny_hf(tiny.family)
        name = f"blocks.{layer}.attn.hook_z"
        neurons = {name: range(8 * head, 8 * head + 8)}
        zero_rows(tiny.family, hf, sp.NeuronMask.from_neurons(sp.layout_of(tiny.model), neurons))
        assert effects[name][head].item() == pytest.approx(cross_entropy(hf, rows) - base, abs=2e-6)
    assert effects.stack().shape == (2, 4)


def test_the_effect_of_a_neuron_is_the_increase_of_plain_transformers_loss(opt: Any) -> None:
    rows = random_rows(4)
    chosen = sp.NeuronMask.from_neurons(sp.layout_of(opt), {"blocks.1.mlp.hook_post": [5, 17]})
    effects = sp.ablation_effect(opt, rows, unit="neuron", neurons=chosen, progress=False)
    hf = tiny_hf("opt")
    zero_rows("opt", hf, sp.NeuronMask.from_neurons(sp.layout_of(opt), {"blocks.1.mlp.hook_post": [17]}))
    expected = cross_entropy(hf, rows) - cross_entropy(tiny_hf("opt"), rows)
    assert effects["blocks.1.mlp.hook_post"][17].item() == pytest.approx(expected, abs=2e-6)
    assert int(torch.cat(list(effects.values())).isfinite().sum()) == 2


BAD: list[tuple[str, Callable[[Any], Any]]] = [
    ("unknown mode 'noise'", lambda m: sp.ablation_hooks(random_mask(m, 0.1), mode="noise")),  # type: ignore[arg-type]
    ("reference=collect", lambda m: sp.ablation_hooks(random_mask(m, 0.1), mode="mean")),
    ("reference=sample_activations", lambda m: sp.ablation_hooks(random_mask(m, 0.1), mode="resample")),
    ("unknown unit", lambda m: sp.ablation_effect(m, random_rows(1), unit="layer")),  # type: ignore[arg-type]
    ("one neuron at a time", lambda m: sp.ablation_effect(m, random_rows(1), unit="neuron")),
    ("of another model", lambda m: sp.fold_mask(m, random_mask(tiny_bridge("gpt2"), 0.1))),
]


@pytest.mark.parametrize(("message", "call"), BAD, ids=[message for message, _ in BAD])
def test_invalid_input_raises_an_error(opt: Any, message: str, call: Callable[[Any], Any]) -> None:
    with pytest.raises(sp.SpLensError, match=message):
        call(opt)


def test_a_mask_made_for_another_model_of_the_same_shape_raises_an_error(opt: Any) -> None:
    mask = random_mask(opt, 0.1)
    other = sp.NeuronMask(mask.layout, mask.tensors, {"model": "opt-125m"})
    with (
        pytest.raises(sp.SpLensError, match="made for the model 'opt-125m', not for 'tiny-opt'"),
        sp.ablate(opt, other),
    ):
        pass
    with sp.ablate(opt, sp.NeuronMask(other.layout, other.tensors)):  # the workaround that the message names
        logits(opt)
