"""How the activations of single neurons are distributed, corpus by corpus (Figure 5)."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sp_lens.errors import SpLensError
from sp_lens.plots._shared import MUTED, SITE_NAMES, TEMPLATE, colour_bar, ordered_colours, set_title

if TYPE_CHECKING:
    from sp_lens.sites import NeuronGroup, Site
    from sp_lens.stats import ActivationStats

Floats = npt.NDArray[np.floating]

# More curves than this can't be told apart, and make a slow figure of many megabytes.
MOST_CURVES = 200
COLUMNS = 3


class _Panel(NamedTuple):
    """The histograms of one corpus.

    Attributes:
        tokens: how many were counted.
        edges: [bin + 1].
        density: [neuron bin], the share of all tokens per unit of activation.
    """

    tokens: int
    edges: Floats
    density: Floats


def density(
    stats_by_corpus: "Mapping[str, ActivationStats]",
    *,
    site: "Site" = "attn",
    layer: int = 2,
    neurons: Iterable[int] = range(100),
) -> go.Figure:
    """Figure 5 of arXiv 2403.01267: the probability density of the activation of each of many neurons.

    One panel a corpus, all on the same axes, y logarithmic; one translucent curve a neuron, of the same
    colour in each panel. A curve is the outline of the streamed histogram, bin by bin; where a bin is
    empty it goes down to the bottom of the axis, which is half the smallest density that is not zero.
    The x axis shows the bins that any panel has tokens in.

    Beyond 200 neurons a curve is the mean density of neurons that follow one another, so that there are
    200 curves (our choice: the paper draws 100 neurons).

    Args:
        stats_by_corpus: panel title -> statistics with histograms between the same edges. To get those,
            collect twice: `edges = first.merge(second).edges("attn")` holds the activations of both
            corpora; then `collect(model, corpus, edges={"attn": edges})` of each.
        site: "attn" (units of `hook_z`) or "mlp" (units of `hook_post`).
        layer: the block.
        neurons: indices into the layer; on "attn", head * d_head + unit.

    Returns:
        x is the activation z of a neuron, y the share of the tokens per unit of activation: over its
        bins a curve has the area 1, less the share of activations outside the edges, which the panel
        then states.

    Raises:
        SpLensError: when there is no corpus or no neuron, the statistics are of different models, have
            no histogram of one of the neurons, or different edges, or all activations lie outside them.

    Example:
        >>> import sp_lens as sp
        >>> sp.plots.density({})
        Traceback (most recent call last):
            ...
        sp_lens.errors.SpLensError: there is no corpus to draw: expected {label: ActivationStats}, one panel each.
    """
    chosen = sorted({int(neuron) for neuron in neurons})
    if not chosen:
        raise SpLensError("neurons is empty: expected indices into the layer, such as range(100).")
    group, panels = _read(stats_by_corpus, site, layer, chosen)
    edges = next(iter(panels.values())).edges
    all_densities = np.concatenate([panel.density for panel in panels.values()])
    filled = np.flatnonzero(all_densities.any(axis=0))
    if not len(filled):
        raise SpLensError(
            f"all activations of the {len(chosen)} neurons lie outside the edges {edges[0]:.3g} to {edges[-1]:.3g}: "
            f"collect with edges=stats.edges({site!r})."
        )
    curves = np.array_split(np.arange(len(chosen)), min(len(chosen), MOST_CURVES))
    heights = [np.array([panel.density[rows].mean(axis=0) for rows in curves]) for panel in panels.values()]
    floor = min(height[height > 0].min() for height in heights if height.any()) / 2
    top = max(height.max() for height in heights) * 1.5
    names = [_curve_name(group, [chosen[row] for row in rows]) for rows in curves]
    colours = ordered_colours(len(curves))
    fill = min(0.25, max(0.03, 1 / len(curves)))  # fainter, the more curves lie over one another

    figure, places = _empty_panels(panels)
    for height, (row, column) in zip(heights, places, strict=True):
        for name, colour, values in zip(names, colours, height, strict=True):
            curve = _curve(edges, values, floor=floor, name=name, colour=colour, fill=fill)
            figure.add_trace(curve, row, column)
    if len(curves) > 1:
        figure.add_trace(colour_bar(colours, [chosen[rows[0]] for rows in curves], "neuron"), 1, 1)
    low, high = edges[filled[0]], edges[filled[-1] + 1]
    figure.update_xaxes(range=[low - 0.02 * (high - low), high + 0.02 * (high - low)])
    # Label whole powers of ten, unless the axis is too short to have two of them.
    figure.update_yaxes(range=np.log10([floor, top]), dtick=1 if top / floor > 100 else None)
    model = next(iter(stats_by_corpus.values())).about.get("model")
    drawn = "one curve a neuron"
    if len(curves) < len(chosen):
        drawn = f"{len(curves)} curves, each the mean of neighbouring neurons"
    bins = f"{len(edges) - 1} bins from {edges[0]:.3g} to {edges[-1]:.3g}"
    set_title(
        figure,
        f"Activation densities: {f'{model}, ' if model else ''}layer {layer}, {SITE_NAMES[site]}, {_which(chosen)}",
        f"{len(chosen)} of the {group.width} neurons, {drawn}; {bins}",
        top=125,
    )
    return figure


def _read(
    stats_by_corpus: "Mapping[str, ActivationStats]", site: "Site", layer: int, neurons: list[int]
) -> tuple["NeuronGroup", dict[str, _Panel]]:
    """The histograms of each corpus, found to be comparable, and the group that the neurons are of."""
    # ActivationStats is a mapping too, of hook names: given alone, it would pass for one of corpora.
    if not isinstance(stats_by_corpus, Mapping) or hasattr(stats_by_corpus, "histogram_frame"):
        kind = type(stats_by_corpus).__name__
        raise SpLensError(f"expected {{label: ActivationStats}}, got {kind}: say density({{'code': stats}}).")
    if not stats_by_corpus:
        raise SpLensError("there is no corpus to draw: expected {label: ActivationStats}, one panel each.")
    panels: dict[str, _Panel] = {}
    first_label, first = next(iter(stats_by_corpus.items()))
    for label, stats in stats_by_corpus.items():
        if not hasattr(stats, "histogram_frame"):
            raise SpLensError(f"{label!r} is a {type(stats).__name__}: expected ActivationStats, as collect() returns.")
        first.require_same_model(stats)
        frame = stats.histogram_frame(site, layer, neurons)
        bins = len(frame) // len(neurons)
        edges = np.append(frame["left"].to_numpy()[:bins], frame["right"].to_numpy()[bins - 1])
        panels[label] = _Panel(stats.count, edges, frame["density"].to_numpy().reshape(len(neurons), bins))
        if not np.array_equal(edges, panels[first_label].edges):
            raise SpLensError(
                f"the histograms of {first_label!r} and {label!r} have different edges: collect both corpora with the "
                f"same, edges = first.merge(second).edges({site!r})."
            )
    return next(group for group in first.layout.of(site) if group.layer == layer), panels


def _empty_panels(panels: Mapping[str, _Panel]) -> tuple[go.Figure, list[tuple[int, int]]]:
    """A figure with a titled panel for each corpus on the same axes, and the row and column of each panel."""
    columns = min(len(panels), COLUMNS)
    rows = -(-len(panels) // columns)
    figure = make_subplots(
        rows,
        columns,
        subplot_titles=[_panel_title(label, panel) for label, panel in panels.items()],
        horizontal_spacing=0.03,
        vertical_spacing=0.4 / rows,
    )
    figure.update_annotations(yshift=6)
    figure.update_xaxes(matches="x", nticks=6, title_text="activation of the neuron (z)")
    figure.update_yaxes(matches="y", type="log", exponentformat="power", showticklabels=False)
    figure.update_yaxes(
        title_text="density (share of tokens<br>per unit of activation, log)", showticklabels=True, col=1
    )
    figure.update_layout(template=TEMPLATE, height=140 + 330 * rows, showlegend=False)
    return figure, [(place // columns + 1, place % columns + 1) for place in range(len(panels))]


def _curve(edges: Floats, density: Floats, *, floor: float, name: str, colour: str, fill: float) -> go.Scatter:
    """The outline of one histogram, from its first to its last bin with tokens, filled down to `floor`.

    A logarithmic axis has no zero to fill to, so the outline is closed by hand: it starts and ends at the
    floor, and goes down to it in empty bins.
    """
    filled = np.flatnonzero(density) if density.any() else np.array([0])
    bins = np.pad(np.arange(filled[0], filled[-1] + 1), 1, mode="edge")  # both ends again, to start and end low
    x = edges[bins]
    x[-1] = edges[bins[-1] + 1]
    y = np.maximum(density[bins], floor)
    y[[0, -1]] = floor
    middles = (edges[bins] + edges[bins + 1]) / 2
    return go.Scatter(
        x=x.astype(np.float32),  # plotly writes arrays as binary: half the size
        y=y.astype(np.float32),
        customdata=np.column_stack([middles, density[bins]]).astype(np.float32),
        name=name,
        mode="lines",
        line={"shape": "hv", "width": 1, "color": _translucent(colour, 0.6)},
        fill="toself",
        fillcolor=_translucent(colour, fill),
        hoveron="points",
        hovertemplate=(
            f"<b>{name}</b><br>z about %{{customdata[0]:.3g}}<br>density %{{customdata[1]:.3g}}<extra></extra>"
        ),
    )


def _translucent(colour: str, opacity: float) -> str:
    return colour.replace("rgb(", "rgba(").replace(")", f", {opacity:.3g})")


def _curve_name(group: "NeuronGroup", members: list[int]) -> str:
    """What the hover calls a curve."""
    first, last = members[0], members[-1]
    name = f"neuron {first}" if first == last else f"mean of {len(members)} neurons, {first} to {last}"
    if group.heads:
        heads = sorted({neuron // (group.width // group.heads) for neuron in members})
        name += f" (head {heads[0]})" if len(heads) == 1 else f" (heads {heads[0]} to {heads[-1]})"
    return name


def _panel_title(label: str, panel: _Panel) -> str:
    outside = 1 - float((panel.density * np.diff(panel.edges)).sum(axis=1).mean())
    note = f"{panel.tokens:,} tokens"
    if outside > 1e-9:  # more than rounding
        note += f", {outside:.2%} outside the bins"
    return f"{label}<br><span style='font-size:12px;color:{MUTED}'>{note}</span>"


def _which(neurons: list[int]) -> str:
    first, last = neurons[0], neurons[-1]
    if first == last:
        return f"neuron {first}"
    every = len(neurons) == last - first + 1
    return f"neurons {first} to {last}" if every else f"{len(neurons)} neurons of {first} to {last}"
