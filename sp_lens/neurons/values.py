"""Hold one number per neuron or per attention head: `NeuronValues` and `HeadValues`, with their rankings.

Both are mappings from the names of hook points, in layer order, to tensors.
"""

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float

from sp_lens.errors import SpLensError, check_choice
from sp_lens.neurons.layout import NeuronGroup
from sp_lens.neurons.mapping import _TensorsByGroup
from sp_lens.neurons.mask import NeuronMask, pick_count
from sp_lens.typing import AGGREGATES, Aggregate, Site


class _Values(_TensorsByGroup):
    """The common base of values, which must be floating-point numbers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, tensor in self.tensors.items():
            if not tensor.is_floating_point():
                raise SpLensError(
                    f"{type(self).__name__} consist of floating-point numbers, but {name} has {tensor.dtype}."
                )


class HeadValues(_Values):
    """One number per attention head. Shape `{hook name: Float[" head"]}`, only at site "attn"."""

    @staticmethod
    def _size(group: NeuronGroup) -> int:
        if not group.heads:
            raise SpLensError(f"{group.name} has no heads: HeadValues exist only at site 'attn'.")
        return group.heads

    def stack(self, site: Site = "attn") -> Float[torch.Tensor, "layer head"]:
        """Return the values as a matrix with one row per layer.

        Args:
            site: "attn", the only site with heads.
        """
        return super().stack(site)

    def _group_frame(self, group: NeuronGroup) -> pd.DataFrame:
        heads = np.arange(self._size(group))
        value = self[group.name].cpu().numpy()
        return pd.DataFrame({"site": group.site, "layer": group.layer, "head": heads, "value": value})

    def top(self, fraction: float, *, exclude: NeuronMask | None = None) -> NeuronMask:
        """Return a mask of all neurons in the highest-ranked attention heads, ranked over all layers.

        Args:
            fraction: Share of all heads of the model, including the excluded ones.
            exclude: Mask of pruned neurons. A head of which all neurons are excluded is not chosen.

        Returns:
            A mask of the newly chosen neurons. See `NeuronValues.top` for ties and errors.
        """
        excluded = None
        if exclude is not None:
            self.layout.require_same(exclude.layout.select("attn"), "the mask of excluded neurons")
            excluded = [exclude[group.name].view(group.heads, -1).all(dim=1) for group in self.layout]
        chosen = _top([self[name] for name in self], fraction, excluded, "heads")
        tensors = {
            group.name: heads.repeat_interleave(group.d_head) for group, heads in zip(self.layout, chosen, strict=True)
        }
        return NeuronMask(self.layout, tensors, self.about)


class NeuronValues(_Values):
    """One number per neuron: an importance, a score, or an effect. Shape `{hook name: Float[" neuron"]}`."""

    def heads(self, aggregate: Aggregate = "mean") -> HeadValues:
        """Aggregate the values of the neurons in each attention head (Definition 3, by activation).

        The paper gives only the title of this definition. The default, the mean, is our choice.

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
        """Return a mask of the neurons with the highest values at a site, in one ranking over all layers.

        Args:
            fraction: Share of all neurons of the site, including those in `exclude`, so that every step of
                Algorithm 1 prunes the same number of neurons.
            site: "mlp" or "attn". The mask covers only this site.
            exclude: Mask of neurons that are never chosen because they are already pruned.

        Returns:
            A mask of the newly chosen neurons. It contains fewer than requested if fewer are left. Equal values are
            ordered by (layer, neuron), so two runs return the same mask.

        Raises:
            SpLensError: If a value is NaN, or no neuron would be chosen.
        """
        part = self.select(site)
        excluded = None
        if exclude is not None:
            part.layout.require_same(exclude.layout.select(site), "the mask of excluded neurons")
            excluded = [exclude[name] for name in part]
        chosen = _top([part[name] for name in part], fraction, excluded, f"{site} neurons")
        return NeuronMask(part.layout, dict(zip(part, chosen, strict=True)), self.about)


def _top(
    values: list[torch.Tensor], fraction: float, excluded: list[torch.Tensor] | None, what: str
) -> list[Bool[torch.Tensor, " _"]]:
    """Return the mask of the top `fraction` of all values, split like `values`. Each tensor has its own length."""
    flat = torch.cat([value.detach().cpu().double() for value in values])
    if flat.isnan().any():
        raise SpLensError(f"{int(flat.isnan().sum())} of the {len(flat)} {what} have the value NaN: cannot rank them.")
    count = pick_count(fraction, len(flat), what)
    order = torch.argsort(flat, descending=True, stable=True)
    if excluded is not None:
        order = order[~torch.cat(excluded).cpu()[order]]
    if not len(order):
        raise SpLensError(f"nothing left to choose: all {len(flat)} {what} are excluded.")
    marks = torch.zeros(len(flat), dtype=torch.bool)
    marks[order[:count]] = True
    return list(marks.split([len(value) for value in values]))
