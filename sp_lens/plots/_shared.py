"""What the figures share: one look, and how runs and values are named. No torch and no model in here."""

import math
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from sp_lens.errors import SpLensError

if TYPE_CHECKING:
    from sp_lens.runs import PruneRun

# Okabe & Ito (2008), told apart by every kind of colour vision; without their yellow, too faint on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MUTED = "#666666"
SITE_NAMES = {"attn": "attention pre-out", "mlp": "MLP", "both": "MLP and attention pre-out"}
# Definition 1, as axes say it; z is a neuron's activation, which has the model's own unit.
METRIC_NAMES = {
    "abs": "mean |z| (activation)",
    "rms": "rms of z (activation)",
    "std": "std of z (activation)",
    "freq": "share of tokens with z > 0",
}

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


def ordered_colours(count: int) -> list[str]:
    """Colours for curves that have an order, dark to light: Viridis without its end, too faint on white."""
    samples = [0.92 * place / max(1, count - 1) for place in range(count)]
    return [str(colour) for colour in sample_colorscale("Viridis", samples)]


def colour_bar(colours: list[str], numbers: list[int], title: str) -> go.Scatter:
    """A trace without points that explains the colours of curves: the number that each stands for."""
    last = len(colours) - 1
    ticks = sorted({round(last * fifth / 5) for fifth in range(6)})
    return go.Scatter(
        x=[None],
        y=[None],
        mode="markers",
        hoverinfo="skip",
        marker={
            "color": [0],
            "cmin": 0,
            "cmax": last,
            "colorscale": [[place / last, colour] for place, colour in enumerate(colours)],
            "colorbar": {
                "title": title,
                "tickvals": ticks,
                "ticktext": [str(numbers[tick]) for tick in ticks],
                "thickness": 12,
                "outlinewidth": 0,
            },
        },
    )


def log_ticks(low: float, high: float) -> dict[str, Any]:
    """Round numbers, written out, for a logarithmic axis or colour bar; nothing for a short one, left to plotly.

    Plotly itself labels a longer axis "10², 2, 3, ...", with the leading digits alone between powers of ten.
    """
    if high < 3 * low:
        return {}
    decades = math.log10(high / low)
    leading = (1,) if decades > 3 else (1, 2, 5) if decades > 1 else (1, 1.5, 2, 3, 4, 5, 6, 8)
    step = math.ceil(decades / 8)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [digit * 10.0**power for power in powers if power % step == 0 for digit in leading]
    ticks = [tick for tick in ticks if 0.9 * low <= tick <= 1.1 * high]
    plain = [1e-3 <= tick < 1e5 or decades <= 3 for tick in ticks]
    texts = [f"{t:,.6g}" if p else f"10<sup>{round(math.log10(t))}</sup>" for t, p in zip(ticks, plain, strict=True)]
    return {"tickvals": ticks, "ticktext": texts}


def require_stats(forget: Any, retain: Any) -> None:
    """Refuse anything that is no statistics, and those of different models."""
    for side, stats in (("forget", forget), ("retain", retain)):
        if not hasattr(stats, "importance"):
            raise SpLensError(f"{side} is a {type(stats).__name__}: expected ActivationStats, as collect() returns.")
    forget.require_same_model(retain)


def values_about(about: Mapping[str, Any]) -> str:
    """In words, what values of neurons or heads were made from, as far as their `about` says."""
    corpora = about.get("corpora") or []
    metric = f"{about['mode']} ablation" if "mode" in about else about.get("metric")
    parts = [str(part) for part in (about.get("model"), metric) if part]
    if "aggregate" in about:
        parts.append(f"{about['aggregate']} of the neurons of a head")
    if "eps" in about and len(corpora) == 2:
        named = zip(("forget", "retain"), map(corpus_names, corpora), strict=True)
        parts += [f"{side} {name}" for side, name in named if name]
    elif names := corpus_names(corpora):
        parts.append(f"on {names}")
    return ", ".join(parts)


def corpus_names(corpora: Any) -> str:
    """The sources of the corpora that statistics record, "code + prose" where they were merged."""
    sources = [one.get("source") for one in corpora or [] if isinstance(one, Mapping)]
    return " + ".join(dict.fromkeys(str(source) for source in sources if source))


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
    facts = [run_facts(run) for run in runs]
    return ", ".join(text for key, text in facts[0].items() if all(other.get(key) == text for other in facts))


def _labels(runs: list[Any]) -> list[str]:
    facts = [run_facts(run) for run in runs]
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


def run_facts(run: Any) -> dict[str, str]:
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
