"""A number or a mark for every neuron: `NeuronValues`, `HeadValues`, `NeuronMask`. No model in here.

All three are mappings from hook names, in layer order, to tensors, and know the layout that they are of.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float

from sp_lens.errors import SpLensError, check_choice
from sp_lens.layout import Layout, NeuronGroup, Site
from sp_lens.storage import opened, save_tensors

Aggregate = Literal["mean", "median", "max", "l2", "sum"]
AGGREGATES: tuple[Aggregate, ...] = get_args(Aggregate)

Self = TypeVar("Self", bound="_OfLayout")

# Of what values, masks and statistics say that they were made from, what is read anywhere.
ABOUT = {"model": str | None, "metric": str | None, "corpora": Sequence[Any] | None}


@dataclass(frozen=True, eq=False)
class _OfLayout(Mapping[str, torch.Tensor]):
    """A tensor for each group of a layout, and where it came from.

    Attributes:
        layout: the groups.
        tensors: by hook name, one tensor a group.
        about: what this was made from (model, metric, corpora, ...); plain values, saved with it.
    """

    layout: Layout
    tensors: Mapping[str, torch.Tensor]
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if set(self.tensors) != set(self.layout.names):
            raise SpLensError(f"{type(self).__name__} needs one tensor for each of {self.layout.names}.")
        for group in self.layout:
            if tuple(self.tensors[group.name].shape) != (self._size(group),):
                raise SpLensError(
                    f"{group.name} has {group.shape}: expected a tensor of shape ({self._size(group)},), "
                    f"got {tuple(self.tensors[group.name].shape)}."
                )

    @staticmethod
    def _size(group: NeuronGroup) -> int:
        return group.width

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layout.names)

    def __len__(self) -> int:
        return len(self.layout)

    def of(self: Self, site: Site) -> Self:
        """The part at one site."""
        layout = self.layout.of(site)
        return type(self)(layout, {name: self[name] for name in layout.names}, self.about)

    def __eq__(self, other: object) -> bool:
        """Whether the other is of the same kind and layout and has the same values, `about` aside."""
        if not isinstance(other, type(self)):
            return NotImplemented
        return self.layout == other.layout and all(torch.equal(self[name], other[name]) for name in self)

    __hash__ = None  # type: ignore[assignment]  # as of any mapping of tensors

    def save(self, path: str | Path) -> None:
        """Write to a safetensors file, whole or not at all."""
        save_tensors(path, type(self).__name__, self.tensors, {"layout": self.layout.to_json(), "about": self.about})

    @classmethod
    def load(cls: type[Self], path: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            SpLensError: when the file is missing, cut short, foreign, or holds something else.
        """
        with opened(path, cls.__name__, {"layout": Any, "about": ABOUT}) as (tensors, header):
            return cls(Layout.from_json(header["layout"]), tensors, header["about"])

    def stack(self, site: Site) -> Float[torch.Tensor, "layer neuron"]:
        """The values at `site` as one matrix, a row a layer.

        Raises:
            SpLensError: when the layers differ in width.
        """
        part = self.of(site)
        if len({self._size(group) for group in part.layout}) > 1:
            raise SpLensError(
                f"the layers of {site} differ in width, so they don't stack: use .frame() or the mapping."
            )
        return torch.stack([part[name] for name in part])

    def frame(self) -> pd.DataFrame:
        """One row a neuron: site, layer, head (missing on mlp), neuron (its index in the layer), value."""
        return pd.concat([self._group_frame(group) for group in self.layout], ignore_index=True)

    def _group_frame(self, group: NeuronGroup) -> pd.DataFrame:
        neuron = np.arange(group.width)
        head = neuron // (group.width // group.heads) if group.heads else np.full(group.width, pd.NA)
        columns = {"site": group.site, "layer": group.layer, "head": pd.array(head, dtype="Int64"), "neuron": neuron}
        return pd.DataFrame(columns | {"value": self[group.name].cpu().numpy()})


