"""Figure 5 of the paper: activation densities of many neurons, one panel per corpus."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sp_lens.errors import SpLensError
from sp_lens.neurons.layout import Layout
from sp_lens.plots._labels import SITE_NAMES, model_prefix
from sp_lens.plots._layout import colour_bar, finish, make_panels, ordered_colours
from sp_lens.plots.distributions import _histograms
from sp_lens.plots.distributions._histograms import Histograms
from sp_lens.plots.themes import NEUTRAL, PALETTE

if TYPE_CHECKING:
    from sp_lens.neurons.layout import NeuronGroup
    from sp_lens.statistics.activation_stats import ActivationStats
    from sp_lens.typing import Site

# More curves than this cannot be distinguished, and the figure would become slow and many megabytes large.
MAX_CURVES = 200
MAX_PANELS = 12
COLUMNS = 3


def density(
    stats_by_corpus: "Mapping[str, ActivationStats]",
    *,
    site: "Site" = "attn",
    layer: int = 2,
    neurons: Iterable[int] = range(100),
    highlight: Iterable[int] = (),
) -> go.Figure:
    """Plot Figure 5 of arXiv 2403.01267: the probability densities of the activations of many neurons.

    There is one panel per corpus, and all panels have the same axes. Each neuron has one translucent curve, of the
    same colour in every panel. A curve is the outline of the streamed histogram, bin by bin; in an empty bin it drops
    to the lower end of the logarithmic y axis, which is half the smallest density above zero. The x axis covers the
    bins in which any panel has tokens.

    For more than 200 neurons, each of 200 curves is the mean density of consecutive neurons (our choice; the paper
    draws 100 neurons).

    With `highlight`, those neurons are coloured and listed in a legend, and all others are grey.

    If the statistics contain folds (`collect_histograms(..., folds=20)`), the hover text of a curve gives the mean |z|
    of the neuron with its 95 % confidence interval over documents, and each panel states the half-width of that
    interval for the median neuron.

    Args:
        stats_by_corpus: Statistics of each corpus by panel title, with histograms between the same edges, as returned
            by `collect_histograms`. At most 12 corpora.
        site: Site of the neurons: "attn" (units of `hook_z`) or "mlp" (units of `hook_post`).
        layer: Index of the transformer block.
        neurons: Indices of the neurons in their layer; at site "attn" an index is head * d_head + unit.
        highlight: Indices of at most 7 neurons to highlight. Neurons that are not in `neurons` are drawn as well.

    Returns:
        Figure with the activation z on the x axis and the share of tokens per unit of activation on the y axis. The
        area of a curve is 1 minus the share of activations outside the edges, which the panel states if it is not 0.

    Raises:
        SpLensError: If there is no corpus or no neuron, more than 12 corpora or more than 7 highlighted neurons, the
            statistics belong to different models, one of the neurons has no histogram, the edges differ between
            corpora, or all activations lie outside the edges.

    Example:
        >>> import sp_lens as sp
        >>> sp.plots.density({})
        Traceback (most recent call last):
            ...
        sp_lens.errors.SpLensError: there is no corpus to draw: expected {label: ActivationStats}.
    """
    highlighted = sorted({int(neuron) for neuron in highlight})
    chosen = sorted({*map(int, neurons), *highlighted})
    if not chosen:
        raise SpLensError("neurons is empty: expected indices into the layer, such as range(100).")
    group, histograms = _histograms.read_histograms(stats_by_corpus, site, layer, chosen, function="density")
    if len(histograms) > MAX_PANELS:
        raise SpLensError(f"there are {len(histograms)} corpora: pass at most {MAX_PANELS}, one for each panel.")
    curves = _neurons_by_curve(chosen, highlighted)
    curve_histograms = [
        item._replace(density=np.array([item.density[np.searchsorted(chosen, rows)].mean(axis=0) for rows in curves]))
        for item in histograms.values()
    ]
    floor, top = _histograms.density_range(curve_histograms)
    names = [_histograms.neuron_name(group, members) for members in curves]
    ordinary = len(curves) - len(highlighted)
    colours = [NEUTRAL] * ordinary + list(PALETTE) if highlighted else ordered_colours(ordinary)
    fill_opacity = min(0.25, max(0.03, 1 / len(curves)))  # lower if many curves overlap

    intervals = {label: _intervals(stats, group, chosen) for label, stats in stats_by_corpus.items()}
    notes = [_panel_note(item, intervals[label]) for label, item in histograms.items()]
    figure, cells = make_panels(list(histograms), columns=COLUMNS, gap=0.4, notes=notes)
    for label, panel, (row, column) in zip(histograms, curve_histograms, cells, strict=True):
        for index, (name, heights) in enumerate(zip(names, panel.density, strict=True)):
            is_highlighted = index >= ordinary
            curve = _histograms.outline(
                panel.edges,
                heights,
                floor=floor,
                name=name,
                colour=colours[index],
                fill_opacity=fill_opacity,
                line_opacity=1 if is_highlighted else 0.6,
                hover=_interval_text(intervals[label], curves[index]),
            )
            curve.update(line_width=2 if is_highlighted else 1, legendgroup=name)
            figure.add_trace(curve.update(showlegend=is_highlighted and (row, column) == cells[0]), row, column)
    if len(curves) > 1 and not highlighted:
        figure.add_trace(colour_bar(colours, [members[0] for members in curves], "neuron"), 1, 1)
    _histograms.set_density_axes(figure, histograms.values(), floor, top)
    figure.update_xaxes(matches="x", nticks=6)
    figure.update_yaxes(title_text=_histograms.DENSITY_TITLE, col=1)
    figure.update_layout(
        height=140 + 330 * cells[-1][0],
        showlegend=bool(highlighted),
        xaxis_matches=None,  # plotly warns about an axis that matches itself
    )
    drawn = "one curve per neuron"
    if len(curves) < len(chosen):
        drawn = f"{ordinary} curves, each the mean of consecutive neurons"
    has_intervals = any(table is not None for table in intervals.values())
    note = "; ±: 95 % confidence interval over documents (median)" if has_intervals else ""
    model = model_prefix(next(iter(stats_by_corpus.values())))
    finish(
        figure,
        f"Activation densities: {model}layer {layer}, {SITE_NAMES[site]}, {_describe_neurons(chosen)}",
        f"{len(chosen)} of the {group.width} neurons, {drawn}; {_histograms.describe_bins(histograms)}{note}",
    )
    return figure


def _neurons_by_curve(chosen: list[int], highlighted: list[int]) -> list[list[int]]:
    """Return the neurons of each curve; each highlighted neuron has its own curve, drawn last and so on top."""
    others = [neuron for neuron in chosen if neuron not in highlighted]
    if len(highlighted) > len(PALETTE):
        raise SpLensError(f"there are {len(highlighted)} neurons to highlight: pass at most {len(PALETTE)}.")
    parts = np.array_split(others, min(len(others), MAX_CURVES)) if others else []
    return [[int(neuron) for neuron in part] for part in parts] + [[neuron] for neuron in highlighted]


def _intervals(stats: "ActivationStats", group: "NeuronGroup", neurons: list[int]) -> pd.DataFrame | None:
    """Return the mean |z| of each neuron with its confidence interval, or None for statistics without folds."""
    if not stats.folds:
        return None
    from sp_lens.scoring.uncertainty import uncertainty

    return uncertainty(stats.part(Layout((group,)))).frame().set_index("neuron").loc[neurons]


def _interval_text(intervals: pd.DataFrame | None, members: list[int]) -> str:
    if intervals is None or len(members) > 1:
        return ""
    value, low, high = intervals.loc[members[0], ["value", "low", "high"]]
    return f"mean |z| {value:.3g} [{low:.3g}, {high:.3g}]<br>"


def _panel_note(histograms: Histograms, intervals: pd.DataFrame | None) -> str:
    outside = 1 - float((histograms.density * np.diff(histograms.edges)).sum(axis=1).mean())
    note = f"{histograms.tokens:,} tokens"
    if outside > 1e-9:  # larger than rounding errors
        note += f", {outside:.2%} outside the bins"
    if intervals is not None:
        active = intervals.loc[intervals["low"] > 0]
        note += f"<br>mean |z| ±{(active['high'] / active['low']).median() ** 0.5 - 1:.0%}"
    return note


def _describe_neurons(neurons: list[int]) -> str:
    first, last = neurons[0], neurons[-1]
    if first == last:
        return f"neuron {first}"
    if len(neurons) == last - first + 1:
        return f"neurons {first} to {last}"
    return f"{len(neurons)} neurons from {first} to {last}"
