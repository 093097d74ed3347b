"""Every neuron by its importance on the forget and on the retain corpus."""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import plotly.graph_objects as go

from sp_lens.errors import SpLensError
from sp_lens.plots._shared import METRIC_NAMES, SITE_NAMES, corpus_names, log_ticks, of_model, scores_of, set_title
from sp_lens.plots._text import plain
from sp_lens.plots.themes import NEUTRAL, PALETTE, TEMPLATES

if TYPE_CHECKING:
    from sp_lens.neurons.values import NeuronValues
    from sp_lens.statistics.activation_stats import ActivationStats
    from sp_lens.typing import Metric, Site

Floats = npt.NDArray[np.floating]

MOST_POINTS = 20_000
ALWAYS = 1000  # the highest scores, drawn however dense their surroundings are
NEAR = 10  # an eps further below all importances would leave most of the axis empty, so it is told instead
BARS = 100  # the highest scores, whose intervals are drawn; more would hide the points
GRID = 100  # cells on either axis, by which it is told where points are dense


def importance_scatter(
    forget: "ActivationStats",
    retain: "ActivationStats",
    *,
    metric: "Metric" = "abs",
    site: "Site" = "mlp",
    fraction: float = 0.02,
) -> go.Figure:
    """The importance of every neuron on the forget corpus against that on the retain corpus (a figure of ours).

    The solid line is the cut of the top `fraction`: on it are all neurons of the lowest score that pruning
    would take, forget = cut * (retain + eps), so what is pruned lies above it. It is flat left of
    the dotted line, where the retain importance is less than eps and eps rules the score. Where eps is far
    below all importances, the subtitle says so and there is no dotted line.

    Beyond 20,000 neurons not all of them are drawn: the 1000 highest scores and the extremes of both axes
    are, and everything where points are sparse; where they are dense, a random sample (seed 0).

    Of statistics by folds (`collect(..., folds=20)`), the hover has the 95 % interval of the score, and the 100
    highest scores have bars: the intervals of both importances.

    Args:
        forget: statistics on the forget corpus, as `collect` returns them.
        retain: statistics of the same model on the retain corpus.
        metric: "abs", "rms", "std" or "freq" (Definition 1).
        site: "mlp" or "attn".
        fraction: share of all neurons of the site that is taken, as one step of `prune` does.

    Returns:
        Both axes are logarithmic, in units of activation (of "freq": share of tokens). A neuron of
        importance 0 has no place there: it is drawn at the lower edge, at half the smallest importance, and
        the hover says 0. Two traces of neurons, not taken and taken, then the two lines.

    Raises:
        SpLensError: for anything that is no statistics, statistics of different models, an unknown metric or site,
            a fraction that is no share, or when no neuron has an importance above 0 on one of the corpora.

    Example:
        >>> import sp_lens as sp
        >>> sp.plots.importance_scatter({}, {})
        Traceback (most recent call last):
            ...
        sp_lens.errors.SpLensError: forget is a dict: expected ActivationStats, as collect() returns.
    """
    scores = scores_of(forget, retain, metric=metric, site=site)
    frame, eps = _neurons(scores, forget, retain, metric, fraction), scores.about["eps"][site]
    if forget.folds and retain.folds:
        frame = _with_intervals(frame, forget, retain, metric, site)
    drawn = frame if len(frame) <= MOST_POINTS else frame.loc[_kept(frame)]
    share, attention = f"top {100 * fraction:.3g} %", site == "attn"
    others, top = drawn.loc[~drawn["taken"]], drawn.loc[drawn["taken"]]
    figure = go.Figure()
    figure.add_trace(_points(others, "other neurons", PALETTE[0], opacity=0.7, attention=attention))
    figure.add_trace(_points(top, f"{share} by score", PALETTE[1], opacity=0.8, attention=attention))
    cut = float(frame["score"][frame["taken"]].min())
    _add_lines(figure, frame, cut=cut, eps=eps, share=share)
    for axis, side, stats in (("xaxis", "retain", retain), ("yaxis", "forget", forget)):
        source = corpus_names(stats.about.get("corpora"))
        title = f"importance on {side} data{f', {plain(source)}' if source else ''}:<br>{METRIC_NAMES[metric]}, log"
        ticks = log_ticks(frame[f"{side}_drawn"].min(), frame[side].max())
        figure.update_layout({axis: {"type": "log", "title_text": title, **ticks}})
    figure.update_layout(template=TEMPLATES["notebook"], height=680, legend_itemsizing="constant")
    subtitle = f"{of_model(forget)}{len(frame):,} neurons"
    if len(drawn) < len(frame):
        subtitle += f", {len(drawn):,} drawn"
    subtitle += f"; cut at score {cut:.3g}, eps {eps:g}"
    if "low" in frame:
        most = f" of the {BARS} highest scores" if frame["taken"].sum() > BARS else ""
        subtitle += f"; bars: 95 % intervals over documents{most}"
    if not _near(eps, frame):
        subtitle += ", far below all retain importances"
    zeros = {side: int((frame[side] == 0).sum()) for side in ("forget", "retain")}
    if any(zeros.values()):
        subtitle += f"; at the edges, importance 0: {zeros['forget']:,} on forget, {zeros['retain']:,} on retain data"
    set_title(figure, f"Importance of {SITE_NAMES[site]} neurons on forget against retain data", subtitle)
    return figure


