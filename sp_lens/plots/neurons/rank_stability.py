"""How many tokens are enough: how far the top of the ranking is the same, against the tokens collected from."""

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from sp_lens.errors import SpLensError
from sp_lens.plots._shared import set_title
from sp_lens.plots.themes import PALETTE, TEMPLATES

SERIES = {"with_all": "with the top of all tokens", "with_others": "between samples of other documents"}
BAND = (0.1, 0.9)


def rank_stability(stability: pd.DataFrame) -> go.Figure:
    """How much of the top by score stays the same as documents come in (a figure of ours).

    Args:
        stability: what `sp_lens.rank_stability(forget, retain)` returns.

    Returns:
        x is the number of tokens of each corpus, y the share of the top that is the same; the line is the median over
        random orders of the documents, the band from the 10th to the 90th percentile. The first series ends at 1
        whatever there is, as all documents are then compared with themselves; the second compares disjoint samples of
        so many tokens, and ends at half of them. Four traces, band and line of each.

    Raises:
        SpLensError: for a table of other columns, or without a row.

    Example:
        >>> rank_stability(pd.DataFrame())
        Traceback (most recent call last):
            ...
        sp_lens.errors.SpLensError: expected the table of sp.rank_stability(), got 0 rows of [].
    """
    if stability.empty or not {"folds", "tokens", *SERIES} <= set(stability.columns):
        raise SpLensError(
            f"expected the table of sp.rank_stability(), got {len(stability)} rows of {list(stability.columns)}."
        )
    figure = go.Figure()
    tokens: Any = stability.groupby("folds")["tokens"].mean()
    for (column, name), colour in zip(SERIES.items(), PALETTE, strict=False):
        by_folds = stability.dropna(subset=column).groupby("folds")[column]
        low, middle, high = (100 * by_folds.quantile(place) for place in (BAND[0], 0.5, BAND[1]))
        x = [tokens[number] for number in middle.index]
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
            y=middle,
            mode="lines+markers",
            line={"color": colour},
            name=name,
            legendgroup=column,
            hovertemplate="%{x:,.0f} tokens: %{y:.0f} % the same<extra></extra>",
        )
    figure.update_layout(template=TEMPLATES["notebook"])
    figure.update_xaxes(title_text="tokens of each corpus", rangemode="tozero")
    figure.update_yaxes(title_text="the same neurons in the top (%)", range=[0, 103])
    orders = stability["order"].nunique()
    set_title(
        figure,
        "How many tokens the top of the ranking takes",
        f"line: median over {orders} orders of the documents; band: 10th to 90th percentile",
    )
    return figure
