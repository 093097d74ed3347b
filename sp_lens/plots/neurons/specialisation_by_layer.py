"""Share of each layer's neurons that are specific to each corpus (not in the paper)."""

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from sp_lens.errors import SpLensError
from sp_lens.plots._labels import SITE_NAMES
from sp_lens.plots._layout import corpus_colours, finish, make_panels
from sp_lens.plots._text import escape_plotly, hover_name
from sp_lens.plots.neurons._inputs import require_specialisation, specialisation_about

if TYPE_CHECKING:
    from sp_lens.scoring.specialisation import Specialisation


def specialisation_by_layer(special: "Specialisation", *, above: float = 2.0) -> go.Figure:
    """Plot the share of each layer's neurons that are most specific to each corpus (not a figure of the paper).

    A neuron counts for the corpus with its highest score if this score (its specificity) is greater than `above`,
    that is, if it is more than `above` times as important on this corpus as on the mean of the others. There is one
    panel per site.

    Args:
        special: Result of `specialisation` for at most 7 corpora.
        above: Specificity that a neuron must exceed to count, 1 or more.

    Returns:
        Stacked bars with the layer on the x axis and the share of its neurons in per cent on the y axis. There is one
        trace per site and corpus.

    Raises:
        SpLensError: If the argument is not a `Specialisation`, there are more than 7 corpora, or no neuron exceeds
            `above`.

    Example:
        >>> import sp_lens as sp
        >>> sp.plots.specialisation_by_layer({})
        Traceback (most recent call last):
            ...
        sp_lens.errors.SpLensError: specialisation_by_layer expects the result of sp.specialisation(), got an object \
of type dict.
    """
    require_specialisation(special, "specialisation_by_layer")
    colours = corpus_colours(special, function="specialisation_by_layer")
    counts = special.counts(above=above)
    if not counts["neurons"].any():
        raise SpLensError(
            f"no neuron has a specificity above {above:g}: the highest is "
            f"{special.frame()['specificity'].max():.3g}. Pass a lower `above`."
        )
    sites = sorted(counts["site"].unique())
    figure, cells = make_panels([f"{SITE_NAMES[site]} neurons" for site in sites], columns=2, gap=0)
    for site, (row, column) in zip(sites, cells, strict=True):
        for corpus, colour in colours.items():
            bars = counts.loc[(counts["site"] == site) & (counts["corpus"] == corpus)]
            figure.add_bar(
                x=bars["layer"],
                y=100 * bars["share"],
                customdata=bars["neurons"],
                name=escape_plotly(corpus),
                legendgroup=corpus,
                showlegend=column == 1,
                marker_color=colour,
                hovertemplate=(
                    f"<b>layer %{{x}}</b>, {SITE_NAMES[site]}<br>{hover_name(corpus)}: %{{y:.1f}} %, "
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
    finish(
        figure,
        "Neurons most specific to each corpus by layer",
        f"specific: more than {above:g} times as important on this corpus as on the mean of the others; "
        f"{specialisation_about(special)}",
    )
    return figure
