"""A set of neurons: `NeuronMask`, one boolean per neuron."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from sp_lens.errors import SpLensError
from sp_lens.neurons.layout import Layout
from sp_lens.neurons.mapping import _OfLayout
from sp_lens.typing import Site


class NeuronMask(_OfLayout):
    """Some of a model's neurons: True is pruned (or chosen). Shape `{hook name: Bool[" neuron"]}`.

    Example:
        >>> layout = Layout((NeuronGroup("mlp", 0, 4), NeuronGroup("mlp", 1, 4)))
        >>> mask = NeuronMask.from_neurons(layout, {"blocks.1.mlp.hook_post": [0, 3]})
        >>> mask.count(), mask.share("mlp"), mask["blocks.1.mlp.hook_post"].tolist()
        (2, 0.25, [True, False, False, True])
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, tensor in self.tensors.items():
            if tensor.dtype != torch.bool:
                raise SpLensError(f"a mask is of booleans, True for pruned: {name} has {tensor.dtype}.")

    @classmethod
    def from_neurons(cls, layout: Layout, neurons: Mapping[str, Iterable[int]], **about: Any) -> "NeuronMask":
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
        part = self.select(site) if site else self
        return sum(int(tensor.sum()) for tensor in part.values())

    def share(self, site: Site | None = None) -> float:
        """The marked share of the neurons, at `site` or in all."""
        part = self.select(site) if site else self
        return part.count() / part.layout.neurons

    def fingerprint(self) -> str:
        """A hash of which neurons are marked."""
        return hashlib.sha256(b"|".join(self[name].cpu().numpy().tobytes() for name in self)).hexdigest()[:16]

    def __repr__(self) -> str:
        return f"NeuronMask({self.count()} of {self.layout.neurons} neurons: {self.layout})"


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
