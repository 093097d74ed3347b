"""How the activations of many neurons are distributed, corpus by corpus (Figure 5)."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sp_lens.errors import SpLensError
from sp_lens.neurons.layout import Layout
from sp_lens.plots._shared import SITE_NAMES, colour_bar, of_model, ordered_colours, panels, set_title
from sp_lens.plots._text import plain
from sp_lens.plots.distributions._histograms import (
    DENSITY,
    Histograms,
    bins_about,
    density_range,
    neuron_name,
    outline,
    read,
    set_axes,
)
from sp_lens.plots.themes import NEUTRAL, PALETTE

if TYPE_CHECKING:
    from sp_lens.neurons.layout import NeuronGroup
    from sp_lens.statistics.activation_stats import ActivationStats
    from sp_lens.typing import Site

# More curves than this can't be told apart, and make a slow figure of many megabytes.
MOST_CURVES = 200
COLUMNS = 3
MOST_PANELS = 12


def density(
    stats_by_corpus: "Mapping[str, ActivationStats]",
    *,
    site: "Site" = "attn",
    layer: int = 2,
    neurons: Iterable[int] = range(100),
    highlight: Iterable[int] = (),
) -> go.Figure:
    """Figure 5 of arXiv 2403.01267: the probability density of the activation of each of many neurons.

    One panel a corpus, all on the same axes, y logarithmic; one translucent curve a neuron, of the same
    colour in each panel. A curve is the outline of the streamed histogram, bin by bin; where a bin is
    empty it goes down to the bottom of the axis, which is half the smallest density that is not zero.
    The x axis shows the bins that any panel has tokens in.

    Beyond 200 neurons a curve is the mean density of neurons that follow one another, so that there are
    200 curves (our choice: the paper draws 100 neurons).

    With `highlight`, those neurons stand out in colour and in a legend, and the others are grey.

    Of statistics by folds (`collect_histograms(..., folds=20)`), the hover of a curve has the neuron's mean |z| with
    its 95 % interval over documents, and a panel says how wide that is at the median neuron.

    Args:
        stats_by_corpus: panel title -> statistics with histograms between the same edges, as
            `collect_histograms` returns them.
        site: "attn" (units of `hook_z`) or "mlp" (units of `hook_post`).
        layer: the block.
        neurons: indices into the layer; on "attn", head * d_head + unit.
        highlight: at most 7 of them, or others that are drawn too.

    Returns:
        x is the activation z of a neuron, y the share of the tokens per unit of activation: over its
        bins a curve has the area 1, less the share of activations outside the edges, which the panel
        then states.

    Raises:
        SpLensError: when there is no corpus or no neuron, the statistics are of different models, have
            no histogram of one of the neurons, or different edges, all activations lie outside them, or
            there are more than 12 corpora or 7 highlighted neurons.

    Example:
        >>> import sp_lens as sp
        >>> sp.plots.density({})
        Traceback (most recent call last):
            ...
        sp_lens.errors.SpLensError: there is no corpus to draw: expected {label: ActivationStats}.
    """
    bright = sorted({int(neuron) for neuron in highlight})
    chosen = sorted({*map(int, neurons), *bright})
    if not chosen:
        raise SpLensError("neurons is empty: expected indices into the layer, such as range(100).")
    group, histograms = read(stats_by_corpus, site, layer, chosen, function="density")
    if len(histograms) > MOST_PANELS:
        raise SpLensError(f"{len(histograms)} corpora: at most {MOST_PANELS} panels are drawn, give fewer at once.")
    curves = _curves(chosen, bright)
    heights = [
        one._replace(density=np.array([one.density[np.searchsorted(chosen, rows)].mean(axis=0) for rows in curves]))
        for one in histograms.values()
    ]
    floor, top = density_range(heights)
    edges = next(iter(histograms.values())).edges
    names = [neuron_name(group, members) for members in curves]
    grey = len(curves) - len(bright)
    colours = [NEUTRAL] * grey + list(PALETTE) if bright else ordered_colours(grey)
    fill = min(0.25, max(0.03, 1 / len(curves)))  # fainter, the more curves lie over one another

    sure = {label: _intervals(stats, group, chosen) for label, stats in stats_by_corpus.items()}
    figure, places = _panels(histograms, sure)
    for number, (label, panel, (row, column)) in enumerate(zip(histograms, heights, places, strict=True)):
        for place, (name, height) in enumerate(zip(names, panel.density, strict=True)):
            stands_out = place >= grey
            opacity = 1 if stands_out else 0.6
            hover = _hover(sure[label], curves[place])
            curve = outline(
                edges, height, floor=floor, name=name, colour=colours[place], fill=fill, line=opacity, hover=hover
            )
            curve.update(line_width=2 if stands_out else 1, legendgroup=name)
            figure.add_trace(curve.update(showlegend=stands_out and number == 0), row, column)
    if len(curves) > 1 and not bright:
        figure.add_trace(colour_bar(colours, [members[0] for members in curves], "neuron"), 1, 1)
    set_axes(figure, histograms.values(), floor, top)
    figure.update_layout(showlegend=bool(bright))
    drawn = "one curve a neuron"
    if len(curves) < len(chosen):
        drawn = f"{grey} curves, each the mean of neighbouring neurons"
    known = "; ±: 95 % interval over documents, median neuron" if any(one is not None for one in sure.values()) else ""
    model = of_model(next(iter(stats_by_corpus.values())))
    set_title(
        figure,
        f"Activation densities: {model}layer {layer}, {SITE_NAMES[site]}, {_which(chosen)}",
        f"{len(chosen)} of the {group.width} neurons, {drawn}; {bins_about(edges)}{known}",
    )
    return figure


def _curves(chosen: list[int], bright: list[int]) -> list[list[int]]:
    """The neurons of each curve: the highlighted ones last, so that they lie above the others, and alone."""
    others = [neuron for neuron in chosen if neuron not in bright]
    if len(bright) > len(PALETTE):
        raise SpLensError(f"{len(bright)} neurons to highlight: there are colours for {len(PALETTE)}, give fewer.")
    parts = np.array_split(others, min(len(others), MOST_CURVES)) if others else []
    return [[int(neuron) for neuron in part] for part in parts] + [[neuron] for neuron in bright]


def _intervals(stats: "ActivationStats", group: "NeuronGroup", neurons: list[int]) -> pd.DataFrame | None:
    """The mean |z| of the neurons with its interval, by neuron; None where no statistics by folds were kept."""
    if not stats.folds:
        return None
    from sp_lens.scoring.uncertainty import uncertainty

    return uncertainty(stats.part(Layout((group,)))).frame().set_index("neuron").loc[neurons]


def _hover(sure: pd.DataFrame | None, members: list[int]) -> str:
    if sure is None or len(members) > 1:
        return ""
    value, low, high = sure.loc[members[0], ["value", "low", "high"]]
    return f"mean |z| {value:.3g} [{low:.3g}, {high:.3g}]<br>"


def _panels(
    histograms: Mapping[str, Histograms], sure: "Mapping[str, pd.DataFrame | None]"
) -> tuple[go.Figure, list[tuple[int, int]]]:
    """A figure with a titled panel for each corpus on the same axes, and the row and column of each panel."""
    titles = [_panel_title(label, one, sure[label]) for label, one in histograms.items()]
    figure, places = panels(titles, columns=COLUMNS, gap=0.4)
    figure.update_xaxes(matches="x", nticks=6)
    figure.update_layout(xaxis_matches=None)  # as `panels` does for y
    figure.update_yaxes(title_text=DENSITY, col=1)
    figure.update_layout(height=140 + 330 * places[-1][0])
    return figure, places


def _panel_title(label: str, histograms: Histograms, sure: pd.DataFrame | None) -> str:
    outside = 1 - float((histograms.density * np.diff(histograms.edges)).sum(axis=1).mean())
    note = f"{histograms.tokens:,} tokens"
    if outside > 1e-9:  # more than rounding
        note += f", {outside:.2%} outside the bins"
    if sure is not None:
        fires = sure.loc[sure["low"] > 0]
        note += f"<br>mean |z| ±{(fires['high'] / fires['low']).median() ** 0.5 - 1:.0%}"
    return f"{plain(label)}<br><span style='font-size:0.85em'>{note}</span>"


def _which(neurons: list[int]) -> str:
    first, last = neurons[0], neurons[-1]
    if first == last:
        return f"neuron {first}"
    every = len(neurons) == last - first + 1
    return f"neurons {first} to {last}" if every else f"{len(neurons)} neurons of {first} to {last}"
