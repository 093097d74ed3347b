"""How the activation of one neuron is distributed on several corpora, one over the other."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from sp_lens.plots._shared import SITE_NAMES, corpus_colours, of_model, set_title
from sp_lens.plots._text import plain
from sp_lens.plots.distributions._histograms import (
    DENSITY,
    bins_about,
    density_range,
    neuron_name,
    outline,
    read,
    set_axes,
)
from sp_lens.plots.themes import TEMPLATES

if TYPE_CHECKING:
    from sp_lens.statistics.activation_stats import ActivationStats
    from sp_lens.typing import Site


def neuron_density(
    stats_by_corpus: "Mapping[str, ActivationStats]", *, site: "Site", layer: int, neuron: int
) -> go.Figure:
    """The probability density of one neuron's activation, the corpora over one another (a figure of ours).

    The outlines are streamed histograms, drawn as `density` draws them. The legend says of each corpus the
    share of its tokens on which the neuron is at exactly 0, where it is never below (as after a ReLU), and
    else the share on which it is above 0.

    Args:
        stats_by_corpus: label -> statistics with histograms between the same edges, as
            `collect_histograms` returns them; at most 7.
        site: "mlp" or "attn".
        layer: the block.
        neuron: index into the layer; on "attn", head * d_head + unit.

    Returns:
        x is the activation z, y the share of the corpus' tokens per unit of activation, logarithmic; one
        trace a corpus.

    Raises:
        SpLensError: when there is no corpus or too many, the statistics are of different models, have no
            histogram of the neuron or different edges, or all activations lie outside them.

    Example:
        >>> import sp_lens as sp
        >>> sp.plots.neuron_density({}, site="mlp", layer=0, neuron=0)
        Traceback (most recent call last):
            ...
        sp_lens.errors.SpLensError: there is no corpus to draw: expected {label: ActivationStats}.
    """
    group, histograms = read(stats_by_corpus, site, layer, [neuron], function="neuron_density")
    colours = corpus_colours(histograms, function="neuron_density")
    floor, top = density_range(histograms.values())
    figure = go.Figure()
    for label, one in histograms.items():
        fires = _fires(stats_by_corpus[label], group.name, neuron)
        curve = outline(one.edges, one.density[0], floor=floor, name=label, colour=colours[label], hover=f"{fires}<br>")
        figure.add_trace(curve.update(name=f"{plain(label)}: {one.tokens:,} tokens, {fires}", line_width=2))
    figure.update_layout(template=TEMPLATES["notebook"], height=500 + 24 * len(histograms), showlegend=True)
    figure.update_layout(legend_orientation="v")  # a line each, as they say more than a name
    set_axes(figure, histograms.values(), floor, top)
    figure.update_yaxes(title_text=DENSITY)
    edges = next(iter(histograms.values())).edges
    model = of_model(next(iter(stats_by_corpus.values())))
    set_title(
        figure,
        f"Activation density: {model}layer {layer}, {SITE_NAMES[site]}, {neuron_name(group, [neuron])}",
        bins_about(edges),
    )
    return figure


def _fires(stats: "ActivationStats", name: str, neuron: int) -> str:
    """On what share of the tokens the neuron is above 0, or at 0 where it is never below."""
    moments = stats[name]
    above = int(moments.positive[neuron]) / moments.count
    return f"{1 - above:.1%} at exactly 0" if float(moments.min[neuron]) >= 0 else f"{above:.1%} above 0"
