"""Read activation histograms, check that they are comparable, and draw them as outlines."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go
from plotly.colors import convert_colors_to_same_type

from sp_lens.errors import SpLensError
from sp_lens.plots._text import escape_plotly, hover_name

if TYPE_CHECKING:
    from sp_lens.neurons.layout import NeuronGroup
    from sp_lens.statistics.activation_stats import ActivationStats
    from sp_lens.typing import Site

Floats = npt.NDArray[np.floating]

DENSITY_TITLE = "density (share of tokens<br>per unit of activation, log scale)"
ACTIVATION_TITLE = "activation of the neuron (z)"


class Histograms(NamedTuple):
    """Histograms of some neurons of one layer on one corpus.

    Attributes:
        tokens: Number of counted tokens.
        edges: Bin edges [bin + 1].
        density: Share of all tokens per unit of activation [neuron bin].
    """

    tokens: int
    edges: Floats
    density: Floats


def read_histograms(
    stats_by_corpus: "Mapping[str, ActivationStats]", site: "Site", layer: int, neurons: list[int], *, function: str
) -> "tuple[NeuronGroup, dict[str, Histograms]]":
    """Read the histograms of some neurons of one layer on each corpus.

    Returns:
        The group that the neurons belong to, and the histograms by corpus, all with the same edges.

    Raises:
        SpLensError: If there is no corpus, the statistics belong to different models, one of the neurons has no
            histogram, or the edges differ between corpora.
    """
    require_corpora(stats_by_corpus, function=function)
    histograms: dict[str, Histograms] = {}
    first_label, first = next(iter(stats_by_corpus.items()))
    for label, stats in stats_by_corpus.items():
        frame = stats.histogram_frame(site, layer, neurons)
        bins = len(frame) // len(neurons)
        edges = np.append(frame["left"].to_numpy()[:bins], frame["right"].to_numpy()[bins - 1])
        histograms[label] = Histograms(stats.count, edges, frame["density"].to_numpy().reshape(len(neurons), bins))
        if not np.array_equal(edges, histograms[first_label].edges):
            raise SpLensError(
                f"the histograms of {first_label!r} and {label!r} have different edges: collect both corpora with the "
                f"same edges, as collect_histograms(model, corpora, site={site!r}) does."
            )
    return next(group for group in first.layout.select(site) if group.layer == layer), histograms


def require_corpora(stats_by_corpus: "Mapping[str, ActivationStats]", *, function: str) -> None:
    """Raise SpLensError unless the argument maps one or more labels to statistics of the same model.

    Args:
        stats_by_corpus: Argument to check.
        function: Name of the plotting function, for the error message.
    """
    # ActivationStats is itself a mapping (from hook names), so it would pass as a mapping from labels.
    if not isinstance(stats_by_corpus, Mapping) or hasattr(stats_by_corpus, "histogram_frame"):
        kind = type(stats_by_corpus).__name__
        raise SpLensError(f"expected {{label: ActivationStats}}, got {kind}: write {function}({{'code': stats}}).")
    if not stats_by_corpus:
        raise SpLensError("there is no corpus to draw: expected {label: ActivationStats}.")
    first = next(iter(stats_by_corpus.values()))
    for label, stats in stats_by_corpus.items():
        if not hasattr(stats, "histogram_frame"):
            raise SpLensError(f"{label!r} has type {type(stats).__name__}: expected ActivationStats from collect().")
        first.require_comparable(stats)


def bins_in_use(histograms: Iterable[Histograms]) -> tuple[float, float]:
    """Return the range of activations, with a margin, in which any of the histograms (of equal edges) has tokens."""
    listed = list(histograms)
    edges, filled = listed[0].edges, np.flatnonzero(np.any([item.density.any(axis=0) for item in listed], axis=0))
    low, high = edges[filled[0]], edges[filled[-1] + 1]
    margin = 0.02 * (high - low)
    return float(low - margin), float(high + margin)


def density_range(histograms: Iterable[Histograms]) -> tuple[float, float]:
    """Return the ends of a logarithmic density axis; the lower end is half the smallest density above zero.

    Raises:
        SpLensError: If no histogram contains a token.
    """
    listed = list(histograms)
    densities = np.concatenate([item.density.ravel() for item in listed])
    if not densities.any():
        low, high = listed[0].edges[[0, -1]]
        raise SpLensError(
            f"all activations of the neurons lie outside the bin edges {low:.3g} to {high:.3g}: collect the statistics "
            "with collect_histograms(model, corpora, ...), which chooses edges that include all activations."
        )
    return float(densities[densities > 0].min()) / 2, float(densities.max()) * 1.5


def set_density_axes(figure: go.Figure, histograms: Iterable[Histograms], floor: float, top: float) -> None:
    """Set x to the activations that occur, and y to the density between `floor` and `top` on a logarithmic scale."""
    figure.update_xaxes(title_text=ACTIVATION_TITLE, range=bins_in_use(histograms))
    figure.update_yaxes(type="log", range=np.log10([floor, top]), exponentformat="power")
    # Label whole powers of ten only, unless the axis is too short to contain two of them.
    figure.update_yaxes(dtick=1 if top / floor > 100 else None)


def describe_bins(histograms: Mapping[str, Histograms]) -> str:
    """Return the number of bins and their range as text."""
    edges = next(iter(histograms.values())).edges
    return f"{len(edges) - 1} bins from {edges[0]:.3g} to {edges[-1]:.3g}"


def outline(
    edges: Floats,
    density: Floats,
    *,
    floor: float,
    name: str,
    colour: str,
    fill_opacity: float = 0.2,
    line_opacity: float = 1,
    hover: str = "",
) -> go.Scatter:
    """Return the outline of one histogram, from its first to its last bin with tokens, filled down to `floor`.

    A logarithmic axis has no zero to fill to. Therefore the outline itself starts and ends at the floor, and drops to
    the floor in empty bins.

    Args:
        edges: Bin edges [bin + 1].
        density: Density in each bin [bin].
        floor: Lower end of the density axis.
        name: Name of the trace, shown first on hover.
        colour: Colour of the line and of the filled area.
        fill_opacity: Opacity of the filled area.
        line_opacity: Opacity of the line.
        hover: Hover text between the name and the density.
    """
    filled = np.flatnonzero(density) if density.any() else np.array([0])
    bins = np.pad(np.arange(filled[0], filled[-1] + 1), 1, mode="edge")  # repeat both end bins to start and end low
    x = edges[bins]
    x[-1] = edges[bins[-1] + 1]
    y = np.maximum(density[bins], floor)
    y[[0, -1]] = floor
    middles = (edges[bins] + edges[bins + 1]) / 2
    return go.Scatter(
        x=x.astype(np.float32),  # plotly writes arrays in binary, so float32 halves the size of the figure
        y=y.astype(np.float32),
        customdata=np.column_stack([middles, density[bins]]).astype(np.float32),
        name=escape_plotly(name),
        mode="lines",
        line={"shape": "hv", "width": 1, "color": _with_opacity(colour, line_opacity)},
        fill="toself",
        fillcolor=_with_opacity(colour, fill_opacity),
        hoveron="points",
        hovertemplate=(
            f"<b>{hover_name(name)}</b><br>{hover}z ≈ %{{customdata[0]:.3g}}<br>"
            "density %{customdata[1]:.3g}<extra></extra>"
        ),
    )


def neuron_name(group: "NeuronGroup", members: list[int]) -> str:
    """Return the name of a curve of one neuron, or of the mean of several neurons."""
    first, last = members[0], members[-1]
    name = f"neuron {first}" if first == last else f"mean of {len(members)} neurons, {first} to {last}"
    if group.heads:
        heads = sorted({neuron // group.d_head for neuron in members})
        name += f" (head {heads[0]})" if len(heads) == 1 else f" (heads {heads[0]} to {heads[-1]})"
    return name


def _with_opacity(colour: str, opacity: float) -> str:
    ((rgb,), _) = convert_colors_to_same_type([colour])
    return str(rgb).replace("rgb(", "rgba(").replace(")", f", {opacity:.3g})")
