"""Ablate neurons, either with hooks (temporary) or in the weights (folding).

- **Hooks** replace the activations during the forward pass and leave the weights unchanged. `ablate` is a context
  manager that attaches them; `ablation_hooks` returns them for TransformerLens' own methods. The replacement is zero,
  the mean over a corpus, or values sampled from a corpus.
- **Folding** zeroes the output weights of the neurons: their rows of `W_out` and `W_O`. `fold_mask` does so in place
  and permanently; `folded` is a context manager that restores the weights.

Zero ablation with hooks and folding give the same logits.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from sp_lens.errors import SpLensError, check_choice
from sp_lens.interventions.activation_sample import ActivationSample
from sp_lens.models.exclusive import exclusive
from sp_lens.models.forward import Place, place_of
from sp_lens.models.hooks import attached, check_mask, model_name, output_weight
from sp_lens.models.processed_weights import require_unfolded
from sp_lens.neurons.layout import NeuronGroup
from sp_lens.neurons.mask import NeuronMask
from sp_lens.statistics.activation_stats import ActivationStats
from sp_lens.typing import MODES, Mode

Hook = Callable[..., torch.Tensor]


@contextmanager
def ablate(
    model: Any,
    mask: NeuronMask,
    *,
    mode: Mode = "zero",
    reference: ActivationStats | ActivationSample | None = None,
    seed: int = 0,
) -> Iterator[Any]:
    """Context manager that ablates the masked neurons with hooks.

    All hooks are removed on exit, including after an exception. Hooks of the user stay attached, and ablations can be
    nested.

    Args:
        model: A `TransformerBridge` or a `HookedTransformer`. The `with` statement returns it.
        mask: The neurons to ablate (True).
        mode: Replacement of their activations: "zero"; "mean", the mean of each neuron over a corpus; or "resample",
            the activations at random tokens of a corpus. See `ablation_hooks`. The random token is determined by the
            seed, the hook point, the index of the row in the corpus, and the position in the row, so results do not
            depend on the batch size or on earlier calls.
        reference: Source of the replacement values: statistics from `collect` for "mean", a sample from
            `sample_activations` for "resample".
        seed: Seed of the random draw of "resample".

    Raises:
        SpLensError: If the mask or the reference belongs to another model, the mode is unknown, or the reference is
            missing.

    Example:
        >>> import sp_lens as sp
        >>> model = sp.load_model("demo")
        >>> mask = sp.NeuronMask.from_neurons(sp.layout_of(model), {"blocks.0.mlp.hook_post": range(100)})
        >>> with sp.ablate(model, mask):
        ...     _, cache = model.run_with_cache("def f(x):")
        >>> cache["blocks.0.mlp.hook_post"][..., :100].abs().max().item()
        0.0
    """
    check_mask(model, mask)
    if mode != "zero":
        check_reference(model, reference)
    with attached(model, _group_hooks(mask, mode, reference, seed)):
        yield model


def ablation_hooks(
    mask: NeuronMask,
    *,
    mode: Mode = "zero",
    reference: ActivationStats | ActivationSample | None = None,
    seed: int = 0,
) -> list[tuple[str, Hook]]:
    """Return the hooks of an ablation as (hook name, function) pairs, which TransformerLens' own methods take.

    Use them as `model.run_with_hooks(tokens, fwd_hooks=ablation_hooks(mask))` or
    `with model.hooks(fwd_hooks=ablation_hooks(mask)):`.

    Args:
        mask: The neurons to ablate (True).
        mode: Replacement of their activations: "zero"; "mean", the mean of each neuron over a corpus; or "resample",
            the activations at a random token of a corpus, drawn independently for each position and hook point, and
            jointly for all masked neurons of that hook point. In a forward pass of your own, the token is determined by
            the seed, the hook point, the index of the row in the input, and the position in the input.
        reference: Source of the replacement values: statistics from `collect` for "mean", a sample from
            `sample_activations` for "resample".
        seed: Seed of the random draw of "resample".

    Raises:
        SpLensError: If the mode is unknown, or the reference is missing or contains other neurons.
    """
    return [(group.name, hook) for group, hook in _group_hooks(mask, mode, reference, seed)]


def fold_mask(model: Any, mask: NeuronMask) -> None:
    """Prune a model permanently: set the output weights of the masked neurons (rows of W_out and W_O) to zero in place.

    The logits are those of zero ablation with hooks. To save a pruned model and leave the one in memory unchanged, use
    `export`.

    Args:
        model: A `TransformerBridge` or a `HookedTransformer`, which is modified.
        mask: The neurons to prune (True).

    Raises:
        SpLensError: If the mask belongs to another model, or the weights are quantized, offloaded to disk, or have
            folded value biases. No weight has been changed in that case.
    """
    check_mask(model, mask)
    require_unfolded(model, "folded")
    weights = [output_weight(model, group) for group in mask.layout]  # may raise, so before any weight is changed
    with exclusive(model), torch.no_grad():
        for group, weight in zip(mask.layout, weights, strict=True):
            weight[mask[group.name].to(weight.device)] = 0


@contextmanager
def folded(model: Any, mask: NeuronMask) -> Iterator[Any]:
    """Context manager that applies `fold_mask` and restores the original weights, bit for bit, on exit."""
    check_mask(model, mask)
    rows = [(output_weight(model, group), mask[group.name]) for group in mask.layout]
    with torch.no_grad():
        original = [weight[marked.to(weight.device)].clone() for weight, marked in rows]
    with exclusive(model):
        try:
            fold_mask(model, mask)
            yield model
        finally:
            with torch.no_grad():
                for (weight, marked), values in zip(rows, original, strict=True):
                    weight[marked.to(weight.device)] = values


def check_reference(model: Any, reference: ActivationStats | ActivationSample | None) -> None:
    """Raise SpLensError if the reference was collected from another model, as far as its name is known."""
    name = reference.about.get("model") if reference is not None else None
    if name and name != model_name(model):
        raise SpLensError(
            f"the reference was collected from the model {name!r}, but this model is {model_name(model)!r}: its "
            "activations differ. Collect the reference from this model."
        )


def reference_means(group: NeuronGroup, reference: Any) -> Float[torch.Tensor, " neuron"]:
    """Return the means of a group of neurons, for mean ablation.

    Raises:
        SpLensError: If the reference is not ActivationStats, or has no such group.
    """
    if not isinstance(reference, ActivationStats):
        raise SpLensError('mode "mean" needs the means over a corpus: pass reference=collect(model, corpus).')
    if reference.layout.group(group.name) != group:
        raise SpLensError(
            f"the reference is of another model: it has {reference.layout.group(group.name).shape} at {group.name}, "
            f"but {group.shape} was expected. Collect it from this model."
        )
    return reference[group.name].mean


def _group_hooks(
    mask: NeuronMask, mode: Mode, reference: ActivationStats | ActivationSample | None, seed: int
) -> list[tuple[NeuronGroup, Hook]]:
    check_choice("mode", mode, MODES)
    hooks = []
    for group in mask.layout:
        marked = mask[group.name]
        if not marked.any():
            continue
        match mode:
            case "zero":
                hook = _zero_hook(marked)
            case "mean":
                hook = _mean_hook(marked, reference_means(group, reference))
            case "resample":
                hook = _resample_hook(group, marked, _sampled_values(group, marked, reference), seed)
        hooks.append((group, hook))
    return hooks


def _sampled_values(
    group: NeuronGroup, marked: Bool[torch.Tensor, " neuron"], reference: Any
) -> Float[torch.Tensor, "token chosen"]:
    """Return the sample of the marked neurons of a group, for resample ablation."""
    if not isinstance(reference, ActivationSample):
        raise SpLensError(
            'mode "resample" needs a sample of activations: pass reference=sample_activations(model, corpus, mask).'
        )
    if group.name not in reference.values or not torch.equal(reference.mask[group.name], marked):
        raise SpLensError(
            f"the sample contains other neurons at {group.name} than the mask: call sample_activations with this mask."
        )
    return reference.values[group.name]


def _zero_hook(marked: Bool[torch.Tensor, " neuron"]) -> Hook:
    def zero(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        return activation.masked_fill(_in_shape_of(activation, marked), 0)

    return zero


def _mean_hook(marked: Bool[torch.Tensor, " neuron"], means: Float[torch.Tensor, " neuron"]) -> Hook:
    def mean(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        replacement = _in_shape_of(activation, means).to(activation)
        return torch.where(_in_shape_of(activation, marked), replacement, activation)

    return mean


def _resample_hook(
    group: NeuronGroup, marked: Bool[torch.Tensor, " neuron"], sample: Float[torch.Tensor, "token chosen"], seed: int
) -> Hook:
    def resample(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        flat = activation.reshape(-1, len(marked)).clone()
        tokens = _random_numbers(seed, group.name, place_of(activation), activation.shape[1]) % len(sample)
        flat[:, marked.to(flat.device)] = sample[tokens.flatten().to(sample.device)].to(flat)
        return flat.view(activation.shape)

    return resample


def _random_numbers(seed: int, name: str, place: Place, positions: int) -> Int[torch.Tensor, "row pos"]:
    """Return a random number below 2^63 for each row and position, as a function of these, the seed and the hook name.

    Each row has a SplitMix64 generator (Steele, Lea & Flood 2014), whose output at a position can be computed without
    those before it.
    """
    start = np.frombuffer(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], np.uint64)
    step = np.uint64(0x9E3779B97F4A7C15)
    rows = _mixed(start + np.array(place.rows, np.uint64) * step)
    numbers = _mixed(rows[:, None] + np.arange(place.start + 1, place.start + positions + 1, dtype=np.uint64) * step)
    return torch.from_numpy((numbers >> np.uint64(1)).astype(np.int64))


def _mixed(state: np.ndarray) -> np.ndarray:
    """Return the output function of SplitMix64 of states, modulo 2^64."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def _in_shape_of(activation: torch.Tensor, per_neuron: torch.Tensor) -> torch.Tensor:
    """Reshape [neuron] to [head d_head] if the activation has heads, and move it to the device of the activation."""
    return per_neuron.to(activation.device).view(activation.shape[2:])