class NeuronMask(_OfLayout):
    """Some of a model's neurons: True is pruned (or chosen). Shape `{hook name: Bool[" neuron"]}`.

    Example:
        >>> layout = Layout((NeuronGroup("mlp", 0, 4), NeuronGroup("mlp", 1, 4)))
        >>> mask = NeuronMask.of_neurons(layout, {"blocks.1.mlp.hook_post": [0, 3]})
        >>> mask.count(), mask.share("mlp"), mask["blocks.1.mlp.hook_post"].tolist()
        (2, 0.25, [True, False, False, True])
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, tensor in self.tensors.items():
            if tensor.dtype != torch.bool:
                raise SpLensError(f"a mask is of booleans, True for pruned: {name} has {tensor.dtype}.")

    @classmethod
    def of_neurons(cls, layout: Layout, neurons: Mapping[str, Iterable[int]], **about: Any) -> "NeuronMask":
        """The mask of the neurons given by index, hook by hook; hooks left out have none.

        Raises:
            SpLensError: for a hook or an index that the layout does not have.
        """
        tensors = {group.name: torch.zeros(group.width, dtype=torch.bool) for group in layout}
        for name, indices in neurons.items():
            group = layout.group(name)
            chosen = torch.as_tensor(list(indices))
            if chosen.dtype == torch.bool:
                raise SpLensError(
                    f"{name}: expected indices of neurons, got booleans: NeuronMask(layout, tensors) takes those."
                )
            chosen = chosen.long()
            if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < group.width:
                raise SpLensError(f"{name} has neurons 0 to {group.width - 1}, got {chosen.min()} to {chosen.max()}.")
            tensors[name][chosen] = True
        return cls(layout, tensors, about)

    def __or__(self, other: "NeuronMask") -> "NeuronMask":
        self.layout.require_same(other.layout, "the other mask")
        return NeuronMask(self.layout, {name: self[name] | other[name] for name in self}, self.about)

    def count(self, site: Site | None = None) -> int:
        """How many neurons are marked, at `site` or in all."""
        part = self.of(site) if site else self
        return sum(int(tensor.sum()) for tensor in part.values())

    def share(self, site: Site | None = None) -> float:
        """The marked share of the neurons, at `site` or in all."""
        part = self.of(site) if site else self
        return part.count() / part.layout.neurons

    def fingerprint(self) -> str:
        """A hash of which neurons are marked."""
        return hashlib.sha256(b"|".join(self[name].cpu().numpy().tobytes() for name in self)).hexdigest()[:16]

    def __repr__(self) -> str:
        return f"NeuronMask({self.count()} of {self.layout.neurons} neurons: {self.layout})"


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
            self.layout.require_same(exclude.layout.of("attn"), "the mask of excluded neurons")
            taken = [exclude[group.name].view(group.heads, -1).all(dim=1) for group in self.layout]
        chosen = _top([self[name] for name in self], fraction, taken, "heads")
        tensors = {
            group.name: heads.repeat_interleave(group.width // self._size(group))
            for group, heads in zip(self.layout, chosen, strict=True)
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
        layout = self.layout.of("attn")
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
        part = self.of(site)
        taken = None
        if exclude is not None:
            part.layout.require_same(exclude.layout.of(site), "the mask of excluded neurons")
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


def pick_count(fraction: float, total: int, what: str) -> int:
    """How many of `total` a `fraction` is.

    Raises:
        SpLensError: when it is not in (0, 1], or is too small to be even one.
    """
    if not 0 < fraction <= 1:
        raise SpLensError(f"fraction {fraction}: expected a share of the {what} above 0 and at most 1.")
    k = round(fraction * total)
    if k == 0:
        raise SpLensError(f"fraction {fraction} of {total} {what} is none: give at least {1 / total:.2g}.")
    return k
