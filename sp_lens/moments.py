"""Streaming statistics of a group of neurons: batches come in, merge in any order, one result.

A batch is reduced in float32 (measured over 200k tokens: bfloat16 sums are 30 % off, float16 overflows);
batches are merged in float64 by Chan's formula, since E[x^2] - E[x]^2 loses the variance of a neuron with
a large mean. Counts are integers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float, Int

from sp_lens.errors import SpLensError
from sp_lens.fitting import check_at_least

# Tokens that are reduced together on a CPU, so that what is made of them stays in its cache: three times as fast.
_AT_ONCE = 512


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
    def of(
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


@dataclass(frozen=True, eq=False)
class Moments:
    """What one pass keeps of every neuron of a group; all of it float64 except the counts.

    Attributes:
        count: tokens seen.
        positive: tokens with z > 0.
        absolute: sum of |z|.
        mean: mean of z.
        squares: sum of (z - mean)^2.
        min: smallest z.
        max: largest z.
        uncounted_peak: largest |z| where tokens don't count (BOS, the first token of a row); 0 if there was none.
        histogram: counts between fixed edges, if asked for.
    """

    count: int
    positive: Int[torch.Tensor, " neuron"]
    absolute: Float[torch.Tensor, " neuron"]
    mean: Float[torch.Tensor, " neuron"]
    squares: Float[torch.Tensor, " neuron"]
    min: Float[torch.Tensor, " neuron"]
    max: Float[torch.Tensor, " neuron"]
    uncounted_peak: Float[torch.Tensor, " neuron"]
    histogram: Histogram | None = None

    @classmethod
    def of(
        cls,
        activations: Float[torch.Tensor, "position neuron"],
        *,
        counted: Int[torch.Tensor, " token"] | None = None,
        uncounted: Int[torch.Tensor, " other"] | None = None,
    ) -> "Moments":
        """Reduce one batch.

        Args:
            activations: of any float type.
            counted: the positions that count, at least one; None is all of them.
            uncounted: the positions of which the peak is kept; None is of none.
        """
        x = activations.detach()
        sizes, pieces = zip(*((len(piece), _reduced(piece.float())) for piece in _pieces(x, counted)), strict=True)
        *sums, low, high = torch.stack(pieces, dim=1).unbind()
        rounded, rest, squares, positive, absolute = map(_state, sums)
        counts = torch.tensor(sizes, dtype=rounded.dtype, device=rounded.device).unsqueeze(1)
        # Chan, Golub & LeVeque 1979 once more, here of all pieces at once.
        means = rounded + rest
        mean = (counts * means).sum(dim=0) / sum(sizes)
        squares = squares - counts * rest**2 + counts * (means - mean) ** 2
        peak = torch.zeros_like(mean)
        if uncounted is not None and len(uncounted):
            peak = _state(x.index_select(0, uncounted.to(x.device)).abs().amax(dim=0))
        return cls(
            count=sum(sizes),
            positive=positive.sum(dim=0).long(),
            absolute=absolute.sum(dim=0),
            mean=mean,
            squares=squares.sum(dim=0).clamp(min=0),
            min=_state(low.amin(dim=0)),
            max=_state(high.amax(dim=0)),
            uncounted_peak=peak,
        )

    def with_histogram(self, histogram: Histogram) -> "Moments":
        """These moments, and a histogram of the same batch."""
        return replace(self, histogram=histogram)

    def merge(self, other: "Moments") -> "Moments":
        """The moments of both batches together (Chan, Golub & LeVeque 1979, eq. 2.1)."""
        count = self.count + other.count
        delta = other.mean - self.mean
        histogram = self.histogram
        if histogram is not None and other.histogram is not None:
            histogram = histogram.merge(other.histogram)
        elif (histogram is None) != (other.histogram is None):
            raise SpLensError("statistics with and without histograms can't be merged: collect both alike.")
        return Moments(
            count=count,
            positive=self.positive + other.positive,
            absolute=self.absolute + other.absolute,
            mean=self.mean + delta * (other.count / count),
            squares=self.squares + other.squares + delta**2 * (self.count * other.count / count),
            min=torch.minimum(self.min, other.min),
            max=torch.maximum(self.max, other.max),
            uncounted_peak=torch.maximum(self.uncounted_peak, other.uncounted_peak),
            histogram=histogram,
        )

    def among(self, neurons: Int[torch.Tensor, " neuron"], width: int) -> "Moments":
        """The first of these moments as those of `neurons` in a group of `width`, where the others are always at zero.

        Without the histogram, which counts neurons by their index.
        """

        def spread(tensor: torch.Tensor) -> torch.Tensor:
            whole = tensor.new_zeros(width)
            whole[neurons.to(tensor.device)] = tensor[: len(neurons)]
            return whole

        plain = replace(self, histogram=None).tensors()
        return Moments.from_tensors(self.count, {name: spread(tensor) for name, tensor in plain.items()})

    def freq(self) -> Float[torch.Tensor, " neuron"]:
        """Share of tokens with z > 0."""
        return self.positive.double() / self.count

    def abs(self) -> Float[torch.Tensor, " neuron"]:
        """Mean of |z|."""
        return self.absolute / self.count

    def rms(self) -> Float[torch.Tensor, " neuron"]:
        """Root of the mean of z^2."""
        return (self.squares / self.count + self.mean**2).sqrt()

    def std(self) -> Float[torch.Tensor, " neuron"]:
        """Root of the mean of (z - mean z)^2."""
        return (self.squares / self.count).sqrt()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything but the count, by name, histogram included: what goes into a file."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("count", "histogram")}
        if self.histogram is not None:
            plain |= {f"histogram.{f.name}": getattr(self.histogram, f.name) for f in fields(Histogram)}
        return plain

    @classmethod
    def from_tensors(cls, count: int, tensors: dict[str, torch.Tensor]) -> "Moments":
        """The inverse of `tensors`.

        Raises:
            SpLensError: when there are others, or too few.
        """
        plain = {name: tensor for name, tensor in tensors.items() if not name.startswith("histogram.")}
        parts = {name.removeprefix("histogram."): tensors[name] for name in tensors.keys() - plain.keys()}
        wanted = {f.name for f in fields(cls)} - {"count", "histogram"}
        if plain.keys() != wanted or (parts and parts.keys() != {f.name for f in fields(Histogram)}):
            raise SpLensError(f"moments need {sorted(wanted)}, got {sorted(tensors)}.")
        return cls(count=count, histogram=Histogram(**parts) if parts else None, **plain)

    def check(self, width: int) -> None:
        """Refuse what no text can have given for so many neurons: other sizes, negative sums, more than all tokens.

        Raises:
            SpLensError: naming the part.
        """
        check_at_least(1, count=self.count)
        for name, tensor in self.tensors().items():
            if name.startswith("histogram."):
                continue
            if (shape := tuple(tensor.shape)) != (width,) or tensor.is_floating_point() == (name == "positive"):
                raise SpLensError(f"{name} is {tensor.dtype} {shape}: expected a number a neuron, {width} of them.")
            if not tensor.isfinite().all() or (name not in ("mean", "min", "max") and (tensor < 0).any()):
                raise SpLensError(f"{name} has a value that is negative or no number: expected none.")
        if (self.positive > self.count).any() or (self.min > self.max).any():
            raise SpLensError("a neuron is above 0 on more tokens than there are, or its min is above its max.")
        if self.histogram is not None:
            self.histogram.check(width)


def stacked(blocks: Sequence[Moments]) -> dict[str, torch.Tensor]:
    """The tensors of several moments, each with a row for each of them: what goes into a file."""
    parts = [block.tensors() for block in blocks]
    return {key: torch.stack([part[key] for part in parts]) for key in parts[0]} if parts else {}


def unstacked(counts: Sequence[int], tensors: dict[str, torch.Tensor]) -> list[Moments]:
    """The inverse of `stacked`.

    Raises:
        SpLensError: when a tensor has more or fewer rows than there are counts.
    """
    if unfit := [key for key, tensor in tensors.items() if tensor.shape[:1] != (len(counts),)]:
        raise SpLensError(f"there are {len(counts)} blocks, and {unfit[0]!r} is {tuple(tensors[unfit[0]].shape)}.")
    rows = ({key: tensor[row] for key, tensor in tensors.items()} for row in range(len(counts)))
    return [Moments.from_tensors(count, row) for count, row in zip(counts, rows, strict=True)]


def _pieces(
    x: Float[torch.Tensor, "position neuron"], counted: Int[torch.Tensor, " token"] | None
) -> Iterator[Float[torch.Tensor, "token neuron"]]:
    """What counts: on a CPU as many positions at a time as are reduced together, elsewhere all at once."""
    if x.device.type != "cpu":
        yield x if counted is None else x.index_select(0, counted.to(x.device))
        return
    for places in (torch.arange(len(x)) if counted is None else counted).split(_AT_ONCE):
        yield x.index_select(0, places)


def _reduced(x: Float[torch.Tensor, "token neuron"]) -> Float[torch.Tensor, "kind neuron"]:
    """Of some tokens: mean, what it lost by rounding, squares around it, tokens above 0, sum of |z|, min and max."""
    # torch's sum adds pairwise (within 3e-7 on 4096 tokens); vector_norm adds in a row (3e-5, and slower).
    # One buffer for all, of floats also for what is above 0: booleans take twelve times as long to make and to add up.
    buffer = torch.empty_like(x)
    mean = x.mean(dim=0)
    deviation = torch.sub(x, mean, out=buffer)
    # With a mean of 1000, what rounding it to float32 left over would put a std of 0.01 off by 1e-4.
    rest = deviation.mean(dim=0)
    squares = deviation.square_().sum(dim=0)
    # Ones add up exactly in float32 to 2^24 tokens, far above a batch.
    positive = torch.gt(x, 0, out=buffer).sum(dim=0)
    absolute = torch.abs(x, out=buffer).sum(dim=0)
    return torch.stack([mean, rest, squares, positive, absolute, x.amin(dim=0), x.amax(dim=0)])


def _state(reduced: Float[torch.Tensor, "*any neuron"]) -> Float[torch.Tensor, "*any neuron"]:
    """In float64, where the activation is; on the CPU for Apple's GPUs, which have no float64."""
    return (reduced.cpu() if reduced.device.type == "mps" else reduced).double()
