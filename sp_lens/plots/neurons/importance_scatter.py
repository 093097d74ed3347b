"""Importance of every neuron on the forget corpus against the retain corpus (not in the paper; Definitions 1 and 2)."""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import plotly.graph_objects as go

from sp_lens.errors import SpLensError
from sp_lens.plots._labels import METRIC_NAMES, SITE_NAMES, corpus_names, model_prefix
from sp_lens.plots._layout import finish, log_ticks
from sp_lens.plots._text import escape_plotly
from sp_lens.plots.neurons._inputs import site_scores
from sp_lens.plots.themes import NEUTRAL, PALETTE, TEMPLATES

if TYPE_CHECKING:
    from sp_lens.neurons.values import NeuronValues
    from sp_lens.statistics.activation_stats import ActivationStats
    from sp_lens.typing import Metric, Site

MAX_POINTS = 20_000
TOP_ALWAYS_DRAWN = 1000  # neurons with the highest scores, which are drawn even in dense regions
MAX_ERROR_BARS = 100  # neurons with the highest scores; more error bars would hide the points
GRID = 100  # cells per axis in which the density of points is measured
EPS_REACH = 10  # an eps further below all importances would leave most of the axis empty; the subtitle states it


def importance_scatter(
    forget: "ActivationStats",
    retain: "ActivationStats",
    *,
    metric: "Metric" = "abs",
    site: "Site" = "mlp",
    fraction: float = 0.02,
) -> go.Figure:
    """Plot the importance of every neuron on forget data against retain data (not a figure of the paper).

    The solid line is the pruning threshold of the top `fraction`, that is, all points with the lowest score that
    would be pruned: forget = threshold * (retain + eps). Pruned neurons lie on or above it. Left of the dotted line
    the retain importance is less than eps, so eps dominates the score and the threshold is flat. If eps is far below
    all importances, there is no dotted line and the subtitle says so.

    If there are more than 20,000 neurons, only some are drawn: the 1000 highest scores, the extremes of both axes,
    all neurons in sparse regions, and a random sample (seed 0) in dense regions.

    If both statistics contain folds (`collect(..., folds=20)`), the hover text gives the 95 % confidence interval of
    the score, and the 100 highest scores have error bars: the 95 % confidence intervals of both importances.

    Args:
        forget: Statistics on the forget corpus, as returned by `collect`.
        retain: Statistics of the same model on the retain corpus.
        metric: Importance metric of Definition 1: "abs", "rms", "std" or "freq".
        site: Site of the neurons, "mlp" or "attn".
        fraction: Share of all neurons of the site above the threshold, as in one step of `prune`.

    Returns:
        Figure with logarithmic axes in units of activation (for "freq", share of tokens). A neuron with importance 0,
        which has no position on a logarithmic axis, is drawn at half the smallest positive importance, and its hover
        text says 0. The traces are the neurons below the threshold, the pruned neurons, and the two lines.

    Raises:
        SpLensError: If an argument is not ActivationStats, the statistics belong to different models, the metric or
            site is unknown, the fraction is not between 0 and 1, or all importances on one corpus are 0.

    Example:
        >>> import sp_lens as sp
        >>> sp.plots.importance_scatter({}, {})
        Traceback (most recent call last):
            ...
        sp_lens.errors.SpLensError: forget has type dict: expected ActivationStats from collect().
    """
    scores = site_scores(forget, retain, metric=metric, site=site)
    frame, eps = _neuron_frame(scores, forget, retain, metric, fraction), scores.about["eps"][site]
    if forget.folds and retain.folds:
        frame = _add_intervals(frame, forget, retain, metric, site)
    drawn = frame if len(frame) <= MAX_POINTS else frame.loc[_select_points(frame)]
    share, attention = f"top {100 * fraction:.3g} %", site == "attn"
    others, pruned = drawn.loc[~drawn["pruned"]], drawn.loc[drawn["pruned"]]
    figure = go.Figure()
    figure.add_trace(_points(others, "other neurons", PALETTE[0], opacity=0.7, attention=attention))
    figure.add_trace(_points(pruned, f"{share} by score", PALETTE[1], opacity=0.8, attention=attention))
    threshold = float(frame["score"][frame["pruned"]].min())
    _add_lines(figure, frame, threshold=threshold, eps=eps, share=share)
    for axis, side, stats in (("xaxis", "retain", retain), ("yaxis", "forget", forget)):
        corpus = corpus_names(stats.about.get("corpora"))
        name = f"importance on {side} data{f', {escape_plotly(corpus)}' if corpus else ''}"
        title = f"{name}:<br>{METRIC_NAMES[metric]}, log scale"
        ticks = log_ticks(frame[f"{side}_drawn"].min(), frame[side].max())
        figure.update_layout({axis: {"type": "log", "title_text": title, **ticks}})
    figure.update_layout(template=TEMPLATES["notebook"], height=680, legend_itemsizing="constant")
    subtitle = f"{model_prefix(forget)}{len(frame):,} neurons"
    if len(drawn) < len(frame):
        subtitle += f", {len(drawn):,} drawn"
    subtitle += f"; score at the threshold {threshold:.3g}, eps {eps:g}"
    if not _eps_is_near(eps, frame):
        subtitle += ", far below all retain importances"
    if "low" in frame:
        which = f" of the {MAX_ERROR_BARS} highest scores" if frame["pruned"].sum() > MAX_ERROR_BARS else ""
        subtitle += f"; error bars: 95 % confidence intervals over documents{which}"
    zeros = {side: int((frame[side] == 0).sum()) for side in ("forget", "retain")}
    if any(zeros.values()):
        subtitle += (
            f"; neurons with importance 0, drawn at the edges: {zeros['forget']:,} on forget data, "
            f"{zeros['retain']:,} on retain data"
        )
    finish(figure, f"Importance of {SITE_NAMES[site]} neurons on forget and retain data", subtitle)
    return figure


