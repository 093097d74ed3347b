"""Statistics of every neuron over a corpus: what `collect` returns. Mergeable, saveable; no model in here."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float

from sp_lens.errors import SpLensError, check_choice
from sp_lens.neurons.layout import Layout, NeuronGroup, group_of_activation
from sp_lens.neurons.mapping import ABOUT
from sp_lens.neurons.mask import NeuronMask
from sp_lens.neurons.values import NeuronValues
from sp_lens.statistics.moments import Moments, stacked, standard_errors, unstacked
from sp_lens.storage.schema import Int64
from sp_lens.storage.serialization import opened, save_tensors
from sp_lens.typing import METRICS, Metric, Site

_FOLDS = "folds."  # before the names of tensors that have a row a fold, in a file


@dataclass(frozen=True, eq=False)
class ActivationStats(Mapping[str, Moments]):
    """Streamed statistics of every neuron over the counted tokens of a corpus, by hook name.

    Attributes:
        layout: the neuron groups, in layer order.
        moments: by hook name, what one pass keeps (freq, abs, rms, std, mean, min, max).
        about: model, corpora, number of tokens, versions; saved with the numbers.
        folds: the statistics of each fold of documents, where they were kept (`collect(..., folds=20)`).
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
        """Number of tokens; padding, special tokens and the first token of a row never count."""
        return next(iter(self.moments.values())).count

    def part(self, layout: Layout) -> "ActivationStats":
        """The statistics of some of the groups, folds included; `stats.part(stats.layout.select("mlp"))`."""
        moments = {name: self[name] for name in layout.names}
        return ActivationStats(layout, moments, self.about, tuple(fold.part(layout) for fold in self.folds))

    def importance(self, metric: Metric = "abs") -> NeuronValues:
        """Definition 1 of arXiv 2403.01267: how much a neuron does on this corpus, in units of activation.

        Args:
            metric: "freq" (share of tokens with z > 0, no unit), "abs" (mean |z|), "rms" (root mean
                square) or "std" (root mean squared deviation from the mean).

        Returns:
            float64 values on the CPU, `{hook name: Float[" neuron"]}`.
        """
        check_choice("metric", metric, METRICS)
        tensors = {name: getattr(self[name], metric)().cpu() for name in self}
        return NeuronValues(self.layout, tensors, {**self.about, "metric": metric})

    def standard_error(self, metric: Metric = "abs") -> NeuronValues:
        """The jackknife's standard error of `importance`: each fold of documents is left out once.

        Raises:
            SpLensError: when no statistics of folds were kept.
        """
        check_choice("metric", metric, METRICS)
        self.require_folds()
        tensors = {name: standard_errors([fold[name] for fold in self.folds], metric).cpu() for name in self}
        return NeuronValues(self.layout, tensors, {**self.about, "metric": metric})

    def require_folds(self) -> None:
        """Refuse statistics of a corpus as a whole, which don't say how sure they are."""
        if not self.folds:
            raise SpLensError(
                "these statistics are of a corpus as a whole and don't say how sure they are: collect them by folds, "
                "collect(model, corpus, folds=20)."
            )

    def sinks(self, *, ratio: float = 10) -> NeuronMask:
        """The neurons that are huge where no token counts: those of attention sinks.

        On the BOS, or the first token of a row, models keep a few huge activations that all text needs
        (Sun et al. 2024, arXiv 2402.17762): in SmolLM2-135M one MLP neuron is at 3000 there and below 3 on
        any text, others are at 70 there and again at a few tokens of text. What such a neuron does on the
        rest is little more than noise, and so is its score; to prune it costs every corpus alike. Spare
        them: `scores.top(0.02, site="mlp", exclude=stats.sinks())`, `prune(..., protect=stats.sinks())`.

        Args:
            ratio: a neuron is of a sink whose largest |z| there is above this many times what is large on
                tokens that count: its own mean |z|, plus the largest |z| of the median neuron of its layer.
                The definition is ours; with 10, about 20 of SmolLM2's 63,360 neurons are, and none of the
                bundled model's.
        """
        if not ratio > 0:
            raise SpLensError(f"ratio {ratio}: expected a number above 0.")
        tensors = {}
        for name, moments in self.items():
            large = moments.abs() + torch.maximum(moments.min.abs(), moments.max.abs()).median()
            tensors[name] = (moments.uncounted_peak > ratio * large).cpu()
        return NeuronMask(self.layout, tensors, {**self.about, "ratio": ratio})

    def merge(self, other: "ActivationStats") -> "ActivationStats":
        """The statistics of both corpora together; in any order the same to 1e-12. Blocks merge one to one.

        Raises:
            SpLensError: when the two are of different models, or differ in their histograms or number of folds.
        """
        self.require_same_model(other)
        if len(self.folds) != len(other.folds):
            raise SpLensError(
                f"statistics of {len(self.folds)} and {len(other.folds)} folds can't be merged: collect both alike."
            )
        moments = {name: self[name].merge(other[name]) for name in self}
        about = {**self.about, "corpora": [*self.about.get("corpora", []), *other.about.get("corpora", [])]}
        folds = tuple(one.merge(two) for one, two in zip(self.folds, other.folds, strict=True))
        return ActivationStats(self.layout, moments, about, folds)

    def require_same_model(self, other: "ActivationStats") -> None:
        """Refuse statistics of another model: another layout, or another name where both are known."""
        self.layout.require_same(other.layout, "the other statistics")
        names = {stats.about["model"] for stats in (self, other) if stats.about.get("model")}
        if len(names) > 1:
            raise SpLensError(
                f"these statistics are of different models, {sorted(names)}: collect both from one model."
            )

    def frame(self) -> pd.DataFrame:
        """One row a neuron: site, layer, head, neuron, freq, abs, rms, std, mean, min, max, count.

        With folds there are standard errors too: freq_error, abs_error, rms_error, std_error.
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
        """Even histogram edges from the smallest to the largest activation at `site`, for a second pass.

        Args:
            site: "mlp" or "attn".
            layer: take the range of this layer alone; None takes that of all layers.
            neurons: take the range of these neurons alone; None takes that of all.
            bins: how many.

        Raises:
            SpLensError: when there is no such site or layer, no neuron or no bin.
        """
        if bins < 1:
            raise SpLensError(f"bins {bins}: expected 1 or more.")
        groups = self.layout.select(site) if layer is None else [self._group(site, layer)]
        chosen = [(self[group.name], ... if neurons is None else neurons.get(group.name, [])) for group in groups]
        lows = torch.cat([moments.min[which].cpu() for moments, which in chosen])
        highs = torch.cat([moments.max[which].cpu() for moments, which in chosen])
        if not len(lows):
            raise SpLensError(f"the mask has no neuron at site {site!r}: expected some whose range to take.")
        low, high = float(lows.min()), float(highs.max())
        if low == high:  # neurons that never vary: any bin around the one value
            low, high = low - 0.5, high + 0.5
        return torch.linspace(low, high, bins + 1, dtype=torch.float32)

    def histogram_frame(self, site: Site, layer: int, neurons: Any = None) -> pd.DataFrame:
        """The histograms of one layer, one row a neuron and bin: neuron, left, right, tokens, density.

        Args:
            site: "mlp" or "attn".
            layer: the block.
            neurons: which of the collected neurons (indices into the layer); None is all of them.

        Returns:
            `density` is the share of all tokens per unit of activation, so its sum over the bins times
            their width is 1 where no token lay outside the edges.

        Raises:
            SpLensError: when no histogram was collected there, or not of one of the neurons.
        """
        group = self._group(site, layer)
        histogram = self[group.name].histogram
        if histogram is None:
            raise SpLensError(
                f"no histogram of {group.name} was collected: collect_histograms(model, corpora, site={site!r}) does."
            )
        row_of = {neuron: row for row, neuron in enumerate(histogram.neurons.tolist())}
        chosen = list(row_of) if neurons is None else [int(neuron) for neuron in neurons]
        if missing := [neuron for neuron in chosen if neuron not in row_of]:
            raise SpLensError(
                f"no histogram of neurons {missing[:5]} of {group.name}: collected were {len(row_of)} of them."
            )
        counts = histogram.counts[[row_of[neuron] for neuron in chosen]].cpu().numpy()
        edges = histogram.edges.cpu().numpy().astype(float)
        bins = len(edges) - 1
        return pd.DataFrame(
            {
                "neuron": np.repeat(chosen, bins),
                "left": np.tile(edges[:-1], len(chosen)),
                "right": np.tile(edges[1:], len(chosen)),
                "tokens": counts.ravel(),
                "density": (counts / (self.count * np.diff(edges))).ravel(),
            }
        )

    def _group(self, site: Site, layer: int) -> NeuronGroup:
        by_layer = {group.layer: group for group in self.layout.select(site)}
        if layer not in by_layer:
            raise SpLensError(
                f"no layer {layer} at site {site!r}: there are layers {min(by_layer)} to {max(by_layer)}."
            )
        return by_layer[layer]

    @classmethod
    def from_cache(
        cls, cache: Mapping[str, torch.Tensor], *, counted: Bool[torch.Tensor, "*batch pos"] | None = None
    ) -> "ActivationStats":
        """The statistics of activations that are already held: a TransformerLens `ActivationCache`.

        Args:
            cache: has `blocks.{l}.mlp.hook_post` [batch pos neuron] or `blocks.{l}.attn.hook_z`
                [batch pos head d_head], or both; the batch axis may have been removed.
            counted: which positions count; None is all of them, BOS and padding included.

        Raises:
            SpLensError: when the cache has neither hook.
        """
        found = [group_of_activation(name, tuple(cache[name].shape)) for name in cache.keys()]  # noqa: SIM118 (an ActivationCache iterates over numbers)
        groups = sorted((group for group in found if group), key=lambda group: (group.layer, group.site))
        if not groups:
            raise SpLensError("the cache has no mlp.hook_post and no attn.hook_z: cache those hooks too.")
        moments = {}
        for group in groups:
            activations = cache[group.name].reshape(-1, group.width)
            if counted is not None:
                if counted.numel() != len(activations) or not counted.any():
                    raise SpLensError(
                        f"counted has {counted.numel()} positions of which {int(counted.sum())} count, and "
                        f"{group.name} has {len(activations)}: give one boolean a position, some of them True."
                    )
                activations = activations[counted.flatten().bool()]
            moments[group.name] = Moments.from_activations(activations)
        return cls(Layout(tuple(groups)), moments)

    def save(self, path: str | Path) -> None:
        """Write to a safetensors file, whole or not at all."""
        tensors = {f"{name}/{key}": tensor for name in self for key, tensor in self[name].tensors().items()}
        header = {"layout": self.layout.to_json(), "about": self.about, "count": self.count}
        if self.folds:
            header["folds"] = [fold.count for fold in self.folds]
            of_folds = {name: stacked([fold[name] for fold in self.folds]) for name in self}
            tensors |= {f"{name}/{_FOLDS}{key}": tensor for name in self for key, tensor in of_folds[name].items()}
        save_tensors(path, "ActivationStats", tensors, header)

    @classmethod
    def load(cls, path: str | Path) -> "ActivationStats":
        """Read what `save` wrote.

        Raises:
            SpLensError: when the file is missing, cut short, foreign, or holds something else.
        """
        wanted = {"layout": Any, "about": ABOUT, "count": Int64, "folds": Sequence[Int64] | None}
        with opened(path, "ActivationStats", wanted) as (tensors, header):
            layout = Layout.from_json(header["layout"])
            grouped: dict[str, dict[str, torch.Tensor]] = {name: {} for name in layout.names}
            for key, tensor in tensors.items():
                name, _, part = key.partition("/")
                grouped[name][part] = tensor
            counts = header.get("folds") or []
            by_fold = {}
            for name, parts in grouped.items():
                own = {key.removeprefix(_FOLDS): parts.pop(key) for key in list(parts) if key.startswith(_FOLDS)}
                by_fold[name] = unstacked(counts, own)
            moments = {name: Moments.from_tensors(header["count"], parts) for name, parts in grouped.items()}
            for group in layout:
                for one in (moments[group.name], *by_fold[group.name]):
                    one.check(group.width)
            model = {key: value for key, value in header["about"].items() if key == "model"}
            folds = ({name: own[place] for name, own in by_fold.items()} for place in range(len(counts)))
            return cls(layout, moments, header["about"], tuple(cls(layout, fold, model) for fold in folds))

    def __repr__(self) -> str:
        folds = f" in {len(self.folds)} folds" if self.folds else ""
        return f"ActivationStats({self.count} tokens{folds}, {self.layout})"
