"""Histograms of activations between fixed edges."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int

from sp_lens.errors import SpLensError


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts of activations between fixed edges, for some neurons of a group.

    Attributes:
        edges: ascending; a value x is in bin i when edges[i] <= x < edges[i + 1] (the last bin also holds
            its right edge). Anything else, on either side, counts as outside.
        neurons: the neurons that are counted, as indices into the group.
        counts: tokens in each bin.
        outside: tokens below the first and above the last edge.
    """

    edges: Float[torch.Tensor, " edge"]
    neurons: Int[torch.Tensor, " chosen"]
    counts: Int[torch.Tensor, "chosen bin"]
    outside: Int[torch.Tensor, "chosen side"]

    @classmethod
    def from_activations(
        cls,
        activations: Float[torch.Tensor, "token neuron"],
        edges: Float[torch.Tensor, " edge"],
        neurons: Int[torch.Tensor, " chosen"],
    ) -> "Histogram":
        """Count one batch of finite float32 activations."""
        chosen, bins = activations.index_select(1, neurons.to(activations.device)), len(edges) - 1
        # The last bin holds its right edge: it ends right above it.
        ends = edges.to("cpu", chosen.dtype)
        ends = torch.cat([ends[:-1], ends[-1:].nextafter(torch.tensor(torch.inf))]).to(chosen.device)
        # bucketize gives 0 below the first edge and bins + 1 from the last one on.
        slots = torch.bucketize(chosen, ends, right=True, out_int32=True)
        slots += torch.arange(len(neurons), dtype=slots.dtype, device=slots.device) * (bins + 2)
        counts = torch.bincount(slots.flatten(), minlength=len(neurons) * (bins + 2)).view(len(neurons), bins + 2)
        return cls(edges, neurons, counts[:, 1:-1], counts[:, [0, -1]])

    def check(self, width: int) -> None:
        """Refuse a histogram that is none of some of so many neurons.

        Raises:
            SpLensError: saying what it is.
        """
        edges, neurons, counts, outside = self.edges, self.neurons, self.counts, self.outside
        shapes = [tuple(tensor.shape) for tensor in (edges, neurons, counts, outside)]
        if shapes != [(size := edges.numel(),), (chosen := neurons.numel(),), (chosen, size - 1), (chosen, 2)]:
            raise SpLensError(f"a histogram has edges, neurons, counts and counts outside of the shapes {shapes}.")
        if not edges.is_floating_point() or any(one.dtype != torch.int64 for one in (neurons, counts, outside)):
            raise SpLensError("a histogram needs edges in decimal numbers, and all else in integers of 64 bits.")
        indices = neurons.tolist()
        if len(set(indices)) < chosen or not all(0 <= neuron < width for neuron in indices):
            raise SpLensError(f"a histogram is of the neurons {indices[:5]}: expected each once, of {width}.")
        if size < 2 or not edges.isfinite().all() or not (edges.diff() > 0).all():
            raise SpLensError(f"a histogram has the edges {edges.tolist()[:5]}: expected two or more that ascend.")
        if (counts < 0).any() or (outside < 0).any():
            raise SpLensError("a histogram has negative counts.")

    def merge(self, other: "Histogram") -> "Histogram":
        """The histogram of both batches together."""
        if not torch.equal(self.edges, other.edges) or not torch.equal(self.neurons, other.neurons):
            raise SpLensError("histograms with different edges or neurons can't be merged: collect both with the same.")
        return Histogram(self.edges, self.neurons, self.counts + other.counts, self.outside + other.outside)


Edges = Float[torch.Tensor, " edge"]
