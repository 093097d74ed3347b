"""How the activations of chosen neurons are distributed: a row a neuron, the corpora over one another."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from sp_lens.errors import SpLensError
from sp_lens.plots._shared import SITE_NAMES, corpus_colours, of_model, set_title
from sp_lens.plots.distributions._histograms import (
    ACTIVATION,
    Histograms,
    bins_in_use,
    density_range,
    outline,
    read,
    require_corpora,
)
from sp_lens.plots.themes import TEMPLATES

if TYPE_CHECKING:
    from sp_lens.neurons.mask import NeuronMask
    from sp_lens.statistics.activation_stats import ActivationStats
    from sp_lens.typing import Site

MOST_ROWS = 40
TALL = 0.92  # of a row: the highest density, so that rows never touch

Neuron = tuple[int, int]  # layer, index into it


def ridgeline(
    stats_by_corpus: "Mapping[str, ActivationStats]",
    *,
    site: "Site",
    neurons: "NeuronMask | Iterable[tuple[int, int]]",
) -> go.Figure:
    """The activation densities of chosen neurons of any layers, a row each, on each corpus (a figure of ours).

    Heights are logarithms of the density, all on one scale, which the subtitle states; a row's line is
    half the smallest density above zero. Outlines are streamed histograms, as `density` draws them.

    Args:
        stats_by_corpus: label -> statistics with histograms of these neurons, the edges of all corpora
            the same, as `collect_histograms` returns them; at most 7.
        site: "mlp" or "attn".
        neurons: a mask, such as `sp.specialisation(...)["code"].top(0.01, site="mlp")`, whose rows are in the order
            of layers; or pairs (layer, neuron), in their order. At most 40.

    Returns:
        x is the activation z; y has a tick for each neuron, the first at the top. One trace a neuron and
        corpus; clicking a corpus in the legend hides it in all rows.

    Raises:
        SpLensError: when there is no corpus or too many, no neuron or too many, the statistics are of
            different models, have no histogram of one of the neurons or different edges, or all
            activations lie outside them.

    Example:
        >>> import sp_lens as sp
        >>> sp.plots.ridgeline({}, site="mlp", neurons=[(0, 3)])
        Traceback (most recent call last):
            ...
        sp_lens.errors.SpLensError: there is no corpus to draw: expected {label: ActivationStats}.
    """
    require_corpora(stats_by_corpus, function="ridgeline")
    colours = corpus_colours(stats_by_corpus, function="ridgeline")
    rows = _rows(neurons, site)
    found = _read_rows(stats_by_corpus, site, rows)
    every = [one for row in found for one in row.values()]
    floor, top = density_range(every)
    figure = go.Figure()
    names = [f"layer {layer}, neuron {neuron}" for layer, neuron in rows]
    for place, (name, row) in enumerate(zip(names, found, strict=True)):
        for label, one in row.items():
            curve = outline(
                one.edges,
                one.density[0],
                floor=floor,
                name=label,
                colour=colours[label],
                hover=f"{name}<br>",
            )
            height = np.log(np.asarray(curve.y) / floor) / np.log(top / floor)
            curve.update(y=(place - TALL * height).astype(np.float32))
            figure.add_trace(curve.update(legendgroup=label, showlegend=place == 0))
    spans = [bins_in_use(row.values()) for row in found if any(one.density.any() for one in row.values())]
    figure.update_layout(template=TEMPLATES["notebook"], height=230 + 46 * len(rows), showlegend=True)
    figure.update_xaxes(title_text=ACTIVATION, range=[min(low for low, _ in spans), max(high for _, high in spans)])
    figure.update_yaxes(tickvals=np.arange(len(rows)), ticktext=names, range=[len(rows) - 0.8, -1.1], showline=False)
    model = of_model(next(iter(stats_by_corpus.values())))
    set_title(
        figure,
        f"Activation densities of {len(rows)} neurons: {model}{SITE_NAMES[site]}",
        f"in every row, density from {floor:.2g} to {top:.2g} (share of tokens per unit of activation, log)",
    )
    return figure


def _rows(neurons: Any, site: "Site") -> list[Neuron]:
    """The layer and index of each row."""
    if hasattr(neurons, "layout"):
        mask = neurons.select(site)
        marked = [(group.layer, np.flatnonzero(mask[group.name].cpu().numpy())) for group in mask.layout]
        rows = [(layer, int(neuron)) for layer, indices in marked for neuron in indices]
    else:
        rows = list(dict.fromkeys(map(_pair, neurons)))
    if not 0 < len(rows) <= MOST_ROWS:
        raise SpLensError(
            f"{len(rows)} neurons at site {site!r}: a ridgeline has a row for each of 1 to {MOST_ROWS}. "
            "Give a mask of as many, or pairs (layer, neuron)."
        )
    return rows


def _pair(neuron: Any) -> Neuron:
    try:
        layer, index = neuron
        return int(layer), int(index)
    except (TypeError, ValueError) as error:
        raise SpLensError(f"neuron {neuron!r}: expected a pair (layer, neuron), such as (2, 17).") from error


def _read_rows(
    stats_by_corpus: "Mapping[str, ActivationStats]", site: "Site", rows: list[Neuron]
) -> list[dict[str, Histograms]]:
    """For each row, the histogram of its neuron [1 bin] on each corpus; every layer is read once."""
    found: dict[Neuron, dict[str, Histograms]] = {}
    for layer in sorted({layer for layer, _ in rows}):
        indices = [neuron for of_layer, neuron in rows if of_layer == layer]
        _, histograms = read(stats_by_corpus, site, layer, indices, function="ridgeline")
        for place, neuron in enumerate(indices):
            found[layer, neuron] = {
                label: one._replace(density=one.density[[place]]) for label, one in histograms.items()
            }
    return [found[row] for row in rows]
