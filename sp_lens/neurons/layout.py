"""Describe the neurons of a model as data: `NeuronGroup` (one site in one layer) and `Layout` (all groups of a model).

Site "mlp" is the hook point `mlp.hook_post`, the input of the down-projection (on a gated MLP act(gate) * up). Site
"attn" is the hook point `attn.hook_z`, the input of W_O, which is divided into attention heads. The names of these hook
points are in `sp_lens.typing.HOOKS`.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sp_lens.errors import SpLensError, check_at_least
from sp_lens.storage.schema import Int64, validate
from sp_lens.typing import HOOKS, SITES, Site


@dataclass(frozen=True)
class NeuronGroup:
    """The neurons of one site in one layer.

    Attributes:
        site: "mlp" or "attn".
        layer: Index of the transformer block.
        width: Number of neurons. On "attn" this is heads * d_head.
        heads: Number of query heads on "attn", 0 on "mlp".

    Raises:
        SpLensError: If a number is negative, `width` is not a multiple of `heads`, or `heads` does not fit the site.
    """

    site: Site
    layer: Int64
    width: Int64
    heads: Int64 = 0

    def __post_init__(self) -> None:
        check_at_least(0, layer=self.layer, heads=self.heads)
        check_at_least(1, width=self.width)
        if bool(self.heads) != (self.site == "attn"):
            raise SpLensError(f"heads is {self.heads} at site {self.site!r}: expected 0 on mlp and 1 or more on attn.")
        if self.heads and self.width % self.heads:
            raise SpLensError(f"{self.width} neurons cannot be divided evenly among {self.heads} heads.")

    @property
    def name(self) -> str:
        """The name of the hook point in TransformerLens, which is the key of every mapping in this library."""
        return ".".join(("blocks", str(self.layer), *HOOKS[self.site]))

    @property
    def d_head(self) -> int:
        """The number of neurons per attention head, or 0 on "mlp"."""
        return self.width // self.heads if self.heads else 0

    @property
    def shape(self) -> str:
        """The size in words, for messages."""
        return f"{self.heads} heads of {self.d_head}" if self.heads else f"{self.width} neurons"


@dataclass(frozen=True)
class Layout(Sequence[NeuronGroup]):
    """All neuron groups of a model, ordered by layer, with attention before the MLP of the same block.

    Statistics and masks can be exchanged between models with equal layouts, as far as shapes are concerned.

    Example:
        >>> layout = Layout((NeuronGroup("attn", 0, 8, heads=2), NeuronGroup("mlp", 0, 12)))
        >>> layout.names
        ('blocks.0.attn.hook_z', 'blocks.0.mlp.hook_post')
        >>> len(layout.select("mlp")), layout.select("mlp").neurons
        (1, 12)
    """

    groups: tuple[NeuronGroup, ...]

    def __getitem__(self, index: Any) -> Any:
        return self.groups[index]

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the hook points, in order."""
        return tuple(group.name for group in self.groups)

    @property
    def neurons(self) -> int:
        """The total number of neurons in all groups."""
        return sum(group.width for group in self.groups)

    def select(self, site: Site) -> "Layout":
        """Return the layout of one site.

        Args:
            site: "mlp" or "attn".

        Raises:
            SpLensError: If the layout has no neurons at this site.
        """
        groups = tuple(group for group in self.groups if group.site == site)
        if not groups:
            sites = sorted({group.site for group in self.groups})
            raise SpLensError(f"no neurons at site {site!r}: choose one of {sites}.")
        return Layout(groups)

    def group(self, name: str) -> NeuronGroup:
        """Return the group of a hook point.

        Args:
            name: Name of the hook point, such as "blocks.0.mlp.hook_post".

        Raises:
            SpLensError: If the layout has no such hook point.
        """
        for group in self.groups:
            if group.name == name:
                return group
        raise SpLensError(f"no neurons at {name!r}: this model has {self}, at hook points such as {self.names[:2]}.")

    def require_same(self, other: "Layout", what: str) -> None:
        """Raise SpLensError if `other` is a different layout.

        Args:
            other: Layout to compare with.
            what: Object that has the layout `other`, for the message ("the other mask").
        """
        if self != other:
            raise SpLensError(
                f"{what} belongs to another model: it has {other}, but {self} was expected. "
                "Create it again from this model with collect() and score()."
            )

    def to_json(self) -> list[dict[str, Any]]:
        """Return the groups as plain values, for the header of a file."""
        return [asdict(group) for group in self.groups]

    @classmethod
    def from_json(cls, groups: list[dict[str, Any]]) -> "Layout":
        """Create a layout from the values that `to_json` returned.

        Args:
            groups: Fields of each group. They are validated.

        Raises:
            SpLensError: If a group is invalid, there is no group, or several groups have the same hook point.
        """
        layout = cls(validate(groups, tuple[NeuronGroup, ...], "layout"))
        if not layout or len(set(layout.names)) < len(layout):
            raise SpLensError(f"the layout has the hook points {layout.names[:5]}: expected at least one, each once.")
        return layout

    def __str__(self) -> str:
        parts = []
        for site in SITES:
            shapes = [group.shape for group in self.groups if group.site == site]
            if shapes:
                distinct = dict.fromkeys(shapes)
                parts.append(f"{len(shapes)} layers of {site} with {' / '.join(distinct)}")
        return " and ".join(parts) or "no neurons"


def group_of_activation(name: str, shape: tuple[int, ...]) -> NeuronGroup | None:
    """Return the neuron group of a cached activation, or None if it is not the activation of a neuron group.

    Args:
        name: Name of the hook point in the cache.
        shape: Shape of the activation, from which the number of neurons and heads is read.
    """
    for site, (component, hook) in HOOKS.items():
        if match := re.fullmatch(rf"blocks\.(\d+)\.{component}\.{hook}", name):
            heads = shape[-2] if site == "attn" else 0
            return NeuronGroup(site, int(match[1]), shape[-1] * (heads or 1), heads)
    return None
