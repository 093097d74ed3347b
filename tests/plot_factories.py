"""Inputs for the tests of figures and pages: activation statistics, neuron values, top examples, and runs."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
import torch

import sp_lens as sp
from sp_lens.neurons.layout import Layout, NeuronGroup
from sp_lens.statistics.histogram import Histogram
from sp_lens.statistics.moments import Moments
from sp_lens.typing import Site

EDGES = torch.linspace(-1, 1, 11)  # bins of width 0.2
HOSTILE = "<script>alert('&')</script>"
CHROMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

# A model of two layers, whose first attention layer alone is recorded.
ATTN, MLP, LATER_MLP = NeuronGroup("attn", 0, 4, heads=2), NeuronGroup("mlp", 0, 20), NeuronGroup("mlp", 1, 20)
LAYOUT = Layout((ATTN, MLP, LATER_MLP))
MLP_LAYOUT = Layout((MLP, LATER_MLP))


def require_image_export() -> None:
    """Skip the test unless kaleido and a Chrome are installed, which plotly needs to write images."""
    pytest.importorskip("kaleido", reason="needs kaleido: pip install '.[export]'")
    if not any(map(shutil.which, CHROMES)):
        pytest.skip("needs a Chrome: apt-get install chromium, or plotly_get_chrome")


def traces(figure: go.Figure) -> list[Any]:
    """Return all traces of a figure, typed as Any, because type checkers do not understand the types of plotly."""
    return list(figure.select_traces())


def traces_with_mode(figure: go.Figure, mode: str) -> list[Any]:
    """Return the traces that are drawn as "lines" or as "markers"."""
    return [trace for trace in traces(figure) if trace.mode == mode]


def megabytes(figure: go.Figure) -> float:
    """Return the size of the figure as HTML, without plotly.js."""
    return len(figure.to_html(include_plotlyjs=False)) / 1e6


def normal(tokens: int = 500, neurons: int = 6, seed: int = 0) -> torch.Tensor:
    """Return normal activations [token neuron] with standard deviation 0.3."""
    return torch.randn(tokens, neurons, generator=torch.Generator().manual_seed(seed)) * 0.3


def varied(neurons: int = 30, tokens: int = 50, seed: int = 0) -> torch.Tensor:
    """Return normal activations [token neuron] of neurons whose means and standard deviations differ."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(tokens, neurons, generator=generator)
    return (z + torch.randn(neurons, generator=generator)) * torch.rand(neurons, generator=generator)


def stats_of(
    *layers: torch.Tensor,
    site: Site = "mlp",
    heads: int = 2,
    first_layer: int = 0,
    edges: torch.Tensor | None = None,
    **about: Any,
) -> sp.ActivationStats:
    """Return statistics of activations [token neuron], one tensor per layer.

    Args:
        layers: Activations of each layer.
        site: Site of all layers.
        heads: Number of attention heads per layer at site "attn".
        first_layer: Index of the first layer.
        edges: Edges of the histograms of all neurons; without edges there are no histograms.
        about: Provenance that the statistics record.
    """
    heads = heads if site == "attn" else 0
    groups = tuple(NeuronGroup(site, layer, z.shape[1], heads) for layer, z in enumerate(layers, first_layer))
    moments = {group.name: _moments(z, edges) for group, z in zip(groups, layers, strict=True)}
    return sp.ActivationStats(Layout(groups), moments, about)


def stats_with_histograms(
    *layers: torch.Tensor, site: Site = "attn", edges: torch.Tensor = EDGES, **options: Any
) -> sp.ActivationStats:
    """Call `stats_of` with attention neurons by default, and with histograms between -1 and 1."""
    return stats_of(*layers, site=site, edges=edges, **options)


def stats_with_folds(seed: int, neurons: int = 40, **options: Any) -> sp.ActivationStats:
    """Return statistics with histograms and 6 folds of 40 tokens; takes the options of `stats_with_histograms`."""
    scale = 1 + torch.rand(neurons, generator=torch.Generator().manual_seed(seed))
    parts = [normal(40, neurons, seed=10 * seed + fold) * scale for fold in range(6)]
    whole = stats_with_histograms(torch.cat(parts), model="tiny", **options)
    folds = tuple(stats_with_histograms(z, **options) for z in parts)
    return sp.ActivationStats(whole.layout, whole.moments, whole.about, folds)


def scaled_stats(scale: float, *, histograms: bool = True, layout: Layout = LAYOUT, **about: Any) -> sp.ActivationStats:
    """Return statistics of four tokens, on which neuron n has the activations scale * (n - 1) * (1, -1, 2, 0)."""
    moments = {}
    for group in layout:
        z = torch.tensor([1.0, -1, 2, 0])[:, None] * (torch.arange(group.width) - 1.0) * scale
        moments[group.name] = _moments(z, torch.linspace(-50, 50, 51) if histograms else None)
    return sp.ActivationStats(layout, moments, {"model": "tiny"} | about)


