"""Selectivity against the size of the model or the number of collected tokens (not in the paper; cf. Figure 4)."""

import pandas as pd
import plotly.graph_objects as go

from sp_lens.errors import SpLensError
from sp_lens.plots._layout import finish, log_ticks
from sp_lens.plots._text import escape_plotly, hover_name
from sp_lens.plots.themes import PALETTE, TEMPLATES

# Name of the quantity on the x axis, its unit in words, and the value of that unit.
QUANTITIES = {
    "parameters": ("parameters of the model", " (millions)", 1e6),
    "tokens": ("tokens collected per corpus", "", 1),
}


def selectivity_by(data: pd.DataFrame, *, x: str, series: str) -> go.Figure:
    """Plot selectivity, with its 95 % confidence interval, against model size or tokens on a logarithmic axis.

    Args:
        data: Table with the columns `selectivity`, `low` and `high` (in percentage points), the column named by `x`,
            and the column named by `series`.
        x: Quantity on the x axis: "parameters" or "tokens".
        series: Name of the column that distinguishes the curves.

    Returns:
        Figure with one trace per series, ordered along the x axis.

    Raises:
        SpLensError: If a column is missing, there are no rows, or a value of `x` is not positive.
    """
    if missing := [column for column in ("selectivity", "low", "high", x, series) if column not in data]:
        raise SpLensError(f"the data has no column {missing[0]!r}: its columns are {list(data.columns)}.")
    if data.empty or not (data[x] > 0).all():
        raise SpLensError(f"{x!r} is {data[x].tolist()}: expected positive numbers for the logarithmic axis.")
    quantity, unit_name, unit = QUANTITIES[x]
    data = data.assign(**{x: data[x] / unit})
    figure = go.Figure()
    for index, (name, rows) in enumerate(data.sort_values(x).groupby(series, sort=False)):
        figure.add_scatter(
            x=rows[x],
            y=rows["selectivity"],
            error_y={
                "array": rows["high"] - rows["selectivity"],
                "arrayminus": rows["selectivity"] - rows["low"],
                "thickness": 1.5,
                "width": 5,
            },
            mode="lines+markers",
            name=escape_plotly(name),
            line_color=PALETTE[index % len(PALETTE)],
            marker_size=8,
            hovertemplate=(
                f"<b>{hover_name(name)}</b><br>{quantity}{unit_name}: %{{x:,}}<br>"
                "%{y:.1f} percentage points<extra></extra>"
            ),
        )
    figure.update_layout(template=TEMPLATES["notebook"], height=560, showlegend=True)
    ticks = log_ticks(data[x].min(), data[x].max())
    figure.update_xaxes(type="log", title_text=f"{quantity}{unit_name}, log scale", **ticks)
    figure.update_yaxes(rangemode="tozero", title_text="selectivity (percentage points)")
    has_intervals = data[["low", "high"]].notna().to_numpy().any()
    bars = "; error bars: 95 % confidence intervals over held-out documents" if has_intervals else ""
    finish(
        figure,
        f"Selectivity by {quantity}",
        f"difference between the drops in forget and retain top-1 accuracy at the best step{bars}",
    )
    return figure