def _neuron_frame(
    scores: "NeuronValues", forget: "ActivationStats", retain: "ActivationStats", metric: "Metric", fraction: float
) -> pd.DataFrame:
    """Return one row per neuron: score, whether it is pruned, both importances and their positions on the axes."""
    site: Site = scores.layout[0].site
    pruned = scores.top(fraction, site=site)
    frame = scores.frame().rename(columns={"value": "score"})
    frame["pruned"] = np.concatenate([pruned[name].cpu().numpy() for name in pruned])
    for side, stats in (("retain", retain), ("forget", forget)):
        importance = stats.importance(metric).select(site)
        frame[side] = values = np.concatenate([importance[name].numpy() for name in importance])
        if not values.any():
            raise SpLensError(
                f"the {metric} of all {len(frame)} {site} neurons on the {side} corpus is 0, so there is nothing to "
                "draw on a logarithmic axis. Collect more text, or choose another metric."
            )
        frame[f"{side}_drawn"] = np.where(values > 0, values, values[values > 0].min() / 2)
    return frame


def _add_intervals(
    frame: pd.DataFrame, forget: "ActivationStats", retain: "ActivationStats", metric: "Metric", site: "Site"
) -> pd.DataFrame:
    """Add the confidence interval of each score, and the distances from both importances to their interval ends."""
    from sp_lens.scoring.uncertainty import uncertainty

    scores = uncertainty(forget, retain, metric=metric).select(site).frame()
    columns = {"low": scores["low"], "high": scores["high"]}
    for side, stats in (("retain", retain), ("forget", forget)):
        importance = uncertainty(stats, metric=metric).select(site).frame()
        columns[f"{side}_below"] = importance["value"] - importance["low"]
        columns[f"{side}_above"] = importance["high"] - importance["value"]
    return frame.assign(**columns)


def _eps_is_near(eps: float, frame: pd.DataFrame) -> bool:
    """Return whether eps is close enough to the retain importances to be drawn."""
    return eps > frame["retain_drawn"].min() / EPS_REACH


