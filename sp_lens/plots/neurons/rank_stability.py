"""Overlap of the top-scoring neurons by number of collected tokens (not in the paper)."""

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from sp_lens.errors import SpLensError
from sp_lens.plots._layout import finish
from sp_lens.plots.themes import PALETTE, TEMPLATES

SERIES = {"with_all": "overlap with the top neurons from all tokens", "with_others": "overlap between disjoint samples"}
BAND = (0.1, 0.9)


def rank_stability(stability: pd.DataFrame) -> go.Figure:
    """Plot how many of the top-scoring neurons stay the same as documents are added (not a figure of the paper).

    Args:
        stability: Table returned by `sp_lens.rank_stability(forget, retain)`.

    Returns:
        Figure with the number of tokens per corpus on the x axis and the overlap of the top neurons on the y axis.
        Lines are medians over random orders of the documents, bands reach from the 10th to the 90th percentile. The
        first series always ends at 100 %, where all documents are compared with themselves. The second compares two
        disjoint samples of that many tokens, and therefore ends at half of all tokens. There are four traces: a band
        and a line for each series.

    Raises:
        SpLensError: If columns are missing or the table is empty.

    Example:
        >>> rank_stability(pd.DataFrame())
        Traceback (most recent call last):
            ...
        sp_lens.errors.SpLensError: expected the table of sp.rank_stability(), got 0 rows with the columns [].
    """
    if stability.empty or not {"folds", "tokens", *SERIES} <= set(stability.columns):
        raise SpLensError(
            f"expected the table of sp.rank_stability(), got {len(stability)} rows with the columns "
            f"{list(stability.columns)}."
        )
    figure = go.Figure()
    tokens: Any = stability.groupby("folds")["tokens"].mean()
    for (column, name), colour in zip(SERIES.items(), PALETTE, strict=False):
        by_folds = stability.dropna(subset=column).groupby("folds")[column]
        low, median, high = (100 * by_folds.quantile(quantile) for quantile in (BAND[0], 0.5, BAND[1]))
        x = [tokens[folds] for folds in median.index]
        figure.add_scatter(
            x=[*x, *reversed(x)],
            y=[*low, *reversed(high.tolist())],
            fill="toself",
            fillcolor=colour,
            opacity=0.25,
            line={"width": 0},
            hoverinfo="skip",
            legendgroup=column,
            showlegend=False,
        )
        figure.add_scatter(
            x=x,
            y=median,
            mode="lines+markers",
            line={"color": colour},
            name=name,
            legendgroup=column,
            hovertemplate="%{x:,.0f} tokens: overlap %{y:.0f} %<extra></extra>",
        )
    figure.update_layout(template=TEMPLATES["notebook"])
    figure.update_xaxes(title_text="tokens per corpus", rangemode="tozero")
    figure.update_yaxes(title_text="overlap of the top-scoring neurons (%)", range=[0, 103])
    orders = stability["order"].nunique()
    finish(
        figure,
        "Stability of the top-scoring neurons by number of tokens",
        f"line: median over {orders} random orders of the documents; band: 10th to 90th percentile",
    )
    return figure
