"""How many neurons of each layer are specific to each corpus."""

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from sp_lens.errors import SpLensError
from sp_lens.plots._shared import (
    SITE_NAMES,
    corpus_colours,
    panels,
    require_specialisation,
    set_title,
    specialisation_about,
)
from sp_lens.plots._text import plain

if TYPE_CHECKING:
    from sp_lens.scoring.specialisation import Specialisation


def specialisation_by_layer(special: "Specialisation", *, above: float = 2.0) -> go.Figure:
    """The share of each layer's neurons that are most specific to each corpus (a figure of ours).

    A neuron counts for the corpus with its highest score, if that is above `above`: if it is more than so
    many times as important on this corpus as on the others on average. One panel a site.

    Args:
        special: what `specialisation` returns, of at most 7 corpora.
        above: the least specificity that counts, 1 or more.

    Returns:
        x is the layer, y the share of its neurons in per cent; bars are stacked, one trace a site and corpus.

    Raises:
        SpLensError: for anything that is no `Specialisation`, too many corpora, or when no neuron is that specific.

    Example:
        >>> import sp_lens as sp
        >>> sp.plots.specialisation_by_layer({})
        Traceback (most recent call last):
            ...
        sp_lens.errors.SpLensError: specialisation_by_layer draws what sp.specialisation() returns, got dict.
    """
    require_specialisation(special, "specialisation_by_layer")
    colours = corpus_colours(special, function="specialisation_by_layer")
    counts = special.counts(above=above)
    if not counts["neurons"].any():
        raise SpLensError(
            f"no neuron has a specificity above {above:g}: the highest is "
            f"{special.frame()['specificity'].max():.3g}. Give a lower `above`."
        )
    sites = sorted(counts["site"].unique())
    figure, places = panels([f"{SITE_NAMES[site]} neurons" for site in sites], columns=2, gap=0)
    for site, (row, column) in zip(sites, places, strict=True):
        for corpus, colour in colours.items():
            bars = counts.loc[(counts["site"] == site) & (counts["corpus"] == corpus)]
            figure.add_bar(
                x=bars["layer"],
                y=100 * bars["share"],
                customdata=bars["neurons"],
                name=plain(corpus),
                legendgroup=corpus,
                showlegend=column == 1,
                marker_color=colour,
                hovertemplate=(
                    f"<b>layer %{{x}}</b>, {SITE_NAMES[site]}<br>{plain(corpus)}: %{{y:.1f}} %, "
                    "%{customdata:,} neurons<extra></extra>"
                ),
                row=row,
                col=column,
            )
    layers = counts["layer"].nunique()
    figure.update_xaxes(title_text="layer", dtick=-(-layers // 16), tickformat="d")
    figure.update_yaxes(rangemode="tozero")
    figure.update_yaxes(title_text="share of the layer's neurons (%)", col=1)
    figure.update_layout(barmode="stack", height=560, showlegend=True)
    set_title(
        figure,
        "Neurons most specific to each corpus, layer by layer",
        f"more than {above:g} times as important on it as on the others on average; {specialisation_about(special)}",
    )
    return figure
