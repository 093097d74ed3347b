"""Activation densities of chosen neurons, one row per neuron, corpora overlaid (not in the paper; cf. Figure 5)."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from sp_lens.errors import SpLensError
from sp_lens.plots._labels import SITE_NAMES, model_prefix
from sp_lens.plots._layout import corpus_colours, finish
from sp_lens.plots.distributions import _histograms
from sp_lens.plots.distributions._histograms import Histograms
from sp_lens.plots.themes import TEMPLATES

if TYPE_CHECKING:
    from sp_lens.neurons.mask import NeuronMask
    from sp_lens.statistics.activation_stats import ActivationStats
    from sp_lens.typing import Site

MAX_ROWS = 40
PEAK_HEIGHT = 0.92  # height of the highest density relative to a row, so that rows never touch

Neuron = tuple[int, int]  # layer, index in the layer


def ridgeline(
    stats_by_corpus: "Mapping[str, ActivationStats]",
    *,
    site: "Site",
    neurons: "NeuronMask | Iterable[tuple[int, int]]",
) -> go.Figure:
    """Plot the activation densities of chosen neurons of any layers, one row per neuron (not a figure of the paper).

    Heights are logarithms of the density on one common scale, which the subtitle states: the base line of a row is
    half the smallest density above zero. The outlines are streamed histograms, as in `density`.

    Args:
        stats_by_corpus: Statistics of each corpus by label, at most 7, with histograms of these neurons between the
            same edges, as returned by `collect_histograms`.
        site: Site of the neurons, "mlp" or "attn".
        neurons: Mask of at most 40 neurons, such as `sp.specialisation(...)["code"].top(0.01, site="mlp")`, whose rows
            are ordered by layer; or pairs (layer, neuron), whose order is kept.

    Returns:
        Figure with the activation z on the x axis and a tick for each neuron on the y axis, the first at the top.
        There is one trace per neuron and corpus; clicking on a corpus in the legend hides it in all rows.

    Raises:
        SpLensError: If there is no corpus or more than 7, no neuron or more than 40, the statistics belong to
            different models, one of the neurons has no histogram, the edges differ between corpora, or all
            activations lie outside the edges.

    Example:
        >>> import sp_lens as sp
        >>> sp.plots.ridgeline({}, site="mlp", neurons=[(0, 3)])
        Traceback (most recent call last):
            ...
        sp_lens.errors.SpLensError: there is no corpus to draw: expected {label: ActivationStats}.
    """
    _histograms.require_corpora(stats_by_corpus, function="ridgeline")
    colours = corpus_colours(stats_by_corpus, function="ridgeline")
    rows = _list_neurons(neurons, site)
    histograms_by_row = _read_rows(stats_by_corpus, site, rows)
    floor, top = _histograms.density_range(item for row in histograms_by_row for item in row.values())
    figure = go.Figure()
    names = [f"layer {layer}, neuron {neuron}" for layer, neuron in rows]
    for index, (name, row) in enumerate(zip(names, histograms_by_row, strict=True)):
        for label, (_, edges, heights) in row.items():
            curve = _histograms.outline(
                edges, heights[0], floor=floor, name=label, colour=colours[label], hover=f"{name}<br>"
            )
            height = np.log(np.asarray(curve.y) / floor) / np.log(top / floor)
            curve.update(y=(index - PEAK_HEIGHT * height).astype(np.float32))
            figure.add_trace(curve.update(legendgroup=label, showlegend=index == 0))
    spans = [
        _histograms.bins_in_use(row.values())
        for row in histograms_by_row
        if any(item.density.any() for item in row.values())
    ]
    x_range = [min(low for low, _ in spans), max(high for _, high in spans)]
    figure.update_layout(template=TEMPLATES["notebook"], height=230 + 46 * len(rows), showlegend=True)
    figure.update_xaxes(title_text=_histograms.ACTIVATION_TITLE, range=x_range)
    figure.update_yaxes(tickvals=np.arange(len(rows)), ticktext=names, range=[len(rows) - 0.8, -1.1], showline=False)
    model = model_prefix(next(iter(stats_by_corpus.values())))
    finish(
        figure,
        f"Activation densities of {len(rows)} neurons: {model}{SITE_NAMES[site]}",
        f"every row: density from {floor:.2g} to {top:.2g} (share of tokens per unit of activation, log scale)",
    )
    return figure


def _list_neurons(neurons: Any, site: "Site") -> list[Neuron]:
    """Return the layer and index of the neuron of each row."""
    if hasattr(neurons, "layout"):
        mask = neurons.select(site)
        indices_by_layer = [(group.layer, np.flatnonzero(mask[group.name].cpu().numpy())) for group in mask.layout]
        rows = [(layer, int(neuron)) for layer, indices in indices_by_layer for neuron in indices]
    else:
        rows = list(dict.fromkeys(map(_as_pair, neurons)))
    if not 0 < len(rows) <= MAX_ROWS:
        raise SpLensError(
            f"there are {len(rows)} neurons at site {site!r}, and a ridgeline has 1 to {MAX_ROWS} rows: pass a mask of "
            "that many neurons, or pairs (layer, neuron)."
        )
    return rows


def _as_pair(neuron: Any) -> Neuron:
    try:
        layer, index = neuron
        return int(layer), int(index)
    except (TypeError, ValueError) as error:
        raise SpLensError(f"neuron {neuron!r}: expected a pair (layer, neuron), such as (2, 17).") from error


def _read_rows(
    stats_by_corpus: "Mapping[str, ActivationStats]", site: "Site", rows: list[Neuron]
) -> list[dict[str, Histograms]]:
    """Return the histogram of the neuron of each row on each corpus; every layer is read once."""
    histograms_by_neuron: dict[Neuron, dict[str, Histograms]] = {}
    for layer in sorted({layer for layer, _ in rows}):
        indices = [index for row_layer, index in rows if row_layer == layer]
        _, histograms = _histograms.read_histograms(stats_by_corpus, site, layer, indices, function="ridgeline")
        for position, index in enumerate(indices):
            histograms_by_neuron[layer, index] = {
                label: item._replace(density=item.density[[position]]) for label, item in histograms.items()
            }
    return [histograms_by_neuron[row] for row in rows]