def _neurons(
    scores: "NeuronValues", forget: "ActivationStats", retain: "ActivationStats", metric: "Metric", fraction: float
) -> pd.DataFrame:
    """One row a neuron: its score, whether it is taken, both importances, and where on the axes these are drawn."""
    site: Site = scores.layout[0].site
    taken = scores.top(fraction, site=site)
    frame = scores.frame().rename(columns={"value": "score"})
    frame["taken"] = np.concatenate([taken[name].cpu().numpy() for name in taken])
    for side, stats in (("retain", retain), ("forget", forget)):
        importance = stats.importance(metric).select(site)
        frame[side] = values = np.concatenate([importance[name].numpy() for name in importance])
        if not values.any():
            raise SpLensError(
                f"the {metric} of all {len(frame)} {site} neurons on the {side} corpus is 0: there is nothing to draw "
                "on a logarithmic axis. Collect more text, or choose another metric."
            )
        frame[f"{side}_drawn"] = np.where(values > 0, values, values[values > 0].min() / 2)
    return frame


def _with_intervals(
    frame: pd.DataFrame, forget: "ActivationStats", retain: "ActivationStats", metric: "Metric", site: "Site"
) -> pd.DataFrame:
    """The ends of the interval of each score, and how far those of both importances reach below and above them."""
    from sp_lens.scoring.uncertainty import uncertainty

    of_score = uncertainty(forget, retain, metric=metric).select(site).frame()
    columns = {"low": of_score["low"], "high": of_score["high"]}
    for side, stats in (("retain", retain), ("forget", forget)):
        own = uncertainty(stats, metric=metric).select(site).frame()
        columns |= {f"{side}_below": own["value"] - own["low"], f"{side}_above": own["high"] - own["value"]}
    return frame.assign(**columns)


def _near(eps: float, frame: pd.DataFrame) -> bool:
    """Whether the axis can hold eps without being mostly empty."""
    return eps > frame["retain_drawn"].min() / NEAR


def _kept(frame: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Which neurons are drawn when not all are: extremes, sparse places, and a sample of dense ones."""
    drawn = np.log10(frame[["retain_drawn", "forget_drawn"]].to_numpy())
    low, high = drawn.min(axis=0), drawn.max(axis=0)
    cells = ((drawn - low) / np.maximum(high - low, 1e-12) * (GRID - 1)).round().astype(int)
    cell = pd.Series(cells[:, 0] * GRID + cells[:, 1]).sample(frac=1, random_state=0)
    turn = cell.groupby(cell).cumcount().sort_index().to_numpy()  # its number within its cell, in random order
    keep = np.zeros(len(frame), dtype=bool)
    keep[np.argsort(-frame["score"].to_numpy(), kind="stable")[:ALWAYS]] = True
    keep[[*drawn.argmin(axis=0), *drawn.argmax(axis=0)]] = True
    # As many turns as there is room for: first one of each cell, then a second of those that have two, ...
    room = MOST_POINTS - int(keep.sum())
    sizes = np.bincount(turn[~keep]).cumsum()
    return keep | (turn < np.searchsorted(sizes, room, side="right"))


def _points(frame: pd.DataFrame, name: str, colour: str, *, opacity: float, attention: bool) -> go.Scattergl:
    columns = ["layer", "neuron", "score", "forget", "retain", *(["head"] if attention else [])]
    head = " (head %{customdata[5]})" if attention else ""
    bars: dict[str, Any] = {}
    interval = ""
    if "low" in frame:
        interval = f" [%{{customdata[{len(columns)}]:.3g}}, %{{customdata[{len(columns) + 1}]:.3g}}]"
        columns += ["low", "high"]
        if frame["taken"].any():
            bars = {axis: _bars(frame, side) for axis, side in (("error_x", "retain"), ("error_y", "forget"))}
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
            "forget %{customdata[3]:.3g}, retain %{customdata[4]:.3g}<extra></extra>"
        ),
        **bars,
    )


def _bars(frame: pd.DataFrame, side: str) -> dict[str, Any]:
    """The intervals of an importance, of the highest scores."""
    chosen = frame["score"].rank(ascending=False, method="first") <= BARS
    below, above = (frame[f"{side}_{end}"].where(chosen).to_numpy(np.float32) for end in ("below", "above"))
    return {"array": above, "arrayminus": below, "symmetric": False, "thickness": 0.7, "width": 0}


def _add_lines(figure: go.Figure, frame: pd.DataFrame, *, cut: float, eps: float, share: str) -> None:
    """The axes' ranges; the cut, as far as it goes within them, and eps where it is near."""
    low = frame[["retain_drawn", "forget_drawn"]].min().to_numpy() / 1.3
    high = frame[["retain", "forget"]].max().to_numpy() * 1.3
    if _near(eps, frame):
        low[0] = min(low[0], eps / 1.5)
    x = np.geomspace(low[0], high[0], 200)
    y = cut * (x + eps)
    inside = (y >= low[1]) & (y <= high[1])
    if inside.any():
        line = {"color": NEUTRAL, "width": 3}
        name = f"cut of the {share}"
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
