"""Remove pruned feed-forward neurons from the weight matrices, which makes the model smaller and faster.

- `compact` removes them permanently.
- `compacted` removes them temporarily and gives all layers the same width, for `export(..., compact=True)`.
- `pruned` ablates a mask temporarily and computes narrower layers where that saves time, for `prune`.

Attention neurons are zeroed and not removed: all heads have the same size, and with grouped-query attention several
heads share their values.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import torch

from sp_lens.errors import SpLensError
from sp_lens.interventions.ablation import ablate, fold_mask, folded
from sp_lens.models.exclusive import exclusive
from sp_lens.models.forward import inference, input_device, random_inputs
from sp_lens.models.hooks import attached, check_mask, kind_of, layout_of
from sp_lens.models.mlp_weights import Cut, matrices_of
from sp_lens.neurons.layout import Layout
from sp_lens.neurons.mask import NeuronMask
from sp_lens.statistics.activation_stats import ActivationStats

logger = logging.getLogger(__name__)

# Widths are rounded up to a multiple of this: GPUs use tensor cores for half precision if rows are aligned to 16 bytes.
MULTIPLE = 8
# `pruned` narrows a layer only if it loses at least this many neurons. Otherwise the product takes as long as before.
MIN_REMOVED = 64


def compact(model: Any, mask: NeuronMask) -> None:
    """Remove the masked feed-forward neurons from the weights, permanently and in place. The model becomes faster.

    Rows of W_in (and W_gate), entries of their biases and columns of W_out are removed, and their memory is freed. The
    logits are, up to rounding, those of `fold_mask` and of zero ablation with hooks. Before the weights
    are changed permanently, a pass over random tokens checks that the remaining neurons still compute the same. Masked
    attention neurons are zeroed as by `fold_mask` and save no time, because heads must keep their size.

    Masks and statistics of the original model do not fit the compacted one. In a compacted layer, neuron `i` is the
    `i`-th neuron that the mask keeps. Up to seven zeroed neurons follow, because widths are rounded up to multiples of
    eight, which GPUs multiply fast. `model.cfg` and the transformers configuration have one width for all layers and
    still contain the original width. To save a compact model, call `export(..., compact=True)` on the original one.

    Args:
        model: A `TransformerBridge` or a `HookedTransformer`, which is modified.
        mask: The neurons to remove (True).

    Raises:
        SpLensError: If the mask belongs to another model; if weights are quantized, offloaded to disk or shared between
            layers; or if the neurons of an MLP depend on each other, for example through a norm between its
            projections.

    Example:
        >>> import sp_lens as sp
        >>> model = sp.load_model("demo")
        >>> mask = sp.NeuronMask.from_neurons(sp.layout_of(model), {"blocks.0.mlp.hook_post": range(500)})
        >>> sp.compact(model, mask)
        >>> [group.width for group in sp.layout_of(model).select("mlp")], tuple(model.blocks[0].mlp.W_in.shape)
        ([272, 768, 768, 768], (192, 272))
    """
    check_mask(model, mask)
    cuts = _cuts(model, mask, min_removed=1)
    with _narrowed(model, mask, cuts):
        pass  # raises an error if the cuts change what the remaining neurons compute
    fold_mask(model, _uncut(mask, cuts))
    for cut in cuts:
        cut.apply()


@contextmanager
def compacted(model: Any, mask: NeuronMask) -> Iterator[int]:
    """Context manager that cuts all feed-forward layers to the width of the one with the most remaining neurons.

    Yields:
        That width.

    Raises:
        SpLensError: As for `compact`, but for every feed-forward layer of the model, whether it is in the mask or not.
    """
    check_mask(model, mask)
    groups = [group for group in layout_of(model) if group.site == "mlp"]
    marked = {group: mask[group.name] if group.name in mask else torch.zeros(group.width).bool() for group in groups}
    width = max(map(_compact_width, marked.values()))
    cuts = [Cut(matrices, marked[matrices.group].cpu(), width) for matrices in matrices_of(model, groups)]
    with _narrowed(model, mask, cuts):
        pass  # as in `compact`
    parameters = [
        sliced for cut in cuts for sliced in (*cut.matrices, *(joined.whole for joined in cut.matrices.joined))
    ]
    original = [sliced.parameter for sliced in parameters]
    with folded(model, _uncut(mask, cuts)):
        try:
            for cut in cuts:
                cut.apply()
            yield width
        finally:
            for sliced, parameter in zip(parameters, original, strict=True):
                sliced.put(parameter)


@contextmanager
def pruned(model: Any, mask: NeuronMask) -> Iterator[Callable[[ActivationStats], ActivationStats]]:
    """Context manager that ablates a mask like `ablate`, but computes layers with many pruned neurons without them.

    The weights are not copied: kept neurons move to the front of each matrix, where they replace pruned ones (which are
    saved), and the model computes with views of this front part. On exit, all weights are restored bit for bit, also
    after an exception or Ctrl-C. If the weights cannot be cut, or the remaining neurons compute something else without
    the pruned ones on a few random tokens, the whole mask is ablated with hooks.

    Yields:
        A function that converts statistics collected inside the context manager to the layout of the whole model, in
        which pruned neurons are 0.

    Raises:
        SpLensError: If the mask belongs to another model.
    """
    check_mask(model, mask)
    layout = layout_of(model)
    cuts: list[Cut] = []
    with suppress(SpLensError):  # weights that cannot be cut
        cuts = _cuts(model, mask, min_removed=MIN_REMOVED)
    with ExitStack() as stack:
        if cuts:
            try:
                stack.enter_context(_narrowed(model, mask, cuts))
            except SpLensError as error:
                logger.warning("pruned neurons are ablated by hooks, which is slower: %s", error)
                cuts = []
        if not cuts:
            stack.enter_context(ablate(model, mask))
        yield partial(_in_whole_layout, layout=layout, cuts=cuts)


@contextmanager
def _narrowed(model: Any, mask: NeuronMask, cuts: list[Cut]) -> Iterator[None]:
    """Context manager that applies the cuts temporarily and ablates the rest of the mask with hooks.

    Raises:
        SpLensError: If the remaining neurons of the narrower layers compute something else than before.
    """
    block_inputs: dict[int, torch.Tensor] = {}
    with ablate(model, mask):
        expected = _activations(model, cuts, block_inputs)
    with exclusive(model), ExitStack() as stack:
        for cut in cuts:
            stack.enter_context(cut.in_force())
        stack.enter_context(ablate(model, _uncut(mask, cuts)))
        try:
            activations = _activations(model, cuts, block_inputs)
        except RuntimeError as error:  # for example, a user's hook or a norm of the original width
            raise SpLensError(f"{kind_of(model)} does not run with narrower layers: {error}") from error
        for cut in cuts:
            _require_same(cut, expected[cut.matrices.group.name], activations[cut.matrices.group.name])
        yield


def _activations(model: Any, cuts: list[Cut], block_inputs: dict[int, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Compute the activations of the layers to cut on a few random inputs, by hook name.

    The first call stores the input of each block in `block_inputs`, and later calls start each block from it. Rounding
    differences of one block are therefore not carried on to the next one, where they can be amplified (by whole nats in
    SmolLM2 in bfloat16).
    """
    activations: dict[str, torch.Tensor] = {}

    def restart(layer: int, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        return (block_inputs.setdefault(layer, inputs[0].clone()), *inputs[1:]) if inputs else None

    def keep(name: str, activation: torch.Tensor) -> None:
        activations[name] = activation

    with ExitStack() as stack:
        for layer, block in enumerate(model.blocks):
            handle = block.register_forward_pre_hook(lambda _, inputs, layer=layer: restart(layer, inputs))
            stack.callback(handle.remove)
        groups = [cut.matrices.group for cut in cuts]
        hooks = [(group, lambda activation, hook, name=group.name: keep(name, activation)) for group in groups]
        stack.enter_context(attached(model, hooks))
        stack.enter_context(inference(model))
        model(random_inputs(model, longest=16).to(input_device(model)), return_type="logits")
    return activations


def _require_same(cut: Cut, whole: torch.Tensor, narrow: torch.Tensor) -> None:
    """Raise SpLensError if the neurons of a narrower layer compute something else than in the whole layer."""
    expected = whole[..., cut.first.to(whole.device)].float()
    difference = (narrow[..., : len(cut.first)].float() - expected).abs()
    tolerance = max(1e-5, 4 * torch.finfo(whole.dtype).eps) * expected.abs().max() if expected.numel() else 0
    if not bool((difference <= tolerance).all()):
        raise SpLensError(
            f"the neurons at {cut.matrices.group.name} depend on each other and cannot be removed: without the pruned "
            f"ones, activations differ by up to {difference.max():.2g} (the largest is {expected.abs().max():.2g}). "
            "Ablation by hooks works (ablate, prune)."
        )


def _cuts(model: Any, mask: NeuronMask, *, min_removed: int) -> list[Cut]:
    """Return the cuts of the feed-forward layers of the mask that become narrower by at least `min_removed` neurons.

    Raises:
        SpLensError: If the weights of such a layer cannot be cut.
    """
    widths = {group: _compact_width(mask[group.name]) for group in mask.layout if group.site == "mlp"}
    groups = [group for group, width in widths.items() if group.width - width >= min_removed]
    return [
        Cut(matrices, mask[matrices.group.name].cpu(), widths[matrices.group])
        for matrices in matrices_of(model, groups)
    ]


def _compact_width(marked: torch.Tensor) -> int:
    """Return the number of unmarked neurons, rounded up to a multiple of `MULTIPLE` of at least one."""
    kept = int((~marked).sum())
    return min(len(marked), max(1, -(-kept // MULTIPLE)) * MULTIPLE)


def _uncut(mask: NeuronMask, cuts: list[Cut]) -> NeuronMask:
    """Return the part of the mask on the groups that are not cut."""
    cut_groups = {cut.matrices.group for cut in cuts}
    layout = Layout(tuple(group for group in mask.layout if group not in cut_groups))
    return NeuronMask(layout, {name: mask[name] for name in layout.names}, mask.about)


def _in_whole_layout(stats: ActivationStats, *, layout: Layout, cuts: list[Cut]) -> ActivationStats:
    """Convert statistics of narrower layers to the layout of the whole model, in which pruned neurons are 0."""
    moments = dict(stats)
    for cut in cuts:
        group = cut.matrices.group
        moments[group.name] = stats[group.name].among(cut.first, group.width)
    return ActivationStats(layout, moments, stats.about)
