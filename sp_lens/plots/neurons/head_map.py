"""Importance or score of every attention head, layers by heads (not in the paper; values of Definition 3)."""

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from sp_lens.plots._labels import METRIC_NAMES, values_about
from sp_lens.plots._layout import finish
from sp_lens.plots._text import escape_plotly
from sp_lens.plots.neurons._heatmap import heatmap, pad_rows
from sp_lens.plots.neurons._inputs import is_score, require_values

if TYPE_CHECKING:
    from sp_lens.neurons.values import HeadValues


def head_map(heads: "HeadValues") -> go.Figure:
    """Plot the importance of every attention head, by either version of Definition 3 (not a figure of the paper).

    Pass `stats.importance("abs").heads("mean")` or scores computed from it for the importance by activation, and
    `ablation_effect(model, corpus, unit="head")` for the importance by ablation. If there are negative values (heads
    without which the model predicts better), colours run from blue through white at 0 to red, otherwise from white at
    0 to blue. Scores are coloured as in `score_map`, logarithmically around 1. If there are at most 150 cells, each
    shows its value.

    Args:
        heads: One value per attention head.

    Returns:
        Heatmap with the head on the x axis and the layer on the y axis. Ablation effects are in nats per token. Cells
        are grey if the value is NaN or the layer has fewer heads than others.

    Raises:
        SpLensError: If the argument is not `HeadValues`, or no value is finite.

    Example:
        >>> import sp_lens as sp
        >>> sp.plots.head_map({})
        Traceback (most recent call last):
            ...
        sp_lens.errors.SpLensError: head_map expects HeadValues, got dict: compute them with scores.heads('mean') or \
ablation_effect(model, corpus, unit='head').
    """
    require_values(heads, "HeadValues", "head_map")
    metric = str(heads.about.get("metric", "importance"))
    method, unit = "activation", METRIC_NAMES.get(metric, metric)
    if "mode" in heads.about:  # recorded by ablation_effect and effect_estimate
        estimated = "estimated " if metric.startswith("estimated") else ""
        method, unit = "ablation", f"{estimated}increase in loss (nats per token)"
    quantity, colour_bar_title = "Importance", unit
    if is_score(heads):
        quantity, unit, colour_bar_title = "Scores", "score", "score (log scale)"
    values = pad_rows([tensor.cpu().double().numpy() for tensor in heads.values()])
    figure = heatmap(
        values,
        rows=[str(group.layer) for group in heads.layout],
        unit=colour_bar_title,
        hover=f"layer %{{y}}, head %{{x}}<br>{escape_plotly(unit)}: %{{customdata[0]:.3g}}",
        x_title="head",
        ratio=is_score(heads),
    )
    figure.update_xaxes(dtick=-(-values.shape[1] // 32))
    finish(figure, f"{quantity} of attention heads by {method}", values_about(heads.about))
    return figure
