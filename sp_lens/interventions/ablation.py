"""Mask -> hooks, mask -> weights."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float

from sp_lens.data.batching import batches
from sp_lens.errors import SpLensError, check_choice
from sp_lens.models.forward import forward, inference
from sp_lens.models.hooks import attached, check_mask, model_name, output_weight
from sp_lens.neurons.layout import NeuronGroup
from sp_lens.neurons.mask import NeuronMask
from sp_lens.statistics.activation_stats import ActivationStats
from sp_lens.typing import BATCH_TOKENS, MODES, Mode

Hook = Callable[..., torch.Tensor]


@dataclass(frozen=True, eq=False)
class ActivationSample:
    """Activations of some neurons at randomly chosen tokens of a corpus: what "resample" puts in.

    Attributes:
        values: `{hook name: Float[" token chosen"]}`: of the neurons that `mask` marks, in order.
        mask: the neurons.
        about: the model; plain values.
    """

    values: Mapping[str, Float[torch.Tensor, "token chosen"]]
    mask: NeuronMask
    about: Mapping[str, Any]


def sample_activations(
    model: Any, corpus: Any, mask: NeuronMask, *, tokens: int = 1024, seed: int = 0, batch_tokens: int = BATCH_TOKENS
) -> ActivationSample:
    """Activations of the masked neurons at `tokens` random counted tokens of a corpus, for `mode="resample"`.

    Takes a uniform sample in one pass, whatever the length of the corpus (keeping the `tokens` smallest of
    one random number a token), so memory does not grow with it.
    """
    check_mask(model, mask)
    if tokens < 1:
        raise SpLensError(f"tokens={tokens}: expected a sample of at least one.")
    groups = [group for group in mask.layout if mask[group.name].any()]
    generator = torch.Generator().manual_seed(seed)
    keys = torch.empty(0)
    kept: dict[str, torch.Tensor] = {}
    with inference(model):
        for batch in batches(model, corpus, batch_tokens=batch_tokens):
            seen: dict[str, torch.Tensor] = {}
            hooks = [(group, _recorder(group, mask[group.name], batch.in_context, seen)) for group in groups]
            with attached(model, hooks):
                forward(model, batch)
            keys = torch.cat([keys, torch.rand(int(batch.in_context.sum()), generator=generator)])
            order = keys.argsort()[:tokens]
            keys = keys[order]
            for name, values in seen.items():
                kept[name] = torch.cat([kept[name], values] if name in kept else [values])[order.to(values.device)]
    if not len(keys):
        raise SpLensError("no token of the corpus counts: none is real text with real text before it.")
    return ActivationSample(kept, mask, {"model": model_name(model)})


def ablation_hooks(
    mask: NeuronMask,
    *,
    mode: Mode = "zero",
    reference: ActivationStats | ActivationSample | None = None,
    seed: int = 0,
) -> list[tuple[str, Hook]]:
    """The ablation as the list of (hook name, function) that TransformerLens' own methods take.

    `model.run_with_hooks(tokens, fwd_hooks=ablation_hooks(mask))`, or `with model.hooks(fwd_hooks=...)`.

    Args:
        mask: True is ablated.
        mode: "zero"; "mean": each neuron's mean over a corpus; "resample": the activations at a random
            token of a corpus, drawn anew for each position, jointly for the neurons of a layer's site.
        reference: the statistics that have the means, or the sample to draw from (`sample_activations`).
        seed: of the drawing.

    Raises:
        SpLensError: for an unknown mode, or a reference that is missing or of other neurons.
    """
    return [(group.name, hook) for group, hook in _group_hooks(mask, mode, reference, seed)]


@contextmanager
def ablate(
    model: Any,
    mask: NeuronMask,
    *,
    mode: Mode = "zero",
    reference: ActivationStats | ActivationSample | None = None,
    seed: int = 0,
) -> Iterator[Any]:
    """Ablate the masked neurons for the length of a `with`; nothing is left behind, after an exception neither.

    Args:
        model: a bridge or a `HookedTransformer`; the `with` gives it back.
        mask: True is ablated.
        mode: "zero", "mean" or "resample", see `ablation_hooks`.
        reference: for "mean" and "resample".
        seed: for "resample".

    Raises:
        SpLensError: for a mask of another model, an unknown mode, or a missing reference.

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