def _select_points(frame: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Select at most MAX_POINTS neurons: highest scores, extremes, sparse regions, and a sample of dense regions."""
    positions = np.log10(frame[["retain_drawn", "forget_drawn"]].to_numpy())
    low, high = positions.min(axis=0), positions.max(axis=0)
    cells = ((positions - low) / np.maximum(high - low, 1e-12) * (GRID - 1)).round().astype(int)
    cell = pd.Series(cells[:, 0] * GRID + cells[:, 1]).sample(frac=1, random_state=0)
    rank_in_cell = cell.groupby(cell).cumcount().sort_index().to_numpy()  # in random order
    selected = np.zeros(len(frame), dtype=bool)
    selected[np.argsort(-frame["score"].to_numpy(), kind="stable")[:TOP_ALWAYS_DRAWN]] = True
    selected[[*positions.argmin(axis=0), *positions.argmax(axis=0)]] = True
    # Fill up with the first point of every cell, then the second points, and so on.
    remaining = MAX_POINTS - int(selected.sum())
    sizes = np.bincount(rank_in_cell[~selected]).cumsum()
    return selected | (rank_in_cell < np.searchsorted(sizes, remaining, side="right"))


def _points(frame: pd.DataFrame, name: str, colour: str, *, opacity: float, attention: bool) -> go.Scattergl:
    columns = ["layer", "neuron", "score", "forget", "retain", *(["head"] if attention else [])]
    head = " (head %{customdata[5]})" if attention else ""
    error_bars: dict[str, Any] = {}
    interval = ""
    if "low" in frame:
        interval = f" [%{{customdata[{len(columns)}]:.3g}}, %{{customdata[{len(columns) + 1}]:.3g}}]"
        columns += ["low", "high"]
        if frame["pruned"].any():
            error_bars = {"error_x": _error_bars(frame, "retain"), "error_y": _error_bars(frame, "forget")}
    return go.Scattergl(
        x=frame["retain_drawn"].to_numpy(np.float32),
        y=frame["forget_drawn"].to_numpy(np.float32),
        mode="markers",
        marker={"color": colour, "size": 4, "opacity": opacity},
        name=name,
        customdata=frame[columns].to_numpy(np.float32),
        hovertemplate=(
            f"<b>layer %{{customdata[0]}}, neuron %{{customdata[1]}}{head}</b><br>"
            f"score %{{customdata[2]:.3g}}{interval}<br>"
            "importance: forget %{customdata[3]:.3g}, retain %{customdata[4]:.3g}<extra></extra>"
        ),
        **error_bars,
    )


def _error_bars(frame: pd.DataFrame, side: str) -> dict[str, Any]:
    """Return the confidence intervals of the importances of the neurons with the highest scores."""
    chosen = frame["score"].rank(ascending=False, method="first") <= MAX_ERROR_BARS
    below, above = (frame[f"{side}_{end}"].where(chosen).to_numpy(np.float32) for end in ("below", "above"))
    return {"array": above, "arrayminus": below, "symmetric": False, "thickness": 0.7, "width": 0}


def _add_lines(figure: go.Figure, frame: pd.DataFrame, *, threshold: float, eps: float, share: str) -> None:
    """Set the ranges of the axes, and draw the threshold within them, and eps if it is near."""
    low = frame[["retain_drawn", "forget_drawn"]].min().to_numpy() / 1.3
    high = frame[["retain", "forget"]].max().to_numpy() * 1.3
    if _eps_is_near(eps, frame):
        low[0] = min(low[0], eps / 1.5)
    x = np.geomspace(low[0], high[0], 200)
    y = threshold * (x + eps)
    inside = (y >= low[1]) & (y <= high[1])
    if inside.any():
        line = {"color": NEUTRAL, "width": 3}
        name = f"pruning threshold ({share})"
        figure.add_scatter(x=x[inside], y=y[inside], mode="lines", name=name, line=line, hoverinfo="skip")
    if low[0] < eps < high[0]:
        figure.add_scatter(
            x=[eps, eps],
            y=[low[1], high[1]],
            mode="lines",
            name=f"retain importance = eps = {eps:g}",
            line={"color": NEUTRAL, "dash": "dot"},
            hoverinfo="skip",
        )
    figure.update_xaxes(range=np.log10([low[0], high[0]]))
    figure.update_yaxes(range=np.log10([low[1], high[1]]))
