"""Streaming statistics of a group of neurons: batches come in, merge in any order, one result.

A batch is reduced in float32 (measured over 200k tokens: bfloat16 sums are 30 % off, float16 overflows);
batches are merged in float64 by Chan's formula, since E[x^2] - E[x]^2 loses the variance of a neuron with
a large mean. Counts are integers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate

import torch
from jaxtyping import Float, Int

from sp_lens.errors import SpLensError, check_at_least
from sp_lens.statistics.histogram import Histogram

# Tokens that are reduced together on a CPU, so that what is made of them stays in its cache: three times as fast.
_AT_ONCE = 512


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
    def from_activations(
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


def stacked(folds: Sequence[Moments]) -> dict[str, torch.Tensor]:
    """The tensors of several moments, each with a row for each of them: what goes into a file."""
    parts = [fold.tensors() for fold in folds]
    return {key: torch.stack([part[key] for part in parts]) for key in parts[0]} if parts else {}


def unstacked(counts: Sequence[int], tensors: dict[str, torch.Tensor]) -> list[Moments]:
    """The inverse of `stacked`.

    Raises:
        SpLensError: when a tensor has more or fewer rows than there are counts.
    """
    if unfit := [key for key, tensor in tensors.items() if tensor.shape[:1] != (len(counts),)]:
        raise SpLensError(f"there are {len(counts)} folds, and {unfit[0]!r} is {tuple(tensors[unfit[0]].shape)}.")
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


def leave_one_out(folds: Sequence[Moments]) -> list[Moments]:
    """For each fold, the moments of all the others together; two or more folds.

    Merged, never subtracted, so nothing is lost to cancellation: what is before a fold with what is behind it.
    """
    before = [None, *accumulate(folds[:-1], Moments.merge)]
    behind = [*list(accumulate(reversed(folds[1:]), Moments.merge))[::-1], None]
    return [one.merge(two) if one and two else one or two for one, two in zip(before, behind, strict=True)]  # type: ignore[misc]


def standard_errors(folds: Sequence[Moments], metric: str) -> Float[torch.Tensor, " neuron"]:
    """The standard error of an importance: sqrt((B - 1) / B * sum over folds of (left out - their mean)^2).

    Tukey 1958; folds of documents, not tokens or single documents, are left out (Kott 2001, "The delete-a-group
    jackknife"): tokens of a document are alike, and folds are few enough to keep.
    """
    left = torch.stack([getattr(others, metric)() for others in leave_one_out(folds)])
    return ((left - left.mean(dim=0)).square().sum(dim=0) * (len(left) - 1) / len(left)).sqrt()
