"""Measure the effect of ablating each attention head or neuron on the loss (Definition 3, by ablation)."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from tqdm.auto import tqdm

from sp_lens.data.batching import batches, reusable
from sp_lens.errors import SpLensError, check_choice
from sp_lens.evaluation.predictions import nothing_to_predict, prediction_losses
from sp_lens.interventions.ablation import Hook, ablation_hooks, check_reference
from sp_lens.interventions.prefix_cache import Replay
from sp_lens.models.forward import inference
from sp_lens.models.hooks import attached, check_mask, layout_of, model_name
from sp_lens.models.task import require_task
from sp_lens.neurons.layout import Layout, NeuronGroup
from sp_lens.neurons.mask import NeuronMask
from sp_lens.neurons.values import HeadValues, NeuronValues
from sp_lens.statistics.activation_stats import ActivationStats
from sp_lens.typing import BATCH_TOKENS, UNITS, Unit


class _Units(NamedTuple):
    """The heads or neurons of one group whose effects are measured, and the hook that ablates each of them."""

    group: NeuronGroup
    indices: list[int]
    hooks: list[Hook]


def ablation_effect(
    model: Any,
    corpus: Any,
    *,
    unit: Unit = "head",
    neurons: NeuronMask | None = None,
    mode: Literal["zero", "mean"] = "zero",
    reference: ActivationStats | None = None,
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = True,
) -> HeadValues | NeuronValues:
    """Measure how much the mean loss increases when each attention head or neuron is ablated alone.

    This is the importance of a head by ablation (Definition 3 of arXiv 2403.01267).

    The cost is one forward pass over the corpus, plus one partial pass for every unit: the blocks below the unit are
    unaffected by its ablation, so their outputs are cached for one batch and reused. If a batch is smaller than
    `batch_tokens`, several units are ablated in one pass, each in its own copy of the rows. `effect_estimate`
    approximates the effect of every neuron for the cost of about three forward passes.

    Args:
        model: A `TransformerBridge` or a `HookedTransformer`.
        corpus: Held-out text or images, as `evaluate` takes them.
        unit: What to ablate at a time: "head" for every attention head, "neuron" for every neuron in `neurons`.
        neurons: Neurons to ablate one at a time. Required for unit="neuron".
        mode: Replacement of the activations: "zero", or "mean" for the mean over a corpus.
        reference: Statistics with the means, from `collect`. Required for mode="mean".
        seed: Seed of the choice of masked tokens for a masked language model, as in `evaluate`.
        batch_tokens: Number of tokens per batch, including padding.
        progress: Whether to show a progress bar.

    Returns:
        Increase of the mean loss in nats per prediction. It is negative if the model predicts better without the unit.
        `HeadValues` for heads; for neurons, `NeuronValues` that are NaN for neurons that were not ablated.

    Raises:
        SpLensError: If the unit or mode is unknown, `neurons` or `reference` is missing or belongs to another model,
            the model has no trained head, or the corpus contains nothing to predict.

    Example:
        >>> import sp_lens as sp
        >>> model = sp.load_model("demo")
        >>> ablation_effect(model, ["def f(x):"], progress=False).stack().shape
        torch.Size([4, 6])
    """
    check_choice("unit", unit, UNITS)
    check_choice("mode", mode, ("zero", "mean"))
    require_task(model)
    if mode == "mean":
        check_reference(model, reference)
    if unit == "head":
        layout = layout_of(model).select("attn")
        units = [_heads(group, mode, reference) for group in layout]
        sizes = {group.name: group.heads for group in layout}
    elif neurons is None:
        raise SpLensError(
            'unit="neuron" ablates one neuron at a time and needs a choice of neurons: pass '
            'neurons=scores.top(0.01, site="mlp").'
        )
    else:
        check_mask(model, neurons)
        layout = neurons.layout
        units = [_neurons(group, neurons, mode, reference) for group in layout]
        sizes = {group.name: group.width for group in layout}
    effects = _loss_increases(model, corpus, units, seed=seed, batch_tokens=batch_tokens, progress=progress)
    tensors = {name: torch.full((size,), torch.nan, dtype=torch.float64) for name, size in sizes.items()}
    for group, indices, _ in units:
        tensors[group.name][indices] = effects[group.name]
    about = {"model": model_name(model), "metric": "ablation effect", "mode": mode}
    return HeadValues(layout, tensors, about) if unit == "head" else NeuronValues(layout, tensors, about)


def _heads(group: NeuronGroup, mode: Any, reference: ActivationStats | None) -> _Units:
    slices = [range(head * group.d_head, (head + 1) * group.d_head) for head in range(group.heads)]
    return _Units(group, list(range(group.heads)), [_hook(group, neurons, mode, reference) for neurons in slices])


def _neurons(group: NeuronGroup, mask: NeuronMask, mode: Any, reference: ActivationStats | None) -> _Units:
    indices = mask[group.name].nonzero().flatten().tolist()
    return _Units(group, indices, [_hook(group, [index], mode, reference) for index in indices])


def _hook(group: NeuronGroup, neurons: Iterable[int], mode: Any, reference: ActivationStats | None) -> Hook:
    """Return the hook that ablates these neurons of the group."""
    mask = NeuronMask.from_neurons(Layout((group,)), {group.name: neurons})
    ((_, hook),) = ablation_hooks(mask, mode=mode, reference=reference)
    return hook


def _loss_increases(
    model: Any, corpus: Any, units: Sequence[_Units], *, seed: int, batch_tokens: int, progress: bool
) -> dict[str, torch.Tensor]:
    """Compute the increase of the mean loss for each unit, by hook name."""
    corpus = reusable(corpus)
    sums = {group.name: torch.zeros(len(indices), dtype=torch.float64) for group, indices, _ in units}
    predictions = 0
    passes = sum(1 for _ in batches(model, corpus, batch_tokens=batch_tokens)) * sum(len(u.indices) for u in units)
    replay = Replay(model)
    with inference(model), tqdm(total=passes, desc="ablate", unit=" units", disable=not progress) as bar:
        for batch in batches(model, corpus, batch_tokens=batch_tokens):
            with replay.recording():
                losses = prediction_losses(model, batch, seed).double()
            predictions += len(losses)
            copies = max(1, batch_tokens // batch.in_context.numel())
            for group, start, hooks in _passes(units, copies):
                count = len(hooks)
                with replay.resuming(group, count), attached(model, [(group, _one_hook_per_copy(hooks))]):
                    ablated = prediction_losses(model, batch.repeated(count), seed).double()
                increase = ablated.view(count, -1).sum(dim=1).cpu() - losses.sum().cpu()
                sums[group.name][start : start + count] += increase
                bar.update(count)
    if not predictions:
        raise nothing_to_predict()
    return {name: total / predictions for name, total in sums.items()}


def _passes(units: Iterable[_Units], copies: int) -> Iterator[tuple[NeuronGroup, int, list[Hook]]]:
    """Yield the hooks of up to `copies` units of one group at a time, with the group and the number of the first."""
    for group, _, hooks in units:
        for start in range(0, len(hooks), copies):
            yield group, start, hooks[start : start + copies]


def _one_hook_per_copy(hooks: Sequence[Hook]) -> Hook:
    """Return a hook for a batch of several copies of the same rows, which applies each of the hooks to one copy."""

    def hook_all(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        copies = activation.chunk(len(hooks))
        return torch.cat([function(copy, hook=hook) for function, copy in zip(hooks, copies, strict=True)])

    return hook_all
