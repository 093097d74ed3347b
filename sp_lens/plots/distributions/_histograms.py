"""What figures of activation densities share: histograms read and found comparable, and drawn as outlines."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go
from plotly.colors import convert_colors_to_same_type

from sp_lens.errors import SpLensError
from sp_lens.plots._text import plain

if TYPE_CHECKING:
    from sp_lens.neurons.layout import NeuronGroup
    from sp_lens.statistics.activation_stats import ActivationStats
    from sp_lens.typing import Site

Floats = npt.NDArray[np.floating]

DENSITY = "density (share of tokens<br>per unit of activation, log)"
ACTIVATION = "activation of the neuron (z)"


class Histograms(NamedTuple):
    """The histograms of some neurons of one layer on one corpus.

    Attributes:
        tokens: how many were counted.
        edges: [bin + 1].
        density: [neuron bin], the share of all tokens per unit of activation.
    """

    tokens: int
    edges: Floats
    density: Floats


def read(
    stats_by_corpus: "Mapping[str, ActivationStats]", site: "Site", layer: int, neurons: list[int], *, function: str
) -> "tuple[NeuronGroup, dict[str, Histograms]]":
    """The histograms of each corpus, found to be comparable, and the group that the neurons are of.

    Raises:
        SpLensError: when there is no corpus, the statistics are of different models, have no histogram of one of the
            neurons, or different edges.
    """
    require_corpora(stats_by_corpus, function=function)
    found: dict[str, Histograms] = {}
    first_label, first = next(iter(stats_by_corpus.items()))
    for label, stats in stats_by_corpus.items():
        frame = stats.histogram_frame(site, layer, neurons)
        bins = len(frame) // len(neurons)
        edges = np.append(frame["left"].to_numpy()[:bins], frame["right"].to_numpy()[bins - 1])
        found[label] = Histograms(stats.count, edges, frame["density"].to_numpy().reshape(len(neurons), bins))
        if not np.array_equal(edges, found[first_label].edges):
            raise SpLensError(
                f"the histograms of {first_label!r} and {label!r} have different edges: collect both corpora with the "
                f"same, as collect_histograms(model, corpora, site={site!r}) does."
            )
    return next(group for group in first.layout.select(site) if group.layer == layer), found


def require_corpora(stats_by_corpus: "Mapping[str, ActivationStats]", *, function: str) -> None:
    """Refuse anything but statistics of one model by corpus; `function` is whose argument it is.

    Raises:
        SpLensError: for anything else, or when there is no corpus.
    """
    # ActivationStats is a mapping too, of hook names: given alone, it would pass for one of corpora.
    if not isinstance(stats_by_corpus, Mapping) or hasattr(stats_by_corpus, "histogram_frame"):
        kind = type(stats_by_corpus).__name__
        raise SpLensError(f"expected {{label: ActivationStats}}, got {kind}: say {function}({{'code': stats}}).")
    if not stats_by_corpus:
        raise SpLensError("there is no corpus to draw: expected {label: ActivationStats}.")
    first = next(iter(stats_by_corpus.values()))
    for label, stats in stats_by_corpus.items():
        if not hasattr(stats, "histogram_frame"):
            raise SpLensError(f"{label!r} is a {type(stats).__name__}: expected ActivationStats, as collect() returns.")
        first.require_same_model(stats)


def bins_in_use(histograms: Iterable[Histograms]) -> tuple[float, float]:
    """The edges between which any of the histograms has tokens, with a margin; all have the same edges."""
    listed = list(histograms)
    edges, filled = listed[0].edges, np.flatnonzero(np.any([one.density.any(axis=0) for one in listed], axis=0))
    low, high = edges[filled[0]], edges[filled[-1] + 1]
    margin = 0.02 * (high - low)
    return float(low - margin), float(high + margin)


def density_range(histograms: Iterable[Histograms]) -> tuple[float, float]:
    """The bottom of a logarithmic axis, half the smallest density above zero, and its top.

    Raises:
        SpLensError: when no histogram has a token.
    """
    listed = list(histograms)
    every = np.concatenate([one.density.ravel() for one in listed])
    if not every.any():
        low, high = listed[0].edges[[0, -1]]
        raise SpLensError(
            f"all activations of the neurons lie outside the edges {low:.3g} to {high:.3g}: "
            "collect_histograms(model, corpora, ...) takes edges that hold them."
        )
    return float(every[every > 0].min()) / 2, float(every.max()) * 1.5


def set_axes(figure: go.Figure, histograms: Iterable[Histograms], floor: float, top: float) -> None:
    """x is the activation, where there are tokens; y the density between `floor` and `top`, logarithmic."""
    figure.update_xaxes(title_text=ACTIVATION, range=bins_in_use(histograms))
    figure.update_yaxes(type="log", range=np.log10([floor, top]), exponentformat="power")
    # Label whole powers of ten, unless the axis is too short to have two of them.
    figure.update_yaxes(dtick=1 if top / floor > 100 else None)


def bins_about(edges: Floats) -> str:
    """In words, how many bins there are and where."""
    return f"{len(edges) - 1} bins from {edges[0]:.3g} to {edges[-1]:.3g}"


def outline(
    edges: Floats,
    density: Floats,
    *,
    floor: float,
    name: str,
    colour: str,
    fill: float = 0.2,
    line: float = 1,
    hover: str = "",
) -> go.Scatter:
    """The outline of one histogram [bin], from its first to its last bin with tokens, filled down to `floor`.

    A logarithmic axis has no zero to fill to, so the outline is closed by hand: it starts and ends at the
    floor, and goes down to it in empty bins.

    Args:
        edges, density: [bin + 1] and [bin].
        floor: of the axis.
        name: of the trace, and what its hover says first.
        colour: of the filling, whose opacity is `fill`, and of the line, whose opacity is `line`.
        hover: what the hover says next.
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
        name=plain(name),
        mode="lines",
        line={"shape": "hv", "width": 1, "color": _translucent(colour, line)},
        fill="toself",
        fillcolor=_translucent(colour, fill),
        hoveron="points",
        hovertemplate=(
            f"<b>{plain(name)}</b><br>{hover}z about %{{customdata[0]:.3g}}<br>"
            "density %{customdata[1]:.3g}<extra></extra>"
        ),
    )


def neuron_name(group: "NeuronGroup", members: list[int]) -> str:
    """What a curve of one neuron, or of the mean of several, is called."""
    first, last = members[0], members[-1]
    name = f"neuron {first}" if first == last else f"mean of {len(members)} neurons, {first} to {last}"
    if group.heads:
        heads = sorted({neuron // (group.d_head) for neuron in members})
        name += f" (head {heads[0]})" if len(heads) == 1 else f" (heads {heads[0]} to {heads[-1]})"
    return name


def _translucent(colour: str, opacity: float) -> str:
    ((rgb,), _) = convert_colors_to_same_type([colour])
    return str(rgb).replace("rgb(", "rgba(").replace(")", f", {opacity:.3g})")
