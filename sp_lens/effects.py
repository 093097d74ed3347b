"""Definition 3 by ablation: how much the loss rises when a head, or a neuron, is ablated."""

from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch
from tqdm.auto import tqdm

from sp_lens.ablation import ablate, check_mask
from sp_lens.batches import batches
from sp_lens.collect import BATCH_TOKENS
from sp_lens.errors import SpLensError, check_choice
from sp_lens.evaluate import losses, nothing_to_predict, predictions, reusable
from sp_lens.models import inference, model_name
from sp_lens.neurons import HeadValues, NeuronMask, NeuronValues
from sp_lens.sites import Layout, layout_of
from sp_lens.stats import ActivationStats
from sp_lens.tasks import require_task

Unit = Literal["head", "neuron"]
UNITS: tuple[Unit, ...] = get_args(Unit)


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

    Costs one forward pass over the corpus for each unit, and one without ablation.

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
    if unit == "head":
        layout = layout_of(model).of("attn")
        units = list(_head_masks(layout))
    elif neurons is None:
        raise SpLensError(
            'unit="neuron" ablates one neuron at a time: say which, neurons=scores.top(0.01, site="mlp").'
        )
    else:
        check_mask(model, neurons)
        layout = neurons.layout
        units = list(_neuron_masks(neurons))
    tensors = {
        group.name: torch.full((group.heads if unit == "head" else group.width,), torch.nan, dtype=torch.float64)
        for group in layout
    }
    masks = [mask for _, _, mask in units]
    rises = _loss_rises(model, corpus, masks, mode, reference, seed=seed, batch_tokens=batch_tokens, progress=progress)
    for (name, index, _), rise in zip(units, rises, strict=True):
        tensors[name][index] = rise
    about = {"model": model_name(model), "metric": "ablation effect", "mode": mode}
    return HeadValues(layout, tensors, about) if unit == "head" else NeuronValues(layout, tensors, about)


def _head_masks(layout: Layout) -> Iterator[tuple[str, int, NeuronMask]]:
    for group in layout:
        width = group.width // group.heads
        for head in range(group.heads):
            own = {group.name: range(head * width, (head + 1) * width)}
            yield group.name, head, NeuronMask.of_neurons(layout, own)


def _neuron_masks(neurons: NeuronMask) -> Iterator[tuple[str, int, NeuronMask]]:
    for name in neurons:
        for index in neurons[name].nonzero().flatten().tolist():
            yield name, index, NeuronMask.of_neurons(neurons.layout, {name: [index]})


def _loss_rises(
    model: Any,
    corpus: Any,
    masks: list[NeuronMask],
    mode: Literal["zero", "mean"],
    reference: ActivationStats | None,
    *,
    seed: int,
    batch_tokens: int,
    progress: bool,
) -> list[float]:
    corpus = reusable(corpus)
    sums = [0.0] * len(masks)
    asked = 0
    total = sum(1 for _ in batches(model, corpus, batch_tokens=batch_tokens)) * len(masks)
    with inference(model), tqdm(total=total, desc="ablate", unit=" passes", disable=not progress) as bar:
        for batch in batches(model, corpus, batch_tokens=batch_tokens):

            def nats(batch=batch) -> torch.Tensor:
                return losses(*predictions(model, batch, seed)).double()

            whole = nats()
            asked += len(whole)
            for index, mask in enumerate(masks):
                with ablate(model, mask, mode=mode, reference=reference):
                    sums[index] += float(nats().sum() - whole.sum())
                bar.update()
    if not asked:
        raise nothing_to_predict()
    return [rise / asked for rise in sums]
