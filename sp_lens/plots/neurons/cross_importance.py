"""Whether corpora can be told apart by their neurons: corpora by corpora."""

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from sp_lens.plots._shared import SITE_NAMES, require_specialisation, set_title, specialisation_about
from sp_lens.plots._text import plain
from sp_lens.plots.neurons._heatmap import heatmap

if TYPE_CHECKING:
    from sp_lens.scoring.specialisation import Specialisation
    from sp_lens.typing import Site


def cross_importance(special: "Specialisation", *, site: "Site" = "mlp", fraction: float = 0.02) -> go.Figure:
    """How much the neurons most specific to one corpus matter on each of the corpora (a figure of ours).

    A cell is the share of the summed importance of all neurons of the site, on the corpus of its column,
    that the top `fraction` of the scores for the corpus of its row has. Dark on the diagonal and light
    beside it, the corpora use neurons of their own; dark beside it, pruning for the one hurts the other.

    Args:
        special: what `specialisation` returns.
        site: "mlp" or "attn".
        fraction: share of all neurons of the site, as one step of `prune` takes it.

    Returns:
        y is the corpus that neurons are specific to, x the corpus they are measured on; cells are per cent.

    Raises:
        SpLensError: for anything that is no `Specialisation`, a site that it does not have, a fraction that is no
            share, or a corpus on which no neuron is of any importance.

    Example:
        >>> import sp_lens as sp
        >>> sp.plots.cross_importance(3)
        Traceback (most recent call last):
            ...
        sp_lens.errors.SpLensError: cross_importance draws what sp.specialisation() returns, got int.
    """
    require_specialisation(special, "cross_importance")
    shares = 100 * special.overlap(fraction, site=site)
    labels = [str(label) for label in shares.index]
    figure = heatmap(
        shares.to_numpy(),
        rows=labels,
        unit="share of the importance (%)",
        hover="neurons specific to %{y}, on %{x}<br>%{customdata[0]:.2f} % of the importance",
    )
    figure.update_traces(x=[plain(label) for label in labels])
    figure.update_xaxes(title_text="measured on", type="category")
    figure.update_yaxes(title_text="neurons specific to")
    figure.update_layout(width=680, height=330 + 50 * len(labels))
    set_title(
        figure,
        f"Importance of the {SITE_NAMES[site]} neurons specific to each corpus",
        f"the top {100 * fraction:.3g} % of all, against the others on average; {specialisation_about(special)}",
    )
    return figure
