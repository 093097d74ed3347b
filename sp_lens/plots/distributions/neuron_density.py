"""Activation density of one neuron on several corpora, overlaid (not in the paper; related to Figure 5)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from sp_lens.plots._labels import SITE_NAMES, model_prefix
from sp_lens.plots._layout import corpus_colours, finish
from sp_lens.plots._text import escape_plotly
from sp_lens.plots.distributions import _histograms
from sp_lens.plots.themes import TEMPLATES

if TYPE_CHECKING:
    from sp_lens.statistics.activation_stats import ActivationStats
    from sp_lens.typing import Site


def neuron_density(
    stats_by_corpus: "Mapping[str, ActivationStats]", *, site: "Site", layer: int, neuron: int
) -> go.Figure:
    """Plot the probability density of one neuron's activation on several corpora (not a figure of the paper).

    The outlines are streamed histograms, drawn in the same way as in `density`. The legend gives the share of tokens
    on which the activation is exactly 0 if it is never negative (as after a ReLU), and otherwise the share of tokens
    on which it is above 0.

    Args:
        stats_by_corpus: Statistics of each corpus by label, at most 7, with histograms between the same edges, as
            returned by `collect_histograms`.
        site: Site of the neuron, "mlp" or "attn".
        layer: Index of the transformer block.
        neuron: Index of the neuron in its layer; at site "attn" this is head * d_head + unit.

    Returns:
        Figure with the activation z on the x axis and the share of tokens per unit of activation on a logarithmic
        y axis, with one trace per corpus.

    Raises:
        SpLensError: If there is no corpus or more than 7, the statistics belong to different models, the neuron has
            no histogram, the edges differ between corpora, or all activations lie outside the edges.

    Example:
        >>> import sp_lens as sp
        >>> sp.plots.neuron_density({}, site="mlp", layer=0, neuron=0)
        Traceback (most recent call last):
            ...
        sp_lens.errors.SpLensError: there is no corpus to draw: expected {label: ActivationStats}.
    """
    group, histograms = _histograms.read_histograms(stats_by_corpus, site, layer, [neuron], function="neuron_density")
    colours = corpus_colours(histograms, function="neuron_density")
    floor, top = _histograms.density_range(histograms.values())
    figure = go.Figure()
    for label, (tokens, edges, heights) in histograms.items():
        active = _active_share(stats_by_corpus[label], group.name, neuron)
        curve = _histograms.outline(
            edges, heights[0], floor=floor, name=label, colour=colours[label], hover=f"{active} of tokens<br>"
        )
        figure.add_trace(curve.update(name=f"{escape_plotly(label)}: {tokens:,} tokens, {active}", line_width=2))
    figure.update_layout(template=TEMPLATES["notebook"], height=524, showlegend=True)
    figure.update_layout(legend_orientation="v")  # one line per corpus, because the entries are long
    _histograms.set_density_axes(figure, histograms.values(), floor, top)
    figure.update_yaxes(title_text=_histograms.DENSITY_TITLE)
    model = model_prefix(next(iter(stats_by_corpus.values())))
    finish(
        figure,
        f"Activation density: {model}layer {layer}, {SITE_NAMES[site]}, {_histograms.neuron_name(group, [neuron])}",
        _histograms.describe_bins(histograms),
    )
    return figure


def _active_share(stats: "ActivationStats", name: str, neuron: int) -> str:
    """Return the share of tokens with z = 0 for a neuron that is never negative, otherwise the share with z > 0."""
    moments = stats[name]
    above = int(moments.positive[neuron]) / moments.count
    return f"z = 0 on {1 - above:.1%}" if float(moments.min[neuron]) >= 0 else f"z > 0 on {above:.1%}"
