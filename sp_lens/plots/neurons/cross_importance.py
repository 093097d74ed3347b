"""Importance of the neurons specific to one corpus on every corpus, corpora by corpora (not in the paper)."""

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from sp_lens.plots._labels import SITE_NAMES
from sp_lens.plots._layout import finish
from sp_lens.plots._text import hover_name
from sp_lens.plots.neurons._heatmap import heatmap
from sp_lens.plots.neurons._inputs import require_specialisation, specialisation_about

if TYPE_CHECKING:
    from sp_lens.scoring.specialisation import Specialisation
    from sp_lens.typing import Site


def cross_importance(special: "Specialisation", *, site: "Site" = "mlp", fraction: float = 0.02) -> go.Figure:
    """Plot how important the neurons most specific to one corpus are on each corpus (not a figure of the paper).

    For each row, take the top `fraction` of neurons by their score for the corpus of the row. A cell is the share of
    these neurons in the summed importance of all neurons of the site on the corpus of the column. A dark diagonal
    between light cells means that the corpora use different neurons. Dark cells beside the diagonal mean that pruning
    for one corpus harms the other.

    Args:
        special: Result of `specialisation`.
        site: Site of the neurons, "mlp" or "attn".
        fraction: Share of all neurons of the site that is taken for each corpus, as in one step of `prune`.

    Returns:
        Heatmap in per cent, with the corpus that neurons are specific to on the y axis and the corpus on which their
        importance is measured on the x axis.

    Raises:
        SpLensError: If the argument is not a `Specialisation`, it lacks the site, the fraction is not between 0 and
            1, or no neuron has any importance on one of the corpora.

    Example:
        >>> import sp_lens as sp
        >>> sp.plots.cross_importance(3)
        Traceback (most recent call last):
            ...
        sp_lens.errors.SpLensError: cross_importance expects the result of sp.specialisation(), got an object of type \
int.
    """
    require_specialisation(special, "cross_importance")
    shares = 100 * special.overlap(fraction, site=site)
    labels = [str(label) for label in shares.index]
    figure = heatmap(
        shares.to_numpy(),
        rows=labels,
        columns=labels,
        unit="share of total importance (%)",
        hover="%{hovertext}<br>%{customdata[0]:.2f} % of total importance",
        hovertext=[
            [hover_name(f"neurons specific to {row}, measured on {column}") for column in labels] for row in labels
        ],
        x_title="importance measured on",
        y_title="neurons specific to",
    )
    space = 120 if max(map(len, labels)) > 15 else 0  # for names of rows and columns
    figure.update_layout(width=680 + space, height=330 + space + 50 * len(labels))
    finish(
        figure,
        f"Importance of the {SITE_NAMES[site]} neurons specific to each corpus",
        f"top {100 * fraction:.3g} % of neurons by score against the mean of the other corpora; "
        f"{specialisation_about(special)}",
    )
    return figure
