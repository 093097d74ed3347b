"""How selectivity grows with something: the size of a model, the number of tokens collected."""

import pandas as pd
import plotly.graph_objects as go

from sp_lens.errors import SpLensError
from sp_lens.plots._shared import log_ticks, set_title
from sp_lens.plots._text import plain
from sp_lens.plots.themes import PALETTE, TEMPLATES

# What is on the axis, and its unit.
NAMES = {"parameters": ("parameters of the model (millions)", 1e6), "tokens": ("tokens collected of each corpus", 1)}


def selectivity_by(data: pd.DataFrame, *, x: str, series: str) -> go.Figure:
    """Selectivity, with its 95 % confidence interval, against a number on a logarithmic axis.

    Args:
        data: columns `selectivity`, `low` and `high` (percentage points), that of `x`, and that of `series`.
        x: "parameters" or "tokens".
        series: what tells the curves apart.

    Returns:
        One trace a series, in the order of `x`.

    Raises:
        SpLensError: for a column that is missing, no rows, and an `x` that has no logarithm.
    """
    if missing := [column for column in ("selectivity", "low", "high", x, series) if column not in data]:
        raise SpLensError(f"the data has the columns {list(data.columns)} and no {missing[0]!r}.")
    if data.empty or not (data[x] > 0).all():
        raise SpLensError(f"{x!r} is {data[x].tolist()}: expected numbers above 0, the axis is logarithmic.")
    name_of_x, unit = NAMES[x]
    data = data.assign(**{x: data[x] / unit})
    figure = go.Figure()
    for place, (name, rows) in enumerate(data.sort_values(x).groupby(series, sort=False)):
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
            name=plain(name),
            line_color=PALETTE[place % len(PALETTE)],
            marker_size=8,
            hovertemplate=f"<b>{plain(name)}</b><br>{name_of_x}: %{{x:,}}<br>%{{y:.1f}} points<extra></extra>",
        )
    figure.update_layout(template=TEMPLATES["notebook"], height=560, showlegend=True)
    figure.update_xaxes(type="log", title_text=f"{name_of_x}, log", **log_ticks(data[x].min(), data[x].max()))
    figure.update_yaxes(rangemode="tozero", title_text="selectivity (percentage points)")
    bars = "; bars: 95 % intervals over held-out documents" if data[["low", "high"]].notna().to_numpy().any() else ""
    set_title(
        figure,
        f"Selectivity by {name_of_x.partition(' (')[0]}",
        f"forget drop less retain drop in top-1 accuracy at the best step{bars}",
    )
    return figure
