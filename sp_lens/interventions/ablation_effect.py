"""Definition 3 by ablation: how much the loss rises when a head, or a neuron, is ablated."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
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


class _Unit(NamedTuple):
    """What is ablated alone: the head, or the neuron, of that number in the group, and the hook that ablates it."""

    group: NeuronGroup
    number: int
    hook: Hook


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
    """The rise in mean loss when one unit alone is ablated (Definition 3, by ablation).

    Costs one forward pass over the corpus without ablation, and for each unit a pass from its block on: below it
    nothing changes, so that what the blocks return there is kept, for a batch at a time. Where a batch leaves room in
    `batch_tokens`, several units are ablated in one pass, each in rows of its own. `effect_estimate` is a first-order
    estimate, of every neuron at the price of about three passes.

    Args:
        model: a bridge or a `HookedTransformer`.
        corpus: held-out text, as `evaluate` takes it.
        unit: "head" (every attention head) or "neuron" (those that `neurons` marks).
        neurons: with "neuron", which ones to ablate, one at a time.
        mode: "zero" or "mean" (then `reference` has the means).
        reference: statistics with the means.
        seed: of what a masked language model is asked for, as in `evaluate`.
        batch_tokens: tokens in a batch, padding included.
        progress: show a bar.

    Returns:
        Nats per prediction; negative where the model predicts better without the unit. `HeadValues`, or
        `NeuronValues` in which neurons that were not ablated are NaN.

    Raises:
        SpLensError: for an unknown unit or mode, or for "neuron" without `neurons`.
    """
    check_choice("unit", unit, UNITS)
    check_choice("mode", mode, ("zero", "mean"))
    require_task(model)
    if mode == "mean":
        check_reference(model, reference)
    if unit == "head":
        layout = layout_of(model).select("attn")
        own = _heads(layout)
    elif neurons is None:
        raise SpLensError(
            'unit="neuron" ablates one neuron at a time: say which, neurons=scores.top(0.01, site="mlp").'
        )
    else:
        check_mask(model, neurons)
        layout = neurons.layout
        own = ((layout.group(name), index, [index]) for name in neurons for index in _marked(neurons[name]))
    units = []
    for group, number, indices in own:
        mask = NeuronMask.from_neurons(Layout((group,)), {group.name: indices})
        ((_, hook),) = ablation_hooks(mask, mode=mode, reference=reference)
        units.append(_Unit(group, number, hook))
    rises = _loss_rises(model, corpus, units, seed=seed, batch_tokens=batch_tokens, progress=progress)
    sizes = {group.name: group.heads if unit == "head" else group.width for group in layout}
    tensors = {name: torch.full((size,), torch.nan, dtype=torch.float64) for name, size in sizes.items()}
    for (group, number, _), rise in zip(units, rises, strict=True):
        tensors[group.name][number] = rise
    about = {"model": model_name(model), "metric": "ablation effect", "mode": mode}
    return HeadValues(layout, tensors, about) if unit == "head" else NeuronValues(layout, tensors, about)


def _heads(layout: Layout) -> Iterator[tuple[NeuronGroup, int, range]]:
    for group in layout:
        width = group.d_head
        for head in range(group.heads):
            yield group, head, range(head * width, (head + 1) * width)


def _marked(mask: torch.Tensor) -> list[int]:
    return mask.nonzero().flatten().tolist()


def _loss_rises(
    model: Any, corpus: Any, units: list[_Unit], *, seed: int, batch_tokens: int, progress: bool
) -> Float[torch.Tensor, " unit"]:
    """The rise in mean loss without each unit; the units of a group stand together."""
    corpus = reusable(corpus)
    sums = torch.zeros(len(units), dtype=torch.float64)
    asked = 0
    total = sum(1 for _ in batches(model, corpus, batch_tokens=batch_tokens)) * len(units)
    replay = Replay(model)
    with inference(model), tqdm(total=total, desc="ablate", unit=" units", disable=not progress) as bar:
        for batch in batches(model, corpus, batch_tokens=batch_tokens):
            with replay.recording():
                whole = prediction_losses(model, batch, seed).double()
            asked += len(whole)
            done = 0
            for some in _together(units, max(1, batch_tokens // batch.in_context.numel())):
                with replay.resuming(some[0].group, len(some)), attached(model, [(some[0].group, _each(some))]):
                    nats = prediction_losses(model, batch.repeated(len(some)), seed).double()
                sums[done : done + len(some)] += nats.view(len(some), -1).sum(dim=1).cpu() - whole.sum().cpu()
                done += len(some)
                bar.update(len(some))
    if not asked:
        raise nothing_to_predict()
    return sums / asked


def _together(units: list[_Unit], most: int) -> Iterator[list[_Unit]]:
    """The units in order, at most so many of one group at a time."""
    for _, of_group in groupby(units, key=lambda unit: unit.group):
        left = list(of_group)
        for start in range(0, len(left), most):
            yield left[start : start + most]


def _each(units: Sequence[_Unit]) -> Hook:
    """The hook that ablates one of the units in each copy of the rows."""

    def each(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        copies = activation.chunk(len(units))
        return torch.cat([unit.hook(copy, hook=hook) for unit, copy in zip(units, copies, strict=True)])

    return each
