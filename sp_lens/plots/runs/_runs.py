"""Draw pruning runs as points and smoothed curves, as the trade-off and perplexity figures (Figures 2 and 3) do."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import plotly.graph_objects as go

from sp_lens.plots._text import escape_plotly, hover_name
from sp_lens.plots.runs._run_labels import common_settings
from sp_lens.plots.themes import PALETTE, TEMPLATES
from sp_lens.typing import SIDES, Side

if TYPE_CHECKING:
    from sp_lens.evaluation.document_hits import DocumentHits
    from sp_lens.evaluation.intervals import Interval
    from sp_lens.pruning.run import Run

Floats = npt.NDArray[np.floating]

# Once all colours are used, further runs take the next symbol and dash. A legend of more runs than this is illegible.
SYMBOLS = ("circle", "square", "diamond")
DASHES = ("solid", "dash", "dot")
MAX_IN_LEGEND = len(PALETTE) * len(SYMBOLS)


class ErrorBars(NamedTuple):
    """Confidence intervals after one step, as [low, high] on the y axis (forget) and x axis (retain)."""

    step: int
    forget: list[float]
    retain: list[float]


def draw_runs(
    histories: Mapping[str, pd.DataFrame],
    *,
    x: str,
    y: str,
    hover: str,
    log: bool = False,
    error_bars: "Mapping[str, ErrorBars]",
) -> go.Figure:
    """Create a figure with two traces per run (curve and points) that a click in the legend hides together.

    Args:
        histories: History of each run by label, one row per step.
        x: Column on the x axis.
        y: Column on the y axis.
        hover: Hover text of a point below the label of its run and its step. The top-1 accuracies on forget and retain
            data are %{customdata[2]} and %{customdata[3]}.
        log: Whether the axes are logarithmic. If so, the curve is a moving geometric mean.
        error_bars: Error bars at one step of a run by label, as returned by `error_bars_of`.
    """
    crowded = len(histories) > MAX_IN_LEGEND
    figure = go.Figure()
    for index, (label, history) in enumerate(histories.items()):
        turn, colour = divmod(index, len(PALETTE))
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
            name=escape_plotly(label),
            legendgroup=label,
            showlegend=not crowded,
            customdata=history[["step", "share", "forget_top1", "retain_top1"]].to_numpy(),
            hovertemplate=(
                f"<b>{hover_name(label)}</b><br>"
                f"step %{{customdata[0]}}, %{{customdata[1]:.1%}} pruned<br>{hover}<extra></extra>"
            ),
            **_plotly_error_bars(history, points, error_bars.get(label)),
        )
    figure.update_layout(template=TEMPLATES["notebook"], height=564)
    return figure


def error_bars_of(
    runs: "Mapping[str, Run]",
    measure: "Callable[[DocumentHits, Side], Interval]",
    *,
    scale: float = 1,
) -> "dict[str, ErrorBars]":
    """Return the error bars of each run that records its documents, at its best step.

    Args:
        runs: Runs by label.
        measure: Function that returns the interval of the plotted quantity, given the hits and the side.
        scale: Value on the axis that corresponds to a measure of 1.
    """
    error_bars: dict[str, ErrorBars] = {}
    for label, run in runs.items():
        if run.documents and run.best_step > 0:
            hits = run.hits_at(run.best_step)
            ends = [[scale * end for end in measure(hits, side)[1:]] for side in SIDES]
            error_bars[label] = ErrorBars(run.best_step, *ends)
    return error_bars


def ends_of(error_bars: "Mapping[str, ErrorBars]") -> list[Floats]:
    """Return the ends of the finite error bars as points [low or high, axis], which the axes have to include."""
    ends = [np.array([bars.retain, bars.forget]).T for bars in error_bars.values()]
    return [points for points in ends if np.isfinite(points).all()]


def _plotly_error_bars(history: pd.DataFrame, points: Floats, bars: "ErrorBars | None") -> dict[str, Any]:
    """Return plotly's error bars of all points, which are NaN except at one step."""
    if bars is None or bars.step not in set(history["step"]):
        return {}
    row = history["step"].tolist().index(bars.step)
    result: dict[str, Any] = {}
    for name, axis, (low, high) in (("error_x", 0, bars.retain), ("error_y", 1, bars.forget)):
        lengths = np.full((2, len(points)), np.nan)
        value = points[row, axis]
        lengths[:, row] = max(0.0, high - value), max(0.0, value - low)
        result[name] = {"array": lengths[0], "arrayminus": lengths[1], "symmetric": False, "thickness": 1.5, "width": 4}
    return result


def runs_subtitle(runs: "Mapping[str, Run]", error_bars: "Mapping[str, ErrorBars]") -> str:
    """Explain points, curves and error bars, and list the settings that all runs share."""
    has_bars = any(np.isfinite([bars.retain, bars.forget]).any() for bars in error_bars.values())
    bars = "; error bars: 95 % confidence intervals over held-out documents at the best step" if has_bars else ""
    number = f"{len(runs)} runs, named on hover; " if len(runs) > MAX_IN_LEGEND else ""
    return f"{number}points: pruning steps; curves: moving mean{bars}; {common_settings(runs.values())}"


def set_axes(figure: go.Figure, title: str, low: Floats, high: Floats) -> None:
    """Set titles and ranges, with retain data on the x axis and forget data on the y axis.

    Args:
        figure: Result of `draw_runs`.
        title: Title of either axis, in which {side} stands for "retain" or "forget".
        low: Lower ends [x y]; logarithms if the axes are logarithmic.
        high: Upper ends [x y].
    """
    for index, (axis, side) in enumerate((("xaxis", "retain"), ("yaxis", "forget"))):
        figure.update_layout({axis: {"title_text": title.format(side=side), "range": [low[index], high[index]]}})


def add_diagonal(figure: go.Figure, start: tuple[float, float], end: tuple[float, float], text: str) -> None:
    """Draw a dashed reference line behind the runs with a text along it."""
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
    """Return the mean over each step and up to two steps on either side, with as many before as after."""
    last = len(points) - 1
    reach = [min(2, step, last - step) for step in range(len(points))]
    return np.array([points[step - r : step + r + 1].mean(axis=0) for step, r in enumerate(reach)])
