"""Scores of all neurons by layer, each layer sorted by score (not in the paper; scores of Definition 2)."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from sp_lens.plots._labels import METRIC_NAMES, SITE_NAMES, values_about
from sp_lens.plots._layout import finish
from sp_lens.plots._text import escape_plotly
from sp_lens.plots.neurons._heatmap import heatmap, pad_rows
from sp_lens.plots.neurons._inputs import is_score, require_values

if TYPE_CHECKING:
    from sp_lens.neurons.values import NeuronValues
    from sp_lens.typing import Site

Numbers = npt.NDArray[np.number]

MAX_COLUMNS = 500  # about the width of the plot in pixels


def score_map(scores: "NeuronValues", *, site: "Site" = "mlp") -> go.Figure:
    """Plot the score of every neuron, one row per layer, sorted from high to low (not a figure of the paper).

    In layers of more than 500 neurons, a cell is the mean of several neurons that are consecutive in this order, so
    the figure of a model with half a million neurons is no larger than that of a small model. Scores are coloured
    logarithmically around 1, where a neuron is equally important on both corpora: red means more important on the
    forget corpus, blue on the retain corpus. The colour does not change beyond a factor of 1000. Other values (an
    importance, an ablation effect) are coloured linearly, around 0 if some are negative.

    Args:
        scores: Scores returned by `score`, or any other `NeuronValues`.
        site: Site of the neurons, "mlp" or "attn".

    Returns:
        Heatmap with the rank of a neuron within its layer on the x axis and the layer on the y axis. Cells are grey
        if the layer is narrower than others or all values are NaN. The hover text names the highest neuron of a cell.

    Raises:
        SpLensError: If the argument is not `NeuronValues`, the scores lack the site, or no value is finite.

    Example:
        >>> import sp_lens as sp
        >>> sp.plots.score_map(3)
        Traceback (most recent call last):
            ...
        sp_lens.errors.SpLensError: score_map expects NeuronValues, got int: compute them with score(forget, retain) \
or stats.importance('abs').
    """
    require_values(scores, "NeuronValues", "score_map")
    part = scores.select(site)
    widest = max(group.width for group in part.layout)
    size = -(-widest // MAX_COLUMNS)
    rows = [_cells(part[group.name].cpu().double().numpy(), size) for group in part.layout]
    mean, first, last, highest, neuron = (pad_rows(list(column)) for column in zip(*rows, strict=True))
    ratio = is_score(scores)
    metric = str(scores.about.get("metric", "value"))
    quantity, unit = ("score", "score (log scale)") if ratio else (metric, METRIC_NAMES.get(metric, metric))
    head, customdata = "", [first, last, highest, neuron]
    if site == "attn":
        head_sizes = [[group.d_head] for group in part.layout]
        head, customdata = " (head %{customdata[5]})", [*customdata, neuron // head_sizes]
    neuron_text = f"neuron %{{customdata[4]}}{head}"
    hover = f"layer %{{y}}, rank %{{customdata[1]}}<br>{neuron_text}: {escape_plotly(quantity)} %{{customdata[0]:.3g}}"
    if size > 1:
        hover = (
            f"layer %{{y}}, ranks %{{customdata[1]}} to %{{customdata[2]}}<br>"
            f"mean {escape_plotly(quantity)} %{{customdata[0]:.3g}}<br>highest: {neuron_text}, %{{customdata[3]:.3g}}"
        )
    figure = heatmap(
        mean,
        rows=[str(group.layer) for group in part.layout],
        unit=unit,
        hover=hover,
        x_title=f"rank within the layer (highest {escape_plotly(quantity)} first)",
        customdata=customdata,
        ratio=ratio,
    )
    figure.update_traces(x0=(1 + size) / 2, dx=size)  # x0 is the mean rank in the first cell
    cells = f"each cell is the mean of {size} neurons" if size > 1 else "one cell per neuron"
    meaning = "; red: more important on the forget corpus, blue: on the retain corpus" if ratio else ""
    about = values_about(scores.about)
    finish(
        figure,
        f"All {SITE_NAMES[site]} neurons by layer: {unit}",
        f"{about}{'; ' if about else ''}{part.layout.neurons:,} neurons, {cells}{meaning}",
    )
    return figure


def _cells(values: Numbers, size: int) -> tuple[Numbers, ...]:
    """Group the sorted values of one layer into cells; NaN is ranked last.

    Returns:
        For each cell the mean, the first and last rank, the highest value, and the neuron that has it.
    """
    order = np.argsort(-values, kind="stable")
    ranked = values[order]
    starts = np.arange(0, len(values), size)
    known = np.add.reduceat((~np.isnan(ranked)).astype(int), starts)
    total = np.add.reduceat(np.nan_to_num(ranked, nan=0, posinf=np.inf, neginf=-np.inf), starts)
    mean = np.divide(total, known, out=np.full(len(starts), np.nan), where=known > 0)
    return mean, starts + 1, np.minimum(starts + size, len(values)), ranked[starts], order[starts]