def fold_mask(model: Any, mask: NeuronMask) -> None:
    """Prune for good: zero the masked neurons' rows of W_out and W_O, in place.

    The logits are those of zero ablation by hooks. `sp_lens.export` saves a pruned model and leaves this
    one as it was.

    Raises:
        SpLensError: for a mask of another model, and for weights that are quantised or on disk.
    """
    check_mask(model, mask)
    weights = [output_weight(model, group) for group in mask.layout]  # all or none: one may be refused
    with torch.no_grad():
        for group, weight in zip(mask.layout, weights, strict=True):
            weight[mask[group.name].to(weight.device)] = 0


@contextmanager
def folded(model: Any, mask: NeuronMask) -> Iterator[Any]:
    """The weights pruned for the length of a `with`; they come back bit by bit."""
    check_mask(model, mask)
    rows = [(output_weight(model, group), mask[group.name]) for group in mask.layout]
    with torch.no_grad():
        before = [weight[marked.to(weight.device)].clone() for weight, marked in rows]
    try:
        fold_mask(model, mask)
        yield model
    finally:
        with torch.no_grad():
            for (weight, marked), saved in zip(rows, before, strict=True):
                weight[marked.to(weight.device)] = saved


def check_reference(model: Any, reference: ActivationStats | ActivationSample | None) -> None:
    """Refuse a reference that was collected from another model, where its name is known."""
    made_for = reference.about.get("model") if reference is not None else None
    if made_for and made_for != model_name(model):
        raise SpLensError(
            f"the reference was collected from the model {made_for!r}, not from {model_name(model)!r}: its activations "
            "are not what these neurons do. Collect it again from this model."
        )


def _group_hooks(
    mask: NeuronMask, mode: Mode, reference: ActivationStats | ActivationSample | None, seed: int
) -> list[tuple[NeuronGroup, Hook]]:
    check_choice("mode", mode, MODES)
    generator = torch.Generator().manual_seed(seed)
    hooks = []
    for group in mask.layout:
        marked = mask[group.name]
        if not marked.any():
            continue
        if mode == "zero":
            hooks.append((group, _zero_hook(marked)))
        elif mode == "mean":
            if not isinstance(reference, ActivationStats):
                raise SpLensError('mode "mean" puts in the means of a corpus: reference=collect(model, corpus).')
            if reference.layout.group(group.name) != group:
                raise SpLensError(
                    f"the reference is of another model: it has {reference.layout.group(group.name).shape} at "
                    f"{group.name}, and the mask {group.shape}. Collect it again from this model."
                )
            hooks.append((group, _mean_hook(marked, reference[group.name].mean)))
        else:
            if not isinstance(reference, ActivationSample):
                raise SpLensError(
                    'mode "resample" draws from a sample: reference=sample_activations(model, corpus, mask).'
                )
            if group.name not in reference.values or not torch.equal(reference.mask[group.name], marked):
                raise SpLensError(f"the sample is of other neurons at {group.name}: sample_activations with this mask.")
            hooks.append((group, _resample_hook(marked, reference.values[group.name], generator)))
    return hooks


def _zero_hook(marked: torch.Tensor) -> Hook:
    def zero(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        return activation.masked_fill(_fit(marked, activation), 0)

    return zero


def _mean_hook(marked: torch.Tensor, means: torch.Tensor) -> Hook:
    def mean(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        return torch.where(_fit(marked, activation), _fit(means, activation).to(activation), activation)

    return mean


def _resample_hook(marked: torch.Tensor, sample: torch.Tensor, generator: torch.Generator) -> Hook:
    def resample(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        flat = activation.reshape(-1, len(marked)).clone()
        drawn = torch.randint(len(sample), (len(flat),), generator=generator)
        flat[:, marked.to(flat.device)] = sample[drawn.to(sample.device)].to(flat)
        return flat.view(activation.shape)

    return resample


def _fit(per_neuron: torch.Tensor, activation: torch.Tensor) -> torch.Tensor:
    """[neuron] -> [head d_head] where the activation has heads; on its device."""
    heads = activation.shape[2:]
    return per_neuron.to(activation.device).view(heads)


def _recorder(
    group: NeuronGroup, marked: torch.Tensor, counted: torch.Tensor, seen: dict[str, torch.Tensor]
) -> Callable[..., None]:
    def record(activation: torch.Tensor, hook: Any) -> None:
        flat = activation.reshape(-1, group.width)
        seen[group.name] = flat[counted.flatten().to(flat.device)][:, marked.to(flat.device)]

    return record
