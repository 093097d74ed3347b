"""What the figures share: one look, and how pruning runs are told apart. No torch and no model in here."""

import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from sp_lens.errors import SpLensError

if TYPE_CHECKING:
    from sp_lens.runs import PruneRun

# Okabe & Ito (2008), told apart by every kind of colour vision; without their yellow, too faint on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MUTED = "#666666"

_AXIS = {
    "automargin": True,
    "gridcolor": "#E6E6E6",
    "linecolor": "#333333",
    "showline": True,
    "tickcolor": "#333333",
    "tickfont": {"size": 12},
    "ticks": "outside",
    "title": {"font": {"size": 14}, "standoff": 8},
    "zeroline": False,
}

# Handed to the layout of each figure, never registered: plotly's own default template stays the user's.
TEMPLATE = go.layout.Template(
    layout={
        "colorway": PALETTE,
        "font": {"family": "Helvetica, Arial, DejaVu Sans, sans-serif", "size": 14, "color": "#222222"},
        "hoverlabel": {"align": "left", "bgcolor": "white"},
        "hovermode": "closest",
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": -0.18, "yanchor": "top"},  # below the axes
        "margin": {"l": 70, "r": 30, "t": 90, "b": 60},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "title": {
            "font": {"size": 18},
            "pad": {"t": 18},
            "subtitle": {"font": {"size": 13, "color": MUTED}},
            "x": 0.01,
            "y": 1,
            "yanchor": "top",
        },
        "width": 900,
        "xaxis": _AXIS,
        "yaxis": _AXIS,
    }
)


def set_title(figure: go.Figure, text: str, subtitle: str, *, top: int = 90) -> None:
    """Give the figure a title, and a subtitle in as many lines as it takes; `top` is the margin for one line."""
    lines = textwrap.wrap(subtitle, 135)
    figure.update_layout(
        title={"text": text, "subtitle": {"text": "<br>".join(lines)}}, margin_t=top + 18 * (len(lines) - 1)
    )


def as_runs(runs: "PruneRun | Iterable[PruneRun] | Mapping[str, PruneRun]") -> dict[str, "PruneRun"]:
    """One run, several, or several by label, as a mapping from a label to each.

    A label that is made here is the metric and every setting in which the runs differ ("abs, mlp",
    "random, mlp, seed 1"); runs that differ in none of the settings that are told apart get numbers.

    Raises:
        SpLensError: when there is no run, or something that is no run.
    """
    if isinstance(runs, Mapping):
        named: dict[str, Any] = {str(label): run for label, run in runs.items()}
    else:
        listed: list[Any] = list(runs) if isinstance(runs, Iterable) else [runs]
        named = dict(zip(_labels(listed), listed, strict=True))
    if not named:
        raise SpLensError("no runs to draw: expected a PruneRun, a list of them, or {label: PruneRun}.")
    for label, run in named.items():
        if not hasattr(run, "records"):
            raise SpLensError(f"run {label!r} is a {type(run).__name__}: expected a PruneRun, as prune() returns.")
        if not run.records:
            raise SpLensError(f"run {label!r} has no records: expected one for step 0 at least.")
    return named


def common_settings(runs: Iterable["PruneRun"]) -> str:
    """In words, the settings in which all the runs agree: what a figure of them is about."""
    facts = [_facts(run) for run in runs]
    return ", ".join(text for key, text in facts[0].items() if all(other.get(key) == text for other in facts))


def _labels(runs: list[Any]) -> list[str]:
    facts = [_facts(run) for run in runs]
    keys = dict.fromkeys(key for one in facts for key in one)
    differing = [key for key in keys if len({one.get(key) for one in facts}) > 1]
    told = dict.fromkeys(["metric", *differing])
    labels = [", ".join(one[key] for key in told if key in one) or "run" for one in facts]
    total, seen = Counter(labels), Counter[str]()
    for place, label in enumerate(labels):
        seen[label] += 1
        if total[label] > 1:
            labels[place] = f"{label} ({seen[label]})"
    return labels


def _facts(run: Any) -> dict[str, str]:
    """The settings of a run that matter to a reader, in words, in the order in which they are read."""
    settings = getattr(run, "settings", {})
    facts: dict[str, str] = {}

    def tell(key: str, value: Any, phrase: str = "{}") -> None:
        if value is not None:  # a setting that does not apply to this run, such as the seed of "abs"
            facts[key] = phrase.format(value)

    tell("model", settings.get("model"))
    for side in ("forget", "retain"):
        tell(side, settings.get("corpora", {}).get(side, {}).get("source"), f"{side} {{}}")
    tell("metric", settings.get("metric"))
    tell("site", settings.get("site"))
    tell("unit", settings.get("unit"), "by {}")
    tell("aggregate", settings.get("aggregate"), "{} of its neurons")
    fraction = settings.get("fraction")
    tell("fraction", None if fraction is None else f"{100 * fraction:.3g} % a step")
    if "recollect" in settings:
        tell("recollect", "collected each step" if settings["recollect"] else "collected once")
    eps = settings.get("eps")
    if isinstance(eps, Mapping):
        eps = ", ".join(f"{value} ({site})" for site, value in eps.items())
    tell("eps", eps, "eps {}")
    tell("seed", settings.get("seed"), "seed {}")
    return facts
