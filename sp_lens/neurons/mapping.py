"""Map hook points to one tensor per neuron group: the base class of masks and values."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Shaped

from sp_lens.errors import SpLensError
from sp_lens.neurons.layout import Layout, NeuronGroup
from sp_lens.storage.schema import mapping_with
from sp_lens.storage.serialization import opened, save_tensors
from sp_lens.typing import Site

Self = TypeVar("Self", bound="_TensorsByGroup")

# The entries of `about`, in files of values, masks and statistics, that the library reads.
ABOUT = mapping_with(model=str | None, metric=str | None, corpora=Sequence[Any] | None)


@dataclass(frozen=True, eq=False)
class _TensorsByGroup(Mapping[str, torch.Tensor]):
    """One tensor for each group of a layout, and its origin.

    Attributes:
        layout: Neuron groups.
        tensors: Tensor of each group, by the name of its hook point.
        about: Origin of the tensors (model, metric, corpora, ...) as plain values, which are saved with them.
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

    def select(self: Self, site: Site) -> Self:
        """Return the part at one site.

        Args:
            site: "mlp" or "attn".
        """
        layout = self.layout.select(site)
        return type(self)(layout, {name: self[name] for name in layout.names}, self.about)

    def __eq__(self, other: object) -> bool:
        """Compare class, layout and tensors, but not `about`."""
        if not isinstance(other, type(self)):
            return NotImplemented
        return self.layout == other.layout and all(torch.equal(self[name], other[name]) for name in self)

    __hash__ = None  # type: ignore[assignment]  # a mapping of tensors is not hashable

    def save(self, path: str | Path) -> None:
        """Write to a safetensors file, atomically.

        Args:
            path: Path of the file. Its folder is created if necessary.
        """
        save_tensors(path, type(self).__name__, self.tensors, {"layout": self.layout.to_json(), "about": self.about})

    @classmethod
    def load(cls: type[Self], path: str | Path) -> Self:
        """Read a file that `save` wrote.

        Args:
            path: Path of the file.

        Raises:
            SpLensError: If the file does not exist or contains another kind of result.
            DamagedFile: If the file is truncated, was modified, or its content is invalid.
        """
        with opened(path, cls.__name__, {"layout": Any, "about": ABOUT}) as (tensors, header):
            return cls(Layout.from_json(header["layout"]), tensors, header["about"])

    def stack(self, site: Site) -> Shaped[torch.Tensor, "layer neuron"]:
        """Return the values at one site as a matrix with one row per layer.

        Args:
            site: "mlp" or "attn".

        Raises:
            SpLensError: If the layers differ in width.
        """
        part = self.select(site)
        if len({self._size(group) for group in part.layout}) > 1:
            raise SpLensError(
                f"the layers of {site} differ in width, so they cannot be stacked: use .frame() or the mapping."
            )
        return torch.stack([part[name] for name in part])

    def frame(self) -> pd.DataFrame:
        """Return a table with one row per neuron.

        Returns:
            Columns site, layer, head (missing on mlp), neuron (index in the layer), value.
        """
        return pd.concat([self._group_frame(group) for group in self.layout], ignore_index=True)

    def _group_frame(self, group: NeuronGroup) -> pd.DataFrame:
        neuron = np.arange(group.width)
        head = neuron // group.d_head if group.heads else np.full(group.width, pd.NA)
        columns = {"site": group.site, "layer": group.layer, "head": pd.array(head, dtype="Int64"), "neuron": neuron}
        return pd.DataFrame(columns | {"value": self[group.name].cpu().numpy()})
