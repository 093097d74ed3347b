"""How pruning runs are drawn, whatever the axes: a dot for each step, a smoothed curve through them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd
import plotly.graph_objects as go

from sp_lens.plots._shared import common_settings
from sp_lens.plots.templates import PALETTE, TEMPLATES, legend_lines

if TYPE_CHECKING:
    from sp_lens.runs import Run

Floats = npt.NDArray[np.floating]

# Runs past the last colour take the next symbol and dash; more runs than this can't be told apart by a legend.
SYMBOLS = ("circle", "square", "diamond")
DASHES = ("solid", "dash", "dot")
MOST_IN_LEGEND = len(PALETTE) * len(SYMBOLS)


def draw_runs(
    histories: Mapping[str, pd.DataFrame], *, x: str, y: str, hover: str, columns: list[str], log: bool = False
) -> go.Figure:
    """A figure with two traces a run, curve and dots, and a legend that hides both.

    Args:
        histories: label -> history of a run, one row a step.
        x, y: the columns that are the axes.
        hover: what a dot says below the label of its run.
        columns: of the history, the `customdata` that `hover` can name.
        log: the axes are logarithmic, so the curve is smoothed in logarithms (a geometric mean).
    """
    crowded = len(histories) > MOST_IN_LEGEND
    figure = go.Figure()
    for place, (label, history) in enumerate(histories.items()):
        turn, colour = divmod(place, len(PALETTE))
        style = turn % len(SYMBOLS)
        points = history[[x, y]].to_numpy(dtype=float)
        curve = np.exp(_moving_mean(np.log(points))) if log else _moving_mean(points)
        figure.add_scatter(
            x=curve[:, 0],
            y=curve[:, 1],
            mode="lines",
            line={"shape": "spline", "color": PALETTE[colour], "width": 1 if crowded else 2, "dash": DASHES[style]},
            hoverinfo="skip",
            legendgroup=label,
            showlegend=False,
        )
        figure.add_scatter(
            x=points[:, 0],
            y=points[:, 1],
            mode="markers",
            marker={"color": PALETTE[colour], "size": 3 if crowded else 8, "symbol": SYMBOLS[style]},
            name=label,
            legendgroup=label,
            showlegend=not crowded,
            customdata=history[columns].to_numpy(),
            hovertemplate=f"<b>{label}</b><br>{hover}<extra></extra>",
        )
    lines = 0 if crowded else legend_lines(list(histories), 800 / 14)
    figure.update_layout(template=TEMPLATES["notebook"], height=540 + 24 * lines)
    return figure


def runs_subtitle(runs: "Mapping[str, Run]") -> str:
    """What the dots and curves are, and what all the runs have in common."""
    number = f"{len(runs)} runs, named on hover; " if len(runs) > MOST_IN_LEGEND else ""
    return f"{number}dots are steps, curves their moving mean; {common_settings(runs.values())}"


def set_axes(figure: go.Figure, title: str, low: Floats, high: Floats) -> None:
    """Retain is x and forget is y: their names and where they end.

    Args:
        figure: what `draw_runs` returns.
        title: of either axis, with {side} in it.
        low, high: [x y], logarithms where the axes are logarithmic.
    """
    for place, (axis, side) in enumerate((("xaxis", "retain"), ("yaxis", "forget"))):
        ends = [low[place], high[place]]
        figure.update_layout({axis: {"title_text": title.format(side=side), "range": ends}})


def add_diagonal(figure: go.Figure, start: tuple[float, float], end: tuple[float, float], text: str) -> None:
    """A dashed line of reference behind the runs, with its name written along it."""
    figure.add_shape(
        type="line",
        layer="below",
        line={"dash": "dash", "width": 1.5},
        label={"text": text, "textposition": "end", "yanchor": "top", "padding": 8},
        x0=start[0],
        y0=start[1],
        x1=end[0],
        y1=end[1],
    )


def _moving_mean(points: Floats) -> Floats:
    """The mean of each step and of up to two steps on either side, as many before as after."""
    last = len(points) - 1
    reach = [min(2, step, last - step) for step in range(len(points))]
    return np.array([points[step - r : step + r + 1].mean(axis=0) for step, r in enumerate(reach)])
