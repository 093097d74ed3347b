"""What the figures share: titles, panels, scales, and how runs and values are named. No torch and no model in here."""

import math
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from sp_lens.errors import SpLensError
from sp_lens.plots._text import plain
from sp_lens.plots.themes import PALETTE, TEMPLATES

if TYPE_CHECKING:
    from sp_lens.neurons.values import NeuronValues
    from sp_lens.pruning.run import Run
    from sp_lens.scoring.specialisation import Specialisation
    from sp_lens.statistics.activation_stats import ActivationStats
    from sp_lens.typing import Metric, Site

OneRun = TypeVar("OneRun", bound="Run")

SITE_NAMES = {"attn": "attention pre-out", "mlp": "MLP", "both": "MLP and attention pre-out"}
# Definition 1, as axes say it; z is a neuron's activation, which has the model's own unit.
METRIC_NAMES = {
    "abs": "mean |z| (activation)",
    "rms": "rms of z (activation)",
    "std": "std of z (activation)",
    "freq": "share of tokens with z > 0",
}


def set_title(figure: go.Figure, text: str, subtitle: str) -> None:
    """Give the figure a title, and a subtitle in as many lines as it takes; of what is in them, <br> alone is a tag."""
    layout: Any = figure["layout"]  # not figure.layout, in whose type pyright loses itself
    letters = round(0.15 * (layout.width or layout.template.layout.width))
    lines = [plain(line) for part in subtitle.split("<br>") for line in textwrap.wrap(part, letters)]
    figure.update_layout(title={"text": plain(text), "subtitle": {"text": "<br>".join(lines)}})


def panels(titles: Sequence[str], *, columns: int, gap: float) -> tuple[go.Figure, list[tuple[int, int]]]:
    """A figure with a titled panel for each title on one scale of y, and the row and column of each panel.

    Args:
        titles: may be of several lines; `plain` where they name what others have named.
        columns: at most so many panels stand side by side.
        gap: the height that lies between rows, as a share of a row.
    """
    columns = min(len(titles), columns)
    rows = -(-len(titles) // columns)
    figure = make_subplots(
        rows, columns, subplot_titles=titles, horizontal_spacing=0.06 / columns, vertical_spacing=gap / rows
    )
    lines = max((title.count("<br>") + 1 for title in titles if title), default=0)
    figure.update_annotations(yshift=6, font=None)  # make_subplots sets a size; the template has one
    figure.update_yaxes(matches="y", showticklabels=False)
    figure.update_yaxes(showticklabels=True, col=1)
    figure.update_layout(yaxis_matches=None)  # the first one is what the others match: plotly warns of a loop
    figure.update_layout(template=TEMPLATES["notebook"], margin_t=30 + 20 * lines, title_pad_b=24 + 20 * lines)
    return figure, [(place // columns + 1, place % columns + 1) for place in range(len(titles))]


def ordered_colours(count: int) -> list[str]:
    """Colours for curves that have an order, blue over pink to vermilion, each seen on white and on dark."""
    samples = [place / max(1, count - 1) for place in range(count)]
    return [str(colour) for colour in sample_colorscale([PALETTE[0], PALETTE[3], PALETTE[1]], samples)]


def corpus_colours(corpora: Iterable[str], *, function: str) -> dict[str, str]:
    """A colour for each corpus.

    Raises:
        SpLensError: when there are more corpora than colours.
    """
    labels = list(corpora)
    if len(labels) > len(PALETTE):
        raise SpLensError(
            f"{function} overlays corpora, and {len(labels)} can't be told apart: give at most {len(PALETTE)}."
        )
    return dict(zip(labels, PALETTE, strict=False))


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


def scores_of(
    forget: "ActivationStats", retain: "ActivationStats", *, metric: "Metric", site: "Site"
) -> "NeuronValues":
    """The scores (Definition 2) of the neurons of a site.

    Raises:
        SpLensError: for anything that is no statistics, statistics of different models, an unknown metric or site.
    """
    for side, stats in (("forget", forget), ("retain", retain)):
        if not hasattr(stats, "importance"):
            raise SpLensError(f"{side} is a {type(stats).__name__}: expected ActivationStats, as collect() returns.")
    from sp_lens.scoring.score import score

    return score(forget, retain, metric=metric).select(site)


def of_model(stats: "ActivationStats") -> str:
    """The name of the model, as titles begin their list of settings; nothing where it is not known."""
    model = stats.about.get("model")
    return f"{model}, " if model else ""


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


def require_specialisation(special: Any, function: str) -> None:
    """Refuse anything that is no `Specialisation`."""
    if not hasattr(special, "overlap"):
        raise SpLensError(f"{function} draws what sp.specialisation() returns, got {type(special).__name__}.")


def specialisation_about(special: "Specialisation") -> str:
    """In words, what the importances were made from: their model and metric, and the eps."""
    first = next(iter(special.importances.values())).about
    eps = ", ".join(f"{value:g} ({site})" for site, value in special.eps.items())
    said = values_about({key: first[key] for key in ("model", "metric") if key in first})
    return f"{said}, eps {eps}"


def corpus_name(about: Mapping[str, Any]) -> str:
    """What a corpus is called in figures: "code", or "code (offline)" where other text stood in for the Hub's."""
    source = about.get("source")
    return f"{source}{' (offline)' if about.get('offline') else ''}" if source else ""


def corpus_names(corpora: Any) -> str:
    """The corpora that statistics record, by name; "code + prose" where they were merged."""
    named = corpora if isinstance(corpora, Sequence) else []  # a file may say anything here
    names = [corpus_name(one) for one in named if isinstance(one, Mapping)]
    return " + ".join(dict.fromkeys(name for name in names if name))


def as_runs(runs: "OneRun | Iterable[OneRun] | Mapping[str, OneRun]") -> dict[str, "OneRun"]:
    """One run, several, or several by label, as a mapping from a label to each.

    A label that is made here is the method, the metric and every setting in which the runs differ ("abs, mlp",
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


def common_settings(runs: Iterable["Run"]) -> str:
    """In words, the settings in which all the runs agree: what a figure of them is about."""
    facts = [run_facts(run) for run in runs]
    return ", ".join(text for key, text in facts[0].items() if all(other.get(key) == text for other in facts))


def _labels(runs: list[Any]) -> list[str]:
    facts = [run_facts(run) for run in runs]
    keys = dict.fromkeys(key for one in facts for key in one)
    differing = [key for key in keys if len({one.get(key) for one in facts}) > 1]
    told = dict.fromkeys(["method", "metric", *differing])
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
        tell(side, corpus_name((settings.get("corpora") or {}).get(side, {})) or None, f"{side} {{}}")
    tell("method", settings.get("method"))
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
    tell("protected", (settings.get("protected") or {}).get("neurons") or None, "{} neurons protected")
    tell("learning_rate", settings.get("learning_rate"), "learning rate {}")
    tell("seed", settings.get("seed"), "seed {}")
    return facts
