"""Where in a model the neurons of high scores are: layers by neurons."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from sp_lens.plots._shared import METRIC_NAMES, SITE_NAMES, set_title, values_about
from sp_lens.plots._text import plain
from sp_lens.plots.neurons._heatmap import heatmap, in_rows, is_score, require_values

if TYPE_CHECKING:
    from sp_lens.neurons.values import NeuronValues
    from sp_lens.typing import Site

Numbers = npt.NDArray[np.number]

MOST_COLUMNS = 500  # about as many as the figure has pixels for


def score_map(scores: "NeuronValues", *, site: "Site" = "mlp") -> go.Figure:
    """The score of every neuron, a row a layer, each row sorted with its highest score first (a figure of ours).

    In layers of more than 500 neurons, neurons that follow one another in that order are one cell, whose
    colour is their mean: a model of half a million neurons is as light as a small one. Scores are coloured
    logarithmically around 1, where a neuron matters equally on both corpora: red matters more on the forget
    corpus, blue on the retain corpus, and beyond 1000 to either side the colour stays the same. Other values
    (an importance, an effect) are coloured linearly, around 0 where some are negative.

    Args:
        scores: what `score` returns, or any other `NeuronValues`.
        site: "mlp" or "attn".

    Returns:
        x is the rank of a neuron within its layer, y the layer. Where layers are narrower than the widest,
        or values are NaN, the map is grey. The hover names the highest neuron of a cell.

    Raises:
        SpLensError: for anything that is no `NeuronValues`, a site that the scores don't have, or when no value
            is finite.

    Example:
        >>> import sp_lens as sp
        >>> sp.plots.score_map(3)
        Traceback (most recent call last):
            ...
        sp_lens.errors.SpLensError: score_map draws NeuronValues, got int: make them with score(forget, retain) or \
stats.importance('abs').
    """
    require_values(scores, "NeuronValues", "score_map")
    part = scores.select(site)
    widest = max(group.width for group in part.layout)
    size = -(-widest // MOST_COLUMNS)
    rows = [_cells(part[group.name].cpu().double().numpy(), size) for group in part.layout]
    mean, first, last, highest, neuron = (in_rows(list(column)) for column in zip(*rows, strict=True))
    ratio = is_score(scores)
    metric = str(scores.about.get("metric", "value"))
    what, unit = ("score", "score (log)") if ratio else (metric, METRIC_NAMES.get(metric, metric))
    head, more = "", [first, last, highest, neuron]
    if site == "attn":
        units = [[group.d_head] for group in part.layout]
        head, more = " (head %{customdata[5]})", [*more, neuron // units]
    named = f"neuron %{{customdata[4]}}{head}"
    hover = f"layer %{{y}}, rank %{{customdata[1]}}<br>{named}: {plain(what)} %{{customdata[0]:.3g}}"
    if size > 1:
        hover = (
            f"layer %{{y}}, ranks %{{customdata[1]}} to %{{customdata[2]}}<br>"
            f"mean {plain(what)} %{{customdata[0]:.3g}}<br>highest: {named}, %{{customdata[3]:.3g}}"
        )
    figure = heatmap(
        mean,
        rows=[str(group.layer) for group in part.layout],
        unit=unit,
        hover=hover,
        more=more,
        ratio=ratio,
    )
    figure.update_traces(x0=(1 + size) / 2, dx=size)  # the middle of the ranks of the first cell
    figure.update_xaxes(title_text=f"rank of the neuron within its layer, highest {plain(what)} first")
    cells = f"a cell is the mean of {size} neurons" if size > 1 else "a cell is a neuron"
    meaning = "; red: more for the forget corpus, blue: more for the retain corpus" if ratio else ""
    title = f"Every {SITE_NAMES[site]} neuron, layer by layer: {unit}"
    about = values_about(scores.about)
    set_title(figure, title, f"{about}{'; ' if about else ''}{part.layout.neurons:,} neurons, {cells}{meaning}")
    return figure


def _cells(values: Numbers, size: int) -> tuple[Numbers, ...]:
    """The cells of one layer: mean, first and last rank, highest value and whose it is. NaN ranks last."""
    order = np.argsort(-values, kind="stable")
    ranked = values[order]
    starts = np.arange(0, len(values), size)
    known = np.add.reduceat((~np.isnan(ranked)).astype(int), starts)
    total = np.add.reduceat(np.nan_to_num(ranked, nan=0, posinf=np.inf, neginf=-np.inf), starts)
    mean = np.divide(total, known, out=np.full(len(starts), np.nan), where=known > 0)
    return mean, starts + 1, np.minimum(starts + size, len(values)), ranked[starts], order[starts]
