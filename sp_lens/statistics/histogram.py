"""Histograms of activations between fixed edges."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from sp_lens.errors import SpLensError

Edges = Float[torch.Tensor, " edge"]


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts of activations between fixed edges, for some neurons of a group.

    Attributes:
        edges: Ascending edges of the bins. A value x is in bin i if edges[i] <= x < edges[i + 1]; the last bin also
            contains its right edge. Other values are counted as outside.
        neurons: Indices of the counted neurons in their group.
        counts: Number of tokens in each bin.
        outside: Number of tokens below the first and above the last edge.
    """

    edges: Edges
    neurons: Int[torch.Tensor, " chosen"]
    counts: Int[torch.Tensor, "chosen bin"]
    outside: Int[torch.Tensor, "chosen side"]

    @classmethod
    def from_activations(
        cls, activations: Float[torch.Tensor, "token neuron"], edges: Edges, neurons: Int[torch.Tensor, " chosen"]
    ) -> "Histogram":
        """Count the activations of one batch.

        Args:
            activations: Finite float32 activations of all neurons of the group.
            edges: Ascending edges of the bins.
            neurons: Indices of the neurons to count.
        """
        chosen, bins = activations.index_select(1, neurons.to(activations.device)), len(edges) - 1
        # The last bin contains its right edge, so it ends at the next larger number.
        ends = edges.to("cpu", chosen.dtype)
        ends = torch.cat([ends[:-1], ends[-1:].nextafter(torch.tensor(torch.inf))]).to(chosen.device)
        # bucketize returns 0 below the first edge and bins + 1 from the last end on.
        slots = torch.bucketize(chosen, ends, right=True, out_int32=True)
        slots += torch.arange(len(neurons), dtype=slots.dtype, device=slots.device) * (bins + 2)
        counts = torch.bincount(slots.flatten(), minlength=len(neurons) * (bins + 2)).view(len(neurons), bins + 2)
        return cls(edges, neurons, counts[:, 1:-1], counts[:, [0, -1]])

    def check(self, width: int) -> None:
        """Raise SpLensError if this is not a valid histogram of neurons of a group with `width` neurons."""
        edges, neurons, counts, outside = self.edges, self.neurons, self.counts, self.outside
        shapes = [tuple(tensor.shape) for tensor in (edges, neurons, counts, outside)]
        if shapes != [(size := edges.numel(),), (chosen := neurons.numel(),), (chosen, size - 1), (chosen, 2)]:
            raise SpLensError(
                f"edges, neurons, counts and outside of a histogram have the shapes {shapes}: expected (edges,), "
                "(neurons,), (neurons, edges - 1) and (neurons, 2)."
            )
        if not edges.is_floating_point() or any(tensor.dtype != torch.int64 for tensor in (neurons, counts, outside)):
            raise SpLensError("the tensors of a histogram have a wrong dtype: expected floating edges, all else int64.")
        indices = neurons.tolist()
        if len(set(indices)) < chosen or not all(0 <= neuron < width for neuron in indices):
            raise SpLensError(f"the neurons of a histogram are {indices[:5]}: expected each once, of {width} neurons.")
        if size < 2 or not edges.isfinite().all() or not (edges.diff() > 0).all():
            raise SpLensError(f"the edges of a histogram are {edges.tolist()[:5]}: expected at least two that ascend.")
        if (counts < 0).any() or (outside < 0).any():
            raise SpLensError("a histogram has negative counts: expected numbers of tokens from 0.")

    def merge(self, other: "Histogram") -> "Histogram":
        """Return the histogram of both batches or corpora.

        Raises:
            SpLensError: If the two have different edges or neurons.
        """
        if not torch.equal(self.edges, other.edges) or not torch.equal(self.neurons, other.neurons):
            raise SpLensError(
                "histograms with different edges or neurons cannot be merged. Collect both with the same edges and "
                "neurons."
            )
        return Histogram(self.edges, self.neurons, self.counts + other.counts, self.outside + other.outside)

    def frame(self, tokens: int, neurons: Iterable[int] | None = None) -> pd.DataFrame:
        """Return a DataFrame with one row per neuron and bin: neuron, left, right, tokens, density.

        Args:
            tokens: Number of tokens in the corpus, by which counts are divided for the density.
            neurons: Indices of neurons in their group. None returns all counted neurons.

        Raises:
            SpLensError: If one of the neurons was not counted.
        """
        row_of = {neuron: row for row, neuron in enumerate(self.neurons.tolist())}
        chosen = list(row_of) if neurons is None else [int(neuron) for neuron in neurons]
        if missing := [neuron for neuron in chosen if neuron not in row_of]:
            raise SpLensError(
                f"no histogram of neurons {missing[:5]}: choose among the {len(row_of)} neurons that were counted."
            )
        counts = self.counts[[row_of[neuron] for neuron in chosen]].cpu().numpy()
        edges = self.edges.cpu().numpy().astype(float)
        bins = len(edges) - 1
        return pd.DataFrame(
            {
                "neuron": np.repeat(chosen, bins),
                "left": np.tile(edges[:-1], len(chosen)),
                "right": np.tile(edges[1:], len(chosen)),
                "tokens": counts.ravel(),
                "density": (counts / (tokens * np.diff(edges))).ravel(),
            }
        )
