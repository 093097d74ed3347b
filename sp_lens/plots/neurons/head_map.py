"""Which attention heads matter: layers by heads (Definition 3)."""

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from sp_lens.plots._shared import METRIC_NAMES, set_title, values_about
from sp_lens.plots._text import plain
from sp_lens.plots.neurons._heatmap import heatmap, in_rows, is_score, require_values

if TYPE_CHECKING:
    from sp_lens.neurons.values import HeadValues


def head_map(heads: "HeadValues") -> go.Figure:
    """The importance of every attention head, by either reading of Definition 3 (a figure of ours).

    By activation, `stats.importance("abs").heads("mean")` or its scores; or by ablation,
    `ablation_effect(model, corpus, unit="head")`. Where there are negative values (heads without which the
    model predicts better), the colours go from blue over white at 0 to red, else from white at 0 to blue;
    those of scores are as in `score_map`, logarithmic around 1. The value is
    written into each cell where there are at most 150.

    Args:
        heads: one value a head.

    Returns:
        x is the head, y the layer; ablation effects are in nats per token. NaN is grey, and so is what lies
        beyond the last head of a layer that has fewer than others.

    Raises:
        SpLensError: for anything that is no `HeadValues`, or when no value is finite.

    Example:
        >>> import sp_lens as sp
        >>> sp.plots.head_map({})
        Traceback (most recent call last):
            ...
        sp_lens.errors.SpLensError: head_map draws HeadValues, got dict: make them with scores.heads('mean') or \
ablation_effect(model, corpus, unit='head').
    """
    require_values(heads, "HeadValues", "head_map")
    ratio = is_score(heads)
    metric = str(heads.about.get("metric", "importance"))
    what, unit = "Importance of attention heads by activation", METRIC_NAMES.get(metric, metric)
    if "mode" in heads.about:  # of an ablation
        what, unit = "Importance of attention heads by ablation", "rise in loss (nats per token)"
        if metric.startswith("estimated"):  # effect_estimate
            unit = f"estimated {unit}"
    if ratio:
        what, unit = what.replace("Importance", "Score"), "score (log)"
    values = in_rows([tensor.cpu().double().numpy() for tensor in heads.values()])
    figure = heatmap(
        values,
        rows=[str(group.layer) for group in heads.layout],
        unit=unit,
        hover=f"layer %{{y}}, head %{{x}}<br>{plain(unit.removesuffix(' (log)'))}: %{{customdata[0]:.3g}}",
        ratio=ratio,
    )
    figure.update_xaxes(title_text="head", dtick=-(-values.shape[1] // 32))
    set_title(figure, what, values_about(heads.about))
    return figure
