"""A number or a mark for every neuron: `NeuronValues`, `HeadValues`, `NeuronMask`. No model in here.

All three are mappings from hook names, in layer order, to tensors, and know the layout that they are of.
"""

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float

from sp_lens.errors import SpLensError, check_choice
from sp_lens.neurons.layout import NeuronGroup
from sp_lens.neurons.mapping import _OfLayout
from sp_lens.neurons.mask import NeuronMask, pick_count
from sp_lens.typing import AGGREGATES, Aggregate, Site


class _Values(_OfLayout):
    """Numbers, and no marks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, tensor in self.tensors.items():
            if not tensor.is_floating_point():
                raise SpLensError(f"{type(self).__name__} are of decimal numbers: {name} has {tensor.dtype}.")


class HeadValues(_Values):
    """A number for every attention head. Shape `{hook name: Float[" head"]}`, attention hooks only."""

    @staticmethod
    def _size(group: NeuronGroup) -> int:
        if not group.heads:
            raise SpLensError(f"{group.name} has no heads: a value for each head is of the attention hooks only.")
        return group.heads

    def stack(self, site: Site = "attn") -> Float[torch.Tensor, "layer head"]:
        """The values as one matrix, a row a layer."""
        return super().stack(site)

    def _group_frame(self, group: NeuronGroup) -> pd.DataFrame:
        heads = np.arange(self._size(group))
        value = self[group.name].cpu().numpy()
        return pd.DataFrame({"site": group.site, "layer": group.layer, "head": heads, "value": value})

    def top(self, fraction: float, *, exclude: NeuronMask | None = None) -> NeuronMask:
        """The neurons of the top `fraction` of all heads, ranked over all layers. See `NeuronValues.top`."""
        taken = None
        if exclude is not None:
            self.layout.require_same(exclude.layout.select("attn"), "the mask of excluded neurons")
            taken = [exclude[group.name].view(group.heads, -1).all(dim=1) for group in self.layout]
        chosen = _top([self[name] for name in self], fraction, taken, "heads")
        tensors = {
            group.name: heads.repeat_interleave(group.d_head) for group, heads in zip(self.layout, chosen, strict=True)
        }
        return NeuronMask(self.layout, tensors, self.about)


class NeuronValues(_Values):
    """A number for every neuron: an importance, a score, an effect. Shape `{hook name: Float[" neuron"]}`."""

    def heads(self, aggregate: Aggregate = "mean") -> HeadValues:
        """One value for each attention head, out of its neurons' values (Definition 3, by activation).

        The seed paper gives the definition's title only; that the default is the mean is our choice.

        Args:
            aggregate: "mean", "median", "max", "l2" (root of the sum of squares) or "sum".
        """
        check_choice("aggregate", aggregate, AGGREGATES)
        layout = self.layout.select("attn")
        tensors = {}
        for group in layout:
            by_head = self[group.name].view(group.heads, -1)
            match aggregate:
                case "mean":
                    tensors[group.name] = by_head.mean(dim=1)
                case "median":
                    tensors[group.name] = by_head.quantile(0.5, dim=1)
                case "max":
                    tensors[group.name] = by_head.amax(dim=1)
                case "l2":
                    tensors[group.name] = torch.linalg.vector_norm(by_head, dim=1)
                case "sum":
                    tensors[group.name] = by_head.sum(dim=1)
        return HeadValues(layout, tensors, {**self.about, "aggregate": aggregate})

    def top(self, fraction: float, *, site: Site, exclude: NeuronMask | None = None) -> NeuronMask:
        """The top `fraction` of all the model's neurons of a site: one ranking over all layers.

        Args:
            fraction: share of all neurons of the site, those in `exclude` among them: each step of
                Algorithm 1 takes equally many.
            site: "mlp" or "attn"; the mask is of this site alone.
            exclude: neurons that are never chosen, as they are pruned already.

        Returns:
            A mask of the new neurons only; fewer than asked for when the rest is smaller. Equal values
            are taken in the order of (layer, neuron), so two runs give one mask.

        Raises:
            SpLensError: when a value is NaN, or when nothing would be chosen.
        """
        part = self.select(site)
        taken = None
        if exclude is not None:
            part.layout.require_same(exclude.layout.select(site), "the mask of excluded neurons")
            taken = [exclude[name] for name in part]
        chosen = _top([part[name] for name in part], fraction, taken, f"{site} neurons")
        return NeuronMask(part.layout, dict(zip(part, chosen, strict=True)), self.about)


def _top(
    values: list[torch.Tensor], fraction: float, taken: list[torch.Tensor] | None, what: str
) -> list[Bool[torch.Tensor, " item"]]:
    flat = torch.cat([value.detach().cpu().double() for value in values])
    if flat.isnan().any():
        raise SpLensError(
            f"{int(flat.isnan().sum())} of the {len(flat)} {what} have the value NaN and can't be ranked."
        )
    k = pick_count(fraction, len(flat), what)
    order = torch.argsort(flat, descending=True, stable=True)
    if taken is not None:
        order = order[~torch.cat(taken).cpu()[order]]
    if not len(order):
        raise SpLensError(f"nothing left to choose: all {len(flat)} {what} are excluded.")
    marks = torch.zeros(len(flat), dtype=torch.bool)
    marks[order[:k]] = True
    return list(marks.split([len(value) for value in values]))
