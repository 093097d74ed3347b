"""How pruning runs are drawn, whatever the axes: a dot for each step, a smoothed curve through them."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import plotly.graph_objects as go

from sp_lens.errors import SpLensError
from sp_lens.plots._shared import common_settings
from sp_lens.plots._text import plain
from sp_lens.plots.themes import PALETTE, TEMPLATES, legend_lines

if TYPE_CHECKING:
    from sp_lens.evaluation.bootstrap import DocumentHits, Interval
    from sp_lens.pruning.run import Run
    from sp_lens.typing import Side

SIDES: "tuple[Side, ...]" = ("forget", "retain")
Floats = npt.NDArray[np.floating]

# Runs past the last colour take the next symbol and dash; more runs than this can't be told apart by a legend.
SYMBOLS = ("circle", "square", "diamond")
DASHES = ("solid", "dash", "dot")
MOST_IN_LEGEND = len(PALETTE) * len(SYMBOLS)


class Intervals(NamedTuple):
    """The ends of the intervals at one row of a history: retain, which is x, and forget, which is y."""

    row: int
    forget: list[float]
    retain: list[float]


def draw_runs(
    histories: Mapping[str, pd.DataFrame],
    *,
    x: str,
    y: str,
    hover: str,
    columns: list[str],
    log: bool = False,
    intervals: "Mapping[str, Intervals] | None" = None,
) -> go.Figure:
    """A figure with two traces a run, curve and dots, and a legend that hides both.

    Args:
        histories: label -> history of a run, one row a step.
        x, y: the columns that are the axes.
        hover: what a dot says below the label of its run.
        columns: of the history, the `customdata` that `hover` can name.
        log: the axes are logarithmic, so the curve is smoothed in logarithms (a geometric mean).
        intervals: label -> bars at one step of the run, `intervals_of`.
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
            name=plain(label),
            legendgroup=label,
            showlegend=not crowded,
            customdata=history[columns].to_numpy(),
            hovertemplate=f"<b>{plain(label)}</b><br>{hover}<extra></extra>",
            **_bars(points, (intervals or {}).get(label)),
        )
    lines = 0 if crowded else legend_lines(list(histories), 800 / 14)
    figure.update_layout(template=TEMPLATES["notebook"], height=540 + 24 * lines)
    return figure


def intervals_of(
    histories: Mapping[str, pd.DataFrame],
    hits: "Mapping[str, DocumentHits] | None",
    measure: "Callable[[DocumentHits, Side], Interval]",
    *,
    scale: float = 1,
) -> "dict[str, Intervals]":
    """The bars of each run of which there are hits, at the step that the hits are of.

    Args:
        histories: label -> history of a run, one row a step.
        hits: label -> `document_hits` of the model as it is after one step of the run, the best for instance.
        measure: what the axes are, of hits and a side.
        scale: what an axis shows of a measure of 1.

    Raises:
        SpLensError: for hits of no run.
    """
    found: dict[str, Intervals] = {}
    for label, one in (hits or {}).items():
        if label not in histories:
            raise SpLensError(f"hits of {label!r}, which is no run: there are {', '.join(map(repr, histories))}.")
        history = histories[label]
        away = sum(
            (history[f"{side}_top1"].iloc[0] - history[f"{side}_top1"] - one.drop(side).value).abs() for side in SIDES
        )
        ends = [[scale * end for end in measure(one, side)[1:]] for side in SIDES]
        found[label] = Intervals(int(np.argmin(away)), *ends)
    return found


def ends_of(intervals: "Mapping[str, Intervals]") -> list[Floats]:
    """The ends of all bars as points [low or high, axis], for axes that hold them; of none where there are too few."""
    ends = [np.array([one.retain, one.forget]).T for one in intervals.values()]
    return [points for points in ends if np.isfinite(points).all()]


def _bars(points: Floats, bars: "Intervals | None") -> dict[str, Any]:
    """Error bars of the dots, all but one of them of no length."""
    if bars is None:
        return {}
    found: dict[str, Any] = {}
    for axis, place, (low, high) in (("error_x", 0, bars.retain), ("error_y", 1, bars.forget)):
        lengths = np.full((2, len(points)), np.nan)
        value = points[bars.row, place]
        lengths[:, bars.row] = max(0.0, high - value), max(0.0, value - low)
        found[axis] = {"array": lengths[0], "arrayminus": lengths[1], "symmetric": False, "thickness": 1.5, "width": 4}
    return found


def runs_subtitle(runs: "Mapping[str, Run]", intervals: "Mapping[str, Intervals] | None" = None) -> str:
    """What the dots, the curves and the bars are, and what all the runs have in common."""
    drawn = any(np.isfinite([one.retain, one.forget]).any() for one in (intervals or {}).values())
    bars = ", bars 95 % intervals over held-out documents" if drawn else ""
    number = f"{len(runs)} runs, named on hover; " if len(runs) > MOST_IN_LEGEND else ""
    return f"{number}dots are steps, curves their moving mean{bars}; {common_settings(runs.values())}"


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