def _moments(z: torch.Tensor, edges: torch.Tensor | None) -> Moments:
    moments = Moments.from_activations(z)
    if edges is None:
        return moments
    return moments.with_histogram(Histogram.from_activations(z, edges, torch.arange(z.shape[1])))


def neuron_values(*layers: Sequence[float], site: Site = "mlp", heads: int = 0, **about: Any) -> sp.NeuronValues:
    """Return neuron values, one sequence per layer."""
    layout = Layout(tuple(NeuronGroup(site, layer, len(values), heads) for layer, values in enumerate(layers)))
    tensors = [torch.tensor(values, dtype=torch.float64) for values in layers]
    return sp.NeuronValues(layout, dict(zip(layout.names, tensors, strict=True)), about)


def head_values(*layers: Sequence[float], **about: Any) -> sp.HeadValues:
    """Return values of attention heads, one sequence per layer."""
    layout = Layout(
        tuple(NeuronGroup("attn", layer, 4 * len(values), len(values)) for layer, values in enumerate(layers))
    )
    tensors = [torch.tensor(values, dtype=torch.float64) for values in layers]
    return sp.HeadValues(layout, dict(zip(layout.names, tensors, strict=True)), about)


def scores_of(values: dict[str, list[float]] | None = None, layout: Layout = LAYOUT) -> sp.NeuronValues:
    """Return scores that are 0, except that `values` replace those of the first neurons of a group."""
    tensors = {group.name: torch.zeros(group.width, dtype=torch.float64) for group in layout}
    for name, some in (values or {}).items():
        tensors[name][: len(some)] = torch.tensor(some, dtype=torch.float64)
    return sp.NeuronValues(layout, tensors, {"model": "tiny", "metric": "abs", "eps": {"mlp": 0.001, "attn": 0.0001}})


def examples_of(
    tokens: tuple[str, ...] = ("</s>", "a", " b"), document: str | None = "book", count: int = 1
) -> sp.TopExamples:
    """Return the same context `count` times, for MLP neuron 3 of layer 0."""
    z = (float("nan"), *(0.5 for _ in tokens[2:]), -2.0)
    example = sp.Example(tokens, z, len(tokens) - 1, 4, 9, document)
    return sp.TopExamples(LAYOUT, {MLP.name: {3: (example,) * count}}, {"model": "tiny"})


def bin_densities(z: torch.Tensor) -> np.ndarray:
    """Return the density of activations [token] in each bin of EDGES: share of all tokens per unit of activation."""
    return np.histogram(z.double().numpy(), EDGES.double().numpy())[0] / len(z) / 0.2


def drawn_densities(trace: Any) -> np.ndarray:
    """Return the density in each bin of EDGES according to the hover texts of a density curve."""
    heights = np.zeros(10)
    heights[np.round((trace.customdata[:, 0] + 0.9) / 0.2).astype(int)] = trace.customdata[:, 1]
    return heights


def pruned_at_steps(*steps: int) -> torch.Tensor:
    """Return the step at which each neuron of a group is pruned, or 0 for a neuron that is never pruned."""
    return torch.tensor(steps, dtype=torch.int32)


def run_of(
    forget: Sequence[float] = (0.5, 0.3, 0.1),
    retain: Sequence[float] = (0.5, 0.4, 0.4),
    *,
    perplexity: tuple[Sequence[float], Sequence[float]] | None = None,
    layout: Layout = MLP_LAYOUT,
    pruned_at: Mapping[str, torch.Tensor] | None = None,
    **settings: Any,
) -> sp.PruneRun:
    """Return a pruning run with these accuracies.

    Args:
        forget: Top-1 accuracy on the forget corpus after each step, beginning with step 0.
        retain: Top-1 accuracy on the retain corpus.
        perplexity: Perplexities on the forget and retain corpus; by default 10, 100, 1000, ... and 20, 25, 30, ...
        layout: Neuron groups that are pruned.
        pruned_at: For each group, the step at which each neuron is pruned; by default no neuron is ever pruned.
        settings: Settings of the run that are added to or replace the default ones.
    """
    steps = range(len(forget))
    perplexity = perplexity or ([10.0 * 10**step for step in steps], [20.0 + 5 * step for step in steps])
    records = [
        {"step": step, "share": 0.05 * step}
        | {"forget_top1": forget[step], "retain_top1": retain[step]}
        | {"forget_perplexity": perplexity[0][step], "retain_perplexity": perplexity[1][step]}
        | {"forget_loss": math.log(perplexity[0][step]), "retain_loss": math.log(perplexity[1][step])}
        for step in steps
    ]
    if pruned_at is None:
        pruned_at = {group.name: torch.zeros(group.width, dtype=torch.int32) for group in layout}
    defaults = {"model": "tiny", "site": "mlp", "metric": "abs", "fraction": 0.05, "seed": None}
    return sp.PruneRun(layout, dict(pruned_at), records, defaults | settings)
