"""Statistics of every neuron over a corpus, as returned by `collect`. They can be merged and saved without a model."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float

from sp_lens.errors import SpLensError, check_at_least, check_choice, check_positive
from sp_lens.neurons.layout import Layout, NeuronGroup
from sp_lens.neurons.mapping import ABOUT
from sp_lens.neurons.mask import NeuronMask
from sp_lens.neurons.values import NeuronValues
from sp_lens.statistics.cache import ActivationsByHook, reduce_cache
from sp_lens.statistics.moments import Moments, stacked, standard_errors, unstacked
from sp_lens.storage.schema import Int64
from sp_lens.storage.serialization import opened, save_tensors
from sp_lens.typing import METRICS, Metric, Site

_FOLDS = "folds."  # prefix, in a file, of the names of tensors that have one row per fold


@dataclass(frozen=True, eq=False)
class ActivationStats(Mapping[str, Moments]):
    """Statistics of every neuron over the counted tokens of a corpus, by hook name.

    Attributes:
        layout: Neuron groups in the order of the layers.
        moments: Moments by hook name, from which freq, abs, rms, std, mean, min and max are computed.
        about: Model, positions, corpora and versions, saved with the statistics.
        folds: Statistics of each fold of documents, if they were collected (`collect(..., folds=20)`).
    """

    layout: Layout
    moments: Mapping[str, Moments]
    about: Mapping[str, Any] = field(default_factory=dict)
    folds: tuple["ActivationStats", ...] = ()

    def __post_init__(self) -> None:
        if set(self.moments) != set(self.layout.names):
            raise SpLensError(f"statistics need moments for each of {self.layout.names}, got {tuple(self.moments)}.")

    def __getitem__(self, name: str) -> Moments:
        return self.moments[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layout.names)

    def __len__(self) -> int:
        return len(self.layout)

    @property
    def count(self) -> int:
        """Number of counted tokens, see `collect`: by default without special tokens and the first token of a row."""
        return next(iter(self.moments.values())).count

    def part(self, layout: Layout) -> "ActivationStats":
        """Return the statistics of some of the groups, including folds: `stats.part(stats.layout.select("mlp"))`."""
        moments = {name: self[name] for name in layout.names}
        return ActivationStats(layout, moments, self.about, tuple(fold.part(layout) for fold in self.folds))

    def importance(self, metric: Metric = "abs") -> NeuronValues:
        """Return the importance of each neuron on this corpus (Definition 1 of arXiv 2403.01267).

        Args:
            metric: "freq" (share of tokens with z > 0), "abs" (mean of |z|), "rms" (root mean square of z) or "std"
                (standard deviation of z). All but "freq" have the unit of the activation z.

        Returns:
            Float64 values of shape [neuron] on the CPU, by hook name.
        """
        check_choice("metric", metric, METRICS)
        tensors = {name: getattr(self[name], metric)().cpu() for name in self}
        return NeuronValues(self.layout, tensors, {**self.about, "metric": metric})

    def standard_error(self, metric: Metric = "abs") -> NeuronValues:
        """Return the jackknife standard error of `importance`, which leaves out one fold of documents at a time.

        Args:
            metric: "freq", "abs", "rms" or "std", as for `importance`.

        Raises:
            SpLensError: If these statistics have no folds.
        """
        check_choice("metric", metric, METRICS)
        self.require_folds()
        tensors = {name: standard_errors([fold[name] for fold in self.folds], metric).cpu() for name in self}
        return NeuronValues(self.layout, tensors, {**self.about, "metric": metric})

    def require_folds(self) -> None:
        """Raise SpLensError if these statistics have no folds."""
        if not self.folds:
            raise SpLensError(
                "these statistics have no folds, so standard errors cannot be estimated: collect them by folds, "
                "collect(model, corpus, folds=20)."
            )

    def sinks(self, *, ratio: float = 10) -> NeuronMask:
        """Return the neurons of attention sinks: they are extremely active at tokens that do not count.

        At BOS or the first token of a row, models have a few extreme activations that all text needs (Sun et al. 2024,
        arXiv 2402.17762). In SmolLM2-135M one MLP neuron has an activation of 3000 there and below 3 on any text;
        others have 70 there, and again at a few tokens of text. Elsewhere the activation of such a neuron is little
        more than noise, and so is its score, but pruning it harms the model on every corpus. Exclude these neurons
        with `scores.top(0.02, site="mlp", exclude=stats.sinks())` or `prune(..., protect=stats.sinks())`.

        Args:
            ratio: Threshold on the largest |z| at uncounted tokens, divided by a large activation at counted ones: the
                neuron's own mean |z|, plus the largest |z| of the median neuron of its layer. The definition is ours.
                With a ratio of 10, about 20 of the 63,360 neurons of SmolLM2 exceed it, and none of the bundled model.

        Raises:
            SpLensError: If `ratio` is not positive, or the statistics count all positions, attention sinks included.
        """
        check_positive(ratio=ratio)
        if self.about.get("positions") == "all":
            raise SpLensError("statistics of positions='all' include the sinks: collect with positions='text'.")
        tensors = {}
        for name, moments in self.items():
            large = moments.abs() + torch.maximum(moments.min.abs(), moments.max.abs()).median()
            tensors[name] = (moments.uncounted_peak > ratio * large).cpu()
        return NeuronMask(self.layout, tensors, {**self.about, "ratio": ratio})

    def merge(self, other: "ActivationStats") -> "ActivationStats":
        """Return the statistics of both corpora. The order of merging changes the result by at most 1e-12.

        Folds are merged pairwise, the first with the first.

        Raises:
            SpLensError: If `require_comparable` raises it, or their histograms or numbers of folds differ.
        """
        self.require_comparable(other)
        if len(self.folds) != len(other.folds):
            raise SpLensError(
                f"statistics with {len(self.folds)} and {len(other.folds)} folds cannot be merged. Collect both with "
                "the same number of folds."
            )
        moments = {name: self[name].merge(other[name]) for name in self}
        about = {**self.about, "corpora": [*self.about.get("corpora", []), *other.about.get("corpora", [])]}
        if "documents" in self.about:  # these are folds
            numbers = [stats.about["documents"] for stats in (self, other) if stats.about.get("documents")]
            about["documents"] = sum(numbers) if len(numbers) == 2 else None
        folds = tuple(a.merge(b) for a, b in zip(self.folds, other.folds, strict=True))
        return ActivationStats(self.layout, moments, about, folds)

    def require_comparable(self, other: "ActivationStats") -> None:
        """Raise SpLensError if the layouts differ, or the models' names or the counted positions, if both are known."""
        self.layout.require_same(other.layout, "the other statistics")
        for key, name in (("model", "models"), ("positions", "token positions")):
            values = {stats.about[key] for stats in (self, other) if stats.about.get(key)}
            if len(values) > 1:
                raise SpLensError(
                    f"these statistics are of different {name}, {sorted(values)}. Collect both with the same {key}."
                )

    def frame(self) -> pd.DataFrame:
        """Return a DataFrame with one row per neuron.

        The columns are site, layer, head, neuron, freq, abs, rms, std, mean, min, max and count. With folds, there are
        also the standard errors freq_error, abs_error, rms_error and std_error.
        """
        metrics: tuple[Metric, ...] = ("freq", "abs", "rms", "std")
        columns: dict[Metric, NeuronValues] = {metric: self.importance(metric) for metric in metrics}
        frame = columns["freq"].frame().drop(columns="value")
        for metric, values in columns.items():
            frame[metric] = np.concatenate([values[name].cpu().numpy() for name in self])
        for column in ("mean", "min", "max"):
            frame[column] = np.concatenate([getattr(self[name], column).cpu().numpy() for name in self])
        for metric in columns if self.folds else ():
            errors = self.standard_error(metric)
            frame[f"{metric}_error"] = np.concatenate([errors[name].numpy() for name in self])
        return frame.assign(count=self.count)

    def edges(
        self, site: Site, *, layer: int | None = None, neurons: NeuronMask | None = None, bins: int = 100
    ) -> Float[torch.Tensor, " edge"]:
        """Return evenly spaced histogram edges from the smallest to the largest activation, for a second pass.

        Args:
            site: Site whose activations the edges span, "mlp" or "attn".
            layer: Layer whose activations the edges span. None spans those of all layers.
            neurons: Neurons whose activations the edges span. None spans those of all neurons.
            bins: Number of bins between the edges.

        Raises:
            SpLensError: If there is no such site or layer, `neurons` has none of the site, or `bins` is below 1.
        """
        check_at_least(1, bins=bins)
        groups = self.layout.select(site) if layer is None else [self._group(site, layer)]
        chosen = [(self[group.name], ... if neurons is None else neurons.get(group.name, [])) for group in groups]
        lows = torch.cat([moments.min[indices].cpu() for moments, indices in chosen])
        highs = torch.cat([moments.max[indices].cpu() for moments, indices in chosen])
        if not len(lows):
            raise SpLensError(f"the mask has no neuron at site {site!r}: expected at least one to take the range of.")
        low, high = float(lows.min()), float(highs.max())
        if low == high:  # a constant activation: any bin around it will do
            low, high = low - 0.5, high + 0.5
        return torch.linspace(low, high, bins + 1, dtype=torch.float32)

    def histogram_frame(self, site: Site, layer: int, neurons: Iterable[int] | None = None) -> pd.DataFrame:
        """Return the histograms of one layer as a DataFrame with one row per neuron and bin.

        Args:
            site: Site of the histograms, "mlp" or "attn".
            layer: Layer of the histograms.
            neurons: Indices of neurons in the layer. None returns all neurons that have a histogram.

        Returns:
            The columns neuron, left, right, tokens and density. `density` is the share of all tokens per unit of
            activation: times the widths of the bins, it sums to 1 if no token is outside the edges.

        Raises:
            SpLensError: If no histogram was collected there, or not for one of the neurons.
        """
        group = self._group(site, layer)
        histogram = self[group.name].histogram
        if histogram is None:
            raise SpLensError(
                f"no histogram of {group.name} was collected: collect_histograms(model, corpora, site={site!r}) "
                "collects it."
            )
        return histogram.frame(self.count, neurons)

    def _group(self, site: Site, layer: int) -> NeuronGroup:
        by_layer = {group.layer: group for group in self.layout.select(site)}
        if layer not in by_layer:
            raise SpLensError(
                f"no layer {layer} at site {site!r}: there are layers {min(by_layer)} to {max(by_layer)}."
            )
        return by_layer[layer]

    @classmethod
    def from_cache(
        cls, cache: ActivationsByHook, *, counted: Bool[torch.Tensor, "*batch pos"] | None = None
    ) -> "ActivationStats":
        """Compute the statistics of activations that were kept, such as a TransformerLens `ActivationCache`.

        Args:
            cache: Activations by hook name: `blocks.{l}.mlp.hook_post` [batch pos neuron],
                `blocks.{l}.attn.hook_z` [batch pos head d_head], or both. The batch axis may have been removed.
            counted: True at the positions that count. None counts all of them, including BOS and padding.

        Raises:
            SpLensError: If the cache has neither hook, or `counted` does not fit its activations.
        """
        return cls(*reduce_cache(cache, counted))

    def save(self, path: str | Path) -> None:
        """Write to a safetensors file, atomically."""
        tensors = {f"{name}/{key}": tensor for name in self for key, tensor in self[name].tensors().items()}
        header = {"layout": self.layout.to_json(), "about": self.about, "count": self.count}
        if self.folds:
            header["folds"] = [fold.count for fold in self.folds]
            header["fold_documents"] = [fold.about.get("documents") for fold in self.folds]
            by_name = {name: stacked([fold[name] for fold in self.folds]) for name in self}
            tensors |= {f"{name}/{_FOLDS}{key}": tensor for name in self for key, tensor in by_name[name].items()}
        save_tensors(path, "ActivationStats", tensors, header)

    @classmethod
    def load(cls, path: str | Path) -> "ActivationStats":
        """Read a file that `save` wrote.

        Raises:
            SpLensError: If the file is missing, truncated, not written by sp_lens, or of another kind.
        """
        types = {"layout": Any, "about": ABOUT, "count": Int64, "folds": Sequence[Int64] | None}
        types["fold_documents"] = Sequence[Int64 | None] | None
        with opened(path, "ActivationStats", types) as (tensors, header):
            layout = Layout.from_json(header["layout"])
            grouped: dict[str, dict[str, torch.Tensor]] = {name: {} for name in layout.names}
            for key, tensor in tensors.items():
                name, _, part = key.partition("/")
                grouped[name][part] = tensor
            counts = header.get("folds") or []
            by_name = {}
            for name, parts in grouped.items():
                rows = {key.removeprefix(_FOLDS): parts.pop(key) for key in list(parts) if key.startswith(_FOLDS)}
                by_name[name] = unstacked(counts, rows)
            moments = {name: Moments.from_tensors(header["count"], parts) for name, parts in grouped.items()}
            for group in layout:
                for checked in (moments[group.name], *by_name[group.name]):
                    checked.check(group.width)
            model = {key: value for key, value in header["about"].items() if key == "model"}
            documents = header.get("fold_documents") or [None] * len(counts)  # files of earlier versions have none
            if len(documents) != len(counts):
                raise SpLensError(f"it has numbers of documents of {len(documents)} folds: expected {len(counts)}.")
            folds = tuple(
                cls(layout, {name: parts[index] for name, parts in by_name.items()}, {**model, "documents": number})
                for index, number in enumerate(documents)
            )
            return cls(layout, moments, header["about"], folds)

    def __repr__(self) -> str:
        folds = f" in {len(self.folds)} folds" if self.folds else ""
        return f"ActivationStats({self.count} tokens{folds}, {self.layout})"
