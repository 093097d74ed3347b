"""Build statistics with folds from random activations, for the tests of folds, intervals and permutation tests."""

from typing import Any

import numpy as np
import torch

import sp_lens as sp
from sp_lens.neurons.layout import Layout, NeuronGroup
from sp_lens.statistics.moments import Moments

MLP, ATTN = NeuronGroup("mlp", 0, 12), NeuronGroup("attn", 0, 4, heads=2)
LAYOUT = Layout((ATTN, MLP))


def activations(seed: int, folds: int = 8, width: int = 16, shift: float = 0.0) -> list[np.ndarray]:
    """Draw activations [token neuron] for each fold. Folds differ in size and in the mean of each neuron."""
    generator = np.random.default_rng(seed)
    sizes = generator.integers(10, 60, folds)
    parts = [generator.normal(shift + generator.normal(0, 0.5, width), 1, (size, width)) for size in sizes]
    return [part.astype(np.float32).astype(float) for part in parts]


def stats_of(parts: list[np.ndarray], **about: Any) -> sp.ActivationStats:
    """Compute statistics with one fold, of one document, per part. The first 4 neurons are attention neurons."""

    def moments(z: np.ndarray) -> dict[str, Moments]:
        tensor = torch.tensor(z)
        return {ATTN.name: Moments.from_activations(tensor[:, :4]), MLP.name: Moments.from_activations(tensor[:, 4:])}

    folds = tuple(sp.ActivationStats(LAYOUT, moments(part), {**about, "documents": 1}) for part in parts)
    return sp.ActivationStats(LAYOUT, moments(np.concatenate(parts)), about, folds)


def flat(values: sp.NeuronValues) -> np.ndarray:
    """Return the values of all neurons, in the order of the layout."""
    return np.concatenate([tensor.numpy() for tensor in values.values()])
