"""Rank correlation of the neuron scores between importance metrics (not in the paper; the metrics of Figure 4)."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sp_lens.errors import SpLensError
from sp_lens.plots._labels import SITE_NAMES, values_about
from sp_lens.plots._layout import finish
from sp_lens.plots.neurons._heatmap import heatmap
from sp_lens.plots.neurons._inputs import site_scores

if TYPE_CHECKING:
    from sp_lens.statistics.activation_stats import ActivationStats
    from sp_lens.typing import Metric, Site

METRICS: tuple["Metric", ...] = ("freq", "abs", "rms", "std")  # in the order of the paper's Figure 4


def metric_agreement(forget: "ActivationStats", retain: "ActivationStats", *, site: "Site" = "mlp") -> go.Figure:
    """Plot Spearman's rank correlation of the scores between all pairs of metrics (not a figure of the paper).

    Pruning takes neurons in the order of their scores, so two metrics with correlation 1 prune the same neurons. All
    layers are ranked together, and neurons with equal scores share the mean of their ranks.

    Args:
        forget: Statistics on the forget corpus, as returned by `collect`.
        retain: Statistics of the same model on the retain corpus.
        site: Site of the neurons, "mlp" or "attn".

    Returns:
        Annotated heatmap, metrics by metrics. Its colours range from -1 to 1, or from 0 if no correlation is negative.

    Raises:
        SpLensError: If an argument is not ActivationStats, the statistics belong to different models, the site is
            unknown, or a metric gives all neurons the same score, so that there is no ranking.

    Example:
        >>> import sp_lens as sp
        >>> sp.plots.metric_agreement({}, {})
        Traceback (most recent call last):
            ...
        sp_lens.errors.SpLensError: forget has type dict: expected ActivationStats from collect().
    """
    scores = {metric: site_scores(forget, retain, metric=metric, site=site) for metric in METRICS}
    columns = {metric: np.concatenate([values[name].numpy() for name in values]) for metric, values in scores.items()}
    ranks = pd.DataFrame(columns).rank()
    if constant := [metric for metric in METRICS if ranks[metric].nunique() == 1]:
        raise SpLensError(
            f"all {len(ranks)} {site} neurons have the same score by {constant[0]!r}, so there is no ranking to "
            "compare: collect forget and retain statistics from different text, and from more of it."
        )
    correlation = ranks.corr().to_numpy()
    figure = heatmap(
        correlation,
        rows=METRICS,
        columns=METRICS,
        unit="rank correlation",
        hover="%{y} and %{x}<br>rank correlation %{customdata[0]:.3f}",
        x_title="score by",
        y_title="score by",
    )
    figure.update_traces(zmax=1, zmin=-1 if correlation.min() < 0 else 0)
    figure.update_layout(width=560, height=480)
    about = values_about({key: value for key, value in scores["abs"].about.items() if key != "metric"})
    finish(
        figure,
        f"Rank correlation of {SITE_NAMES[site]} neuron scores",
        f"Spearman's correlation between importance metrics, {len(ranks):,} neurons<br>{about}",
    )
    return figure
