"""How far the importance metrics rank the neurons alike."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sp_lens.errors import SpLensError
from sp_lens.plots._shared import SITE_NAMES, scores_of, set_title, values_about
from sp_lens.plots.neurons._heatmap import heatmap

if TYPE_CHECKING:
    from sp_lens.statistics.activation_stats import ActivationStats
    from sp_lens.typing import Metric, Site

METRICS: tuple["Metric", ...] = ("freq", "abs", "rms", "std")  # in the order of the paper's Figure 4


def metric_agreement(forget: "ActivationStats", retain: "ActivationStats", *, site: "Site" = "mlp") -> go.Figure:
    """The rank correlation (Spearman) of the scores by each metric with those by each other (a figure of ours).

    Pruning takes neurons in the order of their scores, so metrics whose correlation is 1 prune alike. The
    ranking is over all layers; neurons of equal scores share the mean of their ranks.

    Args:
        forget: statistics on the forget corpus, as `collect` returns them.
        retain: statistics of the same model on the retain corpus.
        site: "mlp" or "attn".

    Returns:
        A matrix of metrics by metrics, from -1 (or 0, where none is negative) to 1, written into its cells.

    Raises:
        SpLensError: for anything that is no statistics, statistics of different models, an unknown site, or when a
            metric gives all neurons the same score, so that there is no ranking.

    Example:
        >>> import sp_lens as sp
        >>> sp.plots.metric_agreement({}, {})
        Traceback (most recent call last):
            ...
        sp_lens.errors.SpLensError: forget is a dict: expected ActivationStats, as collect() returns.
    """
    scores = {metric: scores_of(forget, retain, metric=metric, site=site) for metric in METRICS}
    columns = {metric: np.concatenate([values[name].numpy() for name in values]) for metric, values in scores.items()}
    ranks = pd.DataFrame(columns).rank()
    if flat := [metric for metric in METRICS if ranks[metric].nunique() == 1]:
        raise SpLensError(
            f"all {len(ranks)} {site} neurons have the same score by {flat[0]!r}, so there is no ranking to compare: "
            "collect forget and retain from different text, and more of it."
        )
    correlation = ranks.corr().to_numpy()
    figure = heatmap(
        correlation,
        rows=METRICS,
        unit="rank correlation",
        hover="%{y} with %{x}<br>rank correlation %{customdata[0]:.3f}",
    )
    figure.update_traces(x=METRICS, zmax=1, zmin=-1 if correlation.min() < 0 else 0)
    figure.update_xaxes(title_text="score by", type="category")
    figure.update_yaxes(title_text="score by")
    figure.update_layout(width=560, height=480)
    about = values_about({key: value for key, value in scores["abs"].about.items() if key != "metric"})
    set_title(
        figure,
        f"Rank correlation of {SITE_NAMES[site]} neurons' scores",
        f"Spearman, {len(ranks):,} neurons<br>{about}",
    )
    return figure
