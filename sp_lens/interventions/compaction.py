"""Pruned neurons taken out of the weight matrices: the same predictions from fewer products.

Feed-forward neurons only. Attention neurons are zeroed and stay: heads are of one size, and with grouped queries
several of them share their values.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch

from sp_lens.errors import SpLensError
from sp_lens.interventions.ablation import ablate, fold_mask, folded
from sp_lens.models.forward import inference, input_device, random_inputs
from sp_lens.models.hooks import attached, check_mask, kind_of, layout_of
from sp_lens.models.mlp_weights import Cut, matrices_of
from sp_lens.neurons.layout import Layout
from sp_lens.neurons.mask import NeuronMask
from sp_lens.statistics.activation_stats import ActivationStats

logger = logging.getLogger(__name__)

# Widths are rounded up to this many neurons: GPUs multiply halves in tensor cores where rows are 16 bytes aligned.
MULTIPLE = 8
# So many neurons less and a narrower layer pays; below, the product takes no less time than before.
PAYS = 64


def compact(model: Any, mask: NeuronMask) -> None:
    """Take the masked feed-forward neurons out of the weights, in place and for good: the model gets faster.

    Rows of W_in (and W_gate), entries of their biases and columns of W_out are gone, and the memory with them.
    The logits are those of `fold_mask` and of zero ablation by hooks, to rounding: that the neurons that are left do
    what they did is looked at on a few random tokens before anything is changed. Masked attention neurons are zeroed
    as by `fold_mask`, and cost what they did: heads must keep their size.

    The model is one of other widths from then on, to which masks and statistics of the whole one do not fit. Neuron
    `i` of a layer is the `i`-th that the mask leaves there. Behind these up to seven zeroed ones stay, as widths are
    multiples of eight, which GPUs multiply fast. `cfg` and the configuration of transformers have one width for
    all layers, and still say the old one; to save such a model, `export(..., compact=True)` from the whole one.

    Raises:
        SpLensError: for a mask of another model; for weights that are quantised, on disk or shared by layers;
            and for an MLP whose neurons are not independent of each other, as with a norm between its projections.

    Example:
        >>> import sp_lens as sp
        >>> model = sp.load_model("demo")
        >>> mask = sp.NeuronMask.from_neurons(sp.layout_of(model), {"blocks.0.mlp.hook_post": range(500)})
        >>> sp.compact(model, mask)
        >>> [group.width for group in sp.layout_of(model).select("mlp")], tuple(model.blocks[0].mlp.W_in.shape)
        ([272, 768, 768, 768], (192, 272))
    """
    check_mask(model, mask)
    cuts = _cuts(model, mask, less=1)
    with _narrowed(model, mask, cuts):
        pass  # it was looked at
    fold_mask(model, _rest(mask, cuts))
    for cut in cuts:
        cut.apply()


@contextmanager
def compacted(model: Any, mask: NeuronMask) -> Iterator[int]:
    """All layers cut to one width, that of the one with most neurons left, for the length of a `with`; gives the width.

    Raises:
        SpLensError: as `compact`, for every feed-forward layer of the model, in the mask or not.
    """
    check_mask(model, mask)
    groups = [group for group in layout_of(model) if group.site == "mlp"]
    marks = {group: mask[group.name] if group.name in mask else torch.zeros(group.width).bool() for group in groups}
    width = max(map(_filled, marks.values()))
    cuts = [Cut(found, marks[found.group].cpu(), width) for found in matrices_of(model, groups)]
    with _narrowed(model, mask, cuts):
        pass  # as in `compact`
    parameters = [
        sliced for cut in cuts for sliced in (*cut.matrices, *(joined.whole for joined in cut.matrices.joined))
    ]
    before = [sliced.parameter for sliced in parameters]
    with folded(model, _rest(mask, cuts)):
        try:
            for cut in cuts:
                cut.apply()
            yield width
        finally:
            for sliced, parameter in zip(parameters, before, strict=True):
                sliced.put(parameter)


@contextmanager
def pruned(model: Any, mask: NeuronMask) -> Iterator[Callable[[ActivationStats], ActivationStats]]:
    """`ablate` for less: layers that lose enough neurons are computed without them for the length of a `with`.

    No copy of the weights is made: neurons that are left take the places of pruned ones, which are kept aside, and the
    matrices are views of the former. At the end all is as it was, bit by bit, after an error or Ctrl-C too. Where
    weights can't be cut, or neurons do something else without the others on a few random tokens, all is ablated by
    hooks.

    Yields:
        What makes statistics collected in the `with` those of the whole model, in which a pruned neuron is at zero.

    Raises:
        SpLensError: for a mask of another model.
    """
    check_mask(model, mask)
    layout, cuts = layout_of(model), _worthwhile(model, mask)
    with ExitStack() as stack:
        if cuts:
            try:
                stack.enter_context(_narrowed(model, mask, cuts))
            except SpLensError as error:
                logger.warning("pruned neurons are ablated by hooks, which is slower: %s", error)
                cuts = []
        if not cuts:
            stack.enter_context(ablate(model, mask))
        yield partial(_widened, layout=layout, cuts=cuts)


@contextmanager
def _narrowed(model: Any, mask: NeuronMask, cuts: list[Cut]) -> Iterator[None]:
    """The cuts in force and hooks on the rest, once the neurons that are left are seen to do what they did.

    Raises:
        SpLensError: when they do something else.
    """
    starts: dict[int, torch.Tensor] = {}
    with ablate(model, mask):
        expected = _activations(model, cuts, starts)
    with ExitStack() as stack:
        for cut in cuts:
            stack.enter_context(cut.in_force())
        stack.enter_context(ablate(model, _rest(mask, cuts)))
        try:
            found = _activations(model, cuts, starts)
        except RuntimeError as error:  # a hook, or a norm, of the whole width
            raise SpLensError(f"{kind_of(model)} does not run with narrower layers: {error}") from error
        for cut in cuts:
            _require_same(cut, expected[cut.matrices.group.name], found[cut.matrices.group.name])
        yield


def _activations(model: Any, cuts: list[Cut], starts: dict[int, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the neurons of the layers that are cut do on a few random inputs.

    Each block starts from what is in `starts`, which the first call fills: what one block rounds is not carried on
    to the next, where a model may make anything of it (SmolLM2 in bfloat16: nats).
    """
    found: dict[str, torch.Tensor] = {}

    def start(layer: int, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
        return (starts.setdefault(layer, given[0].clone()), *given[1:]) if given else None

    def keep(name: str, activation: torch.Tensor) -> None:
        found[name] = activation

    with ExitStack() as stack:
        for layer, block in enumerate(model.blocks):
            handle = block.register_forward_pre_hook(lambda _, given, layer=layer: start(layer, given))
            stack.callback(handle.remove)
        groups = [cut.matrices.group for cut in cuts]
        hooks = [(group, lambda activation, hook, name=group.name: keep(name, activation)) for group in groups]
        stack.enter_context(attached(model, hooks))
        stack.enter_context(inference(model))
        model(random_inputs(model, longest=16).to(input_device(model)), return_type="logits")
    return found


def _require_same(cut: Cut, whole: torch.Tensor, narrow: torch.Tensor) -> None:
    """Refuse neurons that do something else in a narrower layer than in the whole one."""
    left = whole[..., cut.first.to(whole.device)].float()
    difference = (narrow[..., : len(cut.first)].float() - left).abs()
    within = max(1e-5, 4 * torch.finfo(whole.dtype).eps) * left.abs().max() if left.numel() else 0
    if not bool((difference <= within).all()):
        raise SpLensError(
            f"neurons at {cut.matrices.group.name} do something else without the pruned ones, by "
            f"{difference.max():.2g} where the largest is at {left.abs().max():.2g}: they are not independent of each "
            "other, and can't be taken out. Ablation by hooks works (ablate, prune)."
        )


def _worthwhile(model: Any, mask: NeuronMask) -> list[Cut]:
    """Cuts of the layers that lose enough for it; none where weights can't be cut."""
    try:
        return _cuts(model, mask, less=PAYS)
    except SpLensError:
        return []


def _cuts(model: Any, mask: NeuronMask, *, less: int) -> list[Cut]:
    """Cuts of the feed-forward layers of the mask that get narrower by `less` neurons at least."""
    widths = {group: _filled(mask[group.name]) for group in mask.layout if group.site == "mlp"}
    groups = [group for group, width in widths.items() if group.width - width >= less]
    return [Cut(found, mask[found.group.name].cpu(), widths[found.group]) for found in matrices_of(model, groups)]


def _filled(marked: torch.Tensor) -> int:
    """The width that a layer gets: what is left, rounded up, and never nothing."""
    left = int((~marked).sum())
    return min(len(marked), max(1, -(-left // MULTIPLE)) * MULTIPLE)


def _rest(mask: NeuronMask, cuts: list[Cut]) -> NeuronMask:
    """The mask on the groups that are not cut."""
    cut = {each.matrices.group for each in cuts}
    layout = Layout(tuple(group for group in mask.layout if group not in cut))
    return NeuronMask(layout, {name: mask[name] for name in layout.names}, mask.about)


def _widened(stats: ActivationStats, *, layout: Layout, cuts: list[Cut]) -> ActivationStats:
    moments = dict(stats)
    for cut in cuts:
        group = cut.matrices.group
        moments[group.name] = stats[group.name].among(cut.first, group.width)
    return ActivationStats(layout, moments, stats.about)
