"""The neurons of a model as data: two sites a block, a group of neurons at each, and all groups in order.

`mlp`: the units of `mlp.hook_post`, the input of the down-projection (on a gated MLP act(gate) * up). `attn`: the
pre-out units of `attn.hook_z`, the input of W_O, head by head.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sp_lens.errors import SpLensError, check_at_least
from sp_lens.storage.schema import fitted
from sp_lens.typing import HOOKS, SITES, Site


@dataclass(frozen=True)
class NeuronGroup:
    """The neurons of one site in one layer.

    Attributes:
        site: "mlp" or "attn".
        layer: index of the block.
        width: number of neurons (on "attn": heads * d_head).
        heads: number of query heads on "attn", 0 on "mlp".

    Raises:
        SpLensError: when a number is negative, the neurons are not as many for each head, or an MLP has heads.
    """

    site: Site
    layer: int
    width: int
    heads: int = 0

    def __post_init__(self) -> None:
        check_at_least(0, layer=self.layer, heads=self.heads)
        check_at_least(1, width=self.width)
        if bool(self.heads) != (self.site == "attn"):
            raise SpLensError(f"there are {self.heads} heads at site {self.site!r}: expected 1 or more on attn alone.")
        if self.heads and self.width % self.heads:
            raise SpLensError(f"{self.width} neurons are not as many for each of {self.heads} heads.")

    @property
    def name(self) -> str:
        """The TransformerLens hook name, the key of every mapping in this library."""
        return ".".join(("blocks", str(self.layer), *HOOKS[self.site]))

    @property
    def d_head(self) -> int:
        """Neurons per attention head; 0 on "mlp", which has no heads."""
        return self.width // self.heads if self.heads else 0

    @property
    def shape(self) -> str:
        """The width in words, for messages."""
        return f"{self.heads} heads of {self.d_head}" if self.heads else f"{self.width} neurons"


@dataclass(frozen=True)
class Layout(Sequence[NeuronGroup]):
    """All the neuron groups of a model, in layer order, attention before MLP as in the block.

    Two models with equal layouts can exchange statistics and masks as far as shapes go.

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
        """The hook names, in order."""
        return tuple(group.name for group in self.groups)

    @property
    def neurons(self) -> int:
        """How many neurons there are in all groups together."""
        return sum(group.width for group in self.groups)

    def select(self, site: Site) -> "Layout":
        """The part of the layout at `site`.

        Raises:
            SpLensError: when the site is unknown or the model has none of it.
        """
        part = tuple(group for group in self.groups if group.site == site)
        if not part:
            there = sorted({group.site for group in self.groups})
            raise SpLensError(f"no neurons at site {site!r}: choose one of {there}.")
        return Layout(part)

    def group(self, name: str) -> NeuronGroup:
        """The group whose hook name is `name`."""
        for group in self.groups:
            if group.name == name:
                return group
        raise SpLensError(f"no neurons at {name!r}: this model has {self}, at hooks like {self.names[:2]}.")

    def require_same(self, other: "Layout", what: str) -> None:
        """Refuse `other`, the layout of `what`, unless it is this one."""
        if self != other:
            raise SpLensError(
                f"{what} belongs to another model: it has {other}, and {self} was expected. "
                "Make it again from this model with collect() and score()."
            )

    def to_json(self) -> list[dict[str, Any]]:
        """The groups as plain values, for a file's header."""
        return [asdict(group) for group in self.groups]

    @classmethod
    def from_json(cls, groups: list[dict[str, Any]]) -> "Layout":
        """The inverse of `to_json`.

        Raises:
            SpLensError: when they are no groups, or one hook has two of them.
        """
        layout = cls(fitted(groups, tuple[NeuronGroup, ...], "its layout"))
        if not layout or len(set(layout.names)) < len(layout):
            raise SpLensError(f"its layout has the hooks {layout.names[:5]}: expected some, and each once.")
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
    """The group that a cached activation called `name` is of, its sizes read off the shape; None if of none."""
    for site, (component, hook) in HOOKS.items():
        if match := re.fullmatch(rf"blocks\.(\d+)\.{component}\.{hook}", name):
            heads = shape[-2] if site == "attn" else 0
            return NeuronGroup(site, int(match[1]), shape[-1] * (heads or 1), heads)
    return None
