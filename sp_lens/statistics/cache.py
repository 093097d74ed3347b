"""Reduce activations that were kept in memory, such as a TransformerLens `ActivationCache`."""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool

from sp_lens.errors import SpLensError
from sp_lens.neurons.layout import Layout, group_of_activation
from sp_lens.statistics.moments import Moments


@runtime_checkable
class ActivationsByHook(Protocol):
    """Activations by hook name: a dictionary, or an `ActivationCache`, which is not a `Mapping`."""

    def __iter__(self) -> Iterator[str]: ...

    def __getitem__(self, name: str, /) -> torch.Tensor: ...


def reduce_cache(
    cache: ActivationsByHook, counted: Bool[torch.Tensor, "*batch pos"] | None
) -> tuple[Layout, dict[str, Moments]]:
    """Return the neuron groups in a cache and their moments by hook name.

    Args:
        cache: Activations by hook name, see `ActivationStats.from_cache`. Other hooks are ignored.
        counted: True at the positions that count. None counts all of them.

    Raises:
        SpLensError: If the cache has no hook of a neuron group, or `counted` does not fit its activations.
    """
    candidates = [group_of_activation(name, tuple(cache[name].shape)) for name in cache]
    groups = sorted((group for group in candidates if group), key=lambda group: (group.layer, group.site))
    if not groups:
        raise SpLensError("the cache has no mlp.hook_post and no attn.hook_z: cache at least one of these hooks.")
    moments = {}
    for group in groups:
        activations = cache[group.name].reshape(-1, group.width)
        if counted is not None:
            if counted.numel() != len(activations) or not counted.any():
                raise SpLensError(
                    f"counted has {counted.numel()} positions, {int(counted.sum())} of them True, and {group.name} has "
                    f"{len(activations)} positions: expected one boolean per position, at least one of them True."
                )
            activations = activations[counted.flatten().bool()]
        moments[group.name] = Moments.from_activations(activations)
    return Layout(tuple(groups)), moments
