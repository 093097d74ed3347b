"""Represent a set of neurons: `NeuronMask`, one boolean per neuron."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from sp_lens.errors import SpLensError
from sp_lens.neurons.layout import Layout
from sp_lens.neurons.mapping import _TensorsByGroup
from sp_lens.typing import Site


class NeuronMask(_TensorsByGroup):
    """A set of neurons: True marks a neuron that is pruned (or chosen). Shape `{hook name: Bool[" neuron"]}`.

    Example:
        >>> from sp_lens import Layout, NeuronGroup
        >>> layout = Layout((NeuronGroup("mlp", 0, 4), NeuronGroup("mlp", 1, 4)))
        >>> mask = NeuronMask.from_neurons(layout, {"blocks.1.mlp.hook_post": [0, 3]})
        >>> mask.count(), mask.share("mlp"), mask["blocks.1.mlp.hook_post"].tolist()
        (2, 0.25, [True, False, False, True])
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, tensor in self.tensors.items():
            if tensor.dtype != torch.bool:
                raise SpLensError(f"a mask consists of booleans (True is pruned), but {name} has {tensor.dtype}.")

    @classmethod
    def from_neurons(cls, layout: Layout, neurons: Mapping[str, Iterable[int]], **about: Any) -> "NeuronMask":
        """Create a mask from the indices of neurons.

        Args:
            layout: Neuron groups of the model.
            neurons: Indices of the marked neurons, by the name of the hook point. Hook points may be omitted.
            about: Origin of the mask, such as `model="gpt2"`.

        Raises:
            SpLensError: If the layout does not have one of the hook points or indices.
        """
        tensors = {group.name: torch.zeros(group.width, dtype=torch.bool) for group in layout}
        for name, indices in neurons.items():
            group = layout.group(name)
            chosen = torch.as_tensor(list(indices))
            if chosen.dtype == torch.bool:
                raise SpLensError(
                    f"{name}: expected the indices of neurons, got booleans. Pass those to NeuronMask(layout, tensors)."
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
        """Return the number of marked neurons.

        Args:
            site: "mlp" or "attn". None counts all sites.
        """
        part = self.select(site) if site else self
        return sum(int(tensor.sum()) for tensor in part.values())

    def share(self, site: Site | None = None) -> float:
        """Return the share of neurons that are marked.

        Args:
            site: "mlp" or "attn". None stands for all sites.
        """
        part = self.select(site) if site else self
        return part.count() / part.layout.neurons

    def fingerprint(self) -> str:
        """Return a hash of the set of marked neurons."""
        return hashlib.sha256(b"|".join(self[name].cpu().numpy().tobytes() for name in self)).hexdigest()[:16]

    def __repr__(self) -> str:
        return f"NeuronMask({self.count()} of {self.layout.neurons} neurons: {self.layout})"


def pick_count(fraction: float, total: int, what: str) -> int:
    """Return how many of `total` items correspond to `fraction`.

    Args:
        fraction: Share of the items, above 0 and at most 1.
        total: Number of items.
        what: Name of the items in messages ("mlp neurons").

    Raises:
        SpLensError: If the fraction is not in (0, 1], or it is smaller than half an item.
    """
    if not 0 < fraction <= 1:
        raise SpLensError(f"fraction {fraction}: expected a share of the {what} above 0 and at most 1.")
    count = round(fraction * total)
    if count == 0:
        raise SpLensError(f"fraction {fraction} of {total} {what} selects none: give at least {1 / total:.2g}.")
    return count
