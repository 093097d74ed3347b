"""One neuron on one page: what it does on each corpus, what became of it, and the text it is strongest on."""

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from sp_lens.errors import SpLensError
from sp_lens.neurons.layout import Layout
from sp_lens.pages.page import Page, Section, figure, page, table
from sp_lens.plots._shared import METRIC_NAMES, SITE_NAMES, values_about
from sp_lens.plots._text import escaped
from sp_lens.plots.distributions.neuron_density import neuron_density
from sp_lens.plots.neurons._heatmap import is_score
from sp_lens.plots.themes import PALETTE

if TYPE_CHECKING:
    from sp_lens.neurons.layout import NeuronGroup
    from sp_lens.neurons.values import NeuronValues
    from sp_lens.pruning.run import PruneRun
    from sp_lens.scoring.uncertainty import Uncertainty
    from sp_lens.statistics.activation_stats import ActivationStats
    from sp_lens.statistics.top_examples import Example, TopExamples
    from sp_lens.typing import Metric, Site

METRICS: "tuple[Metric, ...]" = ("abs", "rms", "std", "freq")
SHOWN = 5  # contexts of a corpus; the others are folded away
_NONE = "not measured"


def neuron_page(
    stats_by_corpus: "Mapping[str, ActivationStats]",
    *,
    site: "Site",
    layer: int,
    neuron: int,
    scores: "NeuronValues | Uncertainty | None" = None,
    run: "PruneRun | None" = None,
    effects: "Mapping[str, NeuronValues] | None" = None,
    examples: "Mapping[str, TopExamples] | None" = None,
) -> Page:
    """All that is known of one neuron, on one page (a page of ours).

    What is measured on a corpus comes by the corpus' label. What is not given is left out, and so are
    densities of corpora without a histogram of this neuron.

    Args:
        stats_by_corpus: label -> statistics; with histograms (`collect(..., edges=...)`) for the densities, by
            folds (`collect(..., folds=20)`) for intervals.
        site: "attn" (units of `hook_z`) or "mlp" (units of `hook_post`).
        layer: the block.
        neuron: index into the layer; on "attn", head * d_head + unit.
        scores: of all neurons, as `score` returns them, or `uncertainty` with their intervals; the rank is among all
            the neurons of the site.
        run: says whether and at which step the neuron was pruned.
        effects: label -> `ablation_effect(model, corpus, unit="neuron", neurons=...)`, in nats per token.
        examples: label -> `top_examples(model, corpus, neurons)`. Tokens are coloured by z, orange above 0
            and blue below, on one scale for all corpora.

    Returns:
        A page that a notebook shows, and that `.write_html(path)` keeps.

    Raises:
        SpLensError: when there is no corpus, no such neuron, or something is of another model.

    Example:
        >>> import sp_lens as sp
        >>> sp.neuron_page({}, site="mlp", layer=0, neuron=3)
        Traceback (most recent call last):
            ...
        sp_lens.errors.SpLensError: there is no corpus: expected {label: ActivationStats}, as collect() returns them.
    """
    by_label("stats_by_corpus", stats_by_corpus, "moments", "ActivationStats")
    if not stats_by_corpus:
        raise SpLensError("there is no corpus: expected {label: ActivationStats}, as collect() returns them.")
    stats = next(iter(stats_by_corpus.values()))
    layers = {group.layer: group for group in stats.layout.select(site)}
    if layer not in layers or not 0 <= neuron < layers[layer].width:
        raise SpLensError(
            f"there is no neuron {neuron} in layer {layer} at site {site!r}: the statistics have {stats.layout}."
        )
    sections = neuron_sections(
        layers[layer], neuron, stats=stats_by_corpus, scores=scores, run=run, effects=effects, examples=examples
    )
    model = stats.about.get("model")
    lead = f"Model {escaped(str(model))}." if model else ""
    return page(neuron_name(layers[layer], neuron), lead, sections)


def neuron_name(group: "NeuronGroup", neuron: int) -> str:
    """What a neuron is called in a heading."""
    head = ""
    if group.heads:
        width = group.d_head
        head = f" (head {neuron // width}, unit {neuron % width})"
    return f"Neuron {neuron} of layer {group.layer}, {SITE_NAMES[group.site]}{head}"


def neuron_sections(
    group: "NeuronGroup",
    neuron: int,
    *,
    stats: "Mapping[str, ActivationStats]",
    scores: "NeuronValues | Uncertainty | None",
    run: "PruneRun | None",
    effects: "Mapping[str, NeuronValues] | None",
    examples: "Mapping[str, TopExamples] | None",
    level: int = 3,
) -> list[Section]:
    """The parts of a card that there is something to say in; headings in them are <h3>, or of another `level`.

    Raises:
        SpLensError: when something is of another model.
    """
    by_label("effects", effects or {}, "tensors", "NeuronValues")
    by_label("examples", examples or {}, "contexts", "TopExamples")
    anchor = f"{group.site}-{group.layer}-{neuron}"
    stats = {label: one for label, one in stats.items() if _has(one.layout, group, f"the statistics {label!r}")}
    rises = {
        label: float(values[group.name][neuron])
        for label, values in (effects or {}).items()
        if _has(values.layout, group, f"the effects {label!r}")
    }
    contexts = {
        label: top[group.name][neuron]
        for label, top in (examples or {}).items()
        if _has(top.layout, group, f"the examples {label!r}") and neuron in top.contexts.get(group.name, {})
    }
    parts = {
        "Score and pruning": _standing(group, neuron, scores, run),
        "On each corpus": _measured(group, neuron, stats, rises) if stats or rises else "",
        "Activation densities": _densities(group, neuron, stats, f"{anchor}-figure"),
        "Strongest contexts": _contexts(contexts, level) if contexts else "",
    }
    return [Section(title, body, f"{anchor}-{place}") for place, (title, body) in enumerate(parts.items()) if body]


def by_label(name: str, given: Any, attribute: str, kind: str) -> None:
    """Refuse what is no mapping from labels to results of a `kind`, which are known by an `attribute`."""
    # Some results are mappings themselves: given alone, one would pass for a mapping of them.
    if not isinstance(given, Mapping) or hasattr(given, attribute):
        raise SpLensError(f"{name} is a {type(given).__name__}: say whose, {{'code': {kind}, ...}}.")
    for label, one in given.items():
        if not hasattr(one, attribute):
            raise SpLensError(f"{name}[{label!r}] is a {type(one).__name__}: expected {kind}.")


def _has(layout: "Layout", group: "NeuronGroup", what: str) -> bool:
    """Whether the layout of `what` has the group; not if it has other neurons in its place."""
    same = next((other for other in layout if other.name == group.name), None)
    if same not in (None, group):
        raise SpLensError(
            f"{what} are of another model: they have {same.shape} in layer {group.layer}, and {group.shape} were "
            "expected. Make them again from this model."
        )
    return same is not None


def _standing(
    group: "NeuronGroup", neuron: int, scores: "NeuronValues | Uncertainty | None", run: "PruneRun | None"
) -> str:
    rows = []
    sure, scores = (None, scores) if scores is None or isinstance(scores, Mapping) else (scores, scores.values)
    if scores is not None and _has(scores.layout, group, "the scores"):
        part = scores.select(group.site)
        own = float(part[group.name][neuron])
        everyone = np.concatenate([part[name].cpu().double().numpy() for name in part])
        before = sum(other.width for other in part.layout if other.layer < group.layer) + neuron
        # As `top` ranks them: equal ones by layer and neuron.
        rank = 1 + int((everyone > own).sum() + (everyone[:before] == own).sum())
        metric = str(scores.about.get("metric", "value"))
        said = f"{own:.3g}" if sure is None else f"{_with_interval(sure, group, neuron)}, 95 % over documents"
        rows.append(("score" if is_score(scores) else METRIC_NAMES.get(metric, metric), said))
        if not math.isnan(own):
            rows.append(("rank", f"{rank:,} of all {len(everyone):,} {SITE_NAMES[group.site]} neurons"))
        if about := values_about(scores.about):
            rows.append(("scored by", about))
    if run is not None:
        if _has(run.layout, group, "the neurons of the run"):
            step = int(run.pruned_at[group.name][neuron])
            rows.append(("pruned", f"at step {step} of {run.steps}" if step else f"in none of {run.steps} steps"))
        else:
            rows.append(("pruned", f"no: the run was of the {run.settings.get('site', 'other')} site"))
    return table("Where the neuron stands", rows) if rows else ""


def _measured(
    group: "NeuronGroup", neuron: int, stats: "Mapping[str, ActivationStats]", rises: Mapping[str, float]
) -> str:
    columns = ["corpus"]
    if stats:
        columns += ["tokens", "mean |z|", "rms of z", "std of z", "share z > 0", "lowest z", "highest z"]
    if rises:
        columns.append("ablation effect")
    rows = []
    for label in dict.fromkeys([*stats, *rises]):
        row = [label]
        if label in stats:
            moments = stats[label][group.name]
            ends = (f"{float(one[neuron]):.3g}" for one in (moments.min, moments.max))
            row += [f"{moments.count:,}", *(_importance(stats[label], group, neuron, one) for one in METRICS), *ends]
        elif stats:
            row += [_NONE] * 7
        if rises:
            rise = rises.get(label, math.nan)
            row.append(_NONE if math.isnan(rise) else f"{rise:+.2g}")
        rows.append(row)
    effect = "; ablation effect: rise in loss without this neuron, nats per token" if rises else ""
    sure = "; in brackets: 95 % intervals over documents" if any(one.folds for one in stats.values()) else ""
    return table(f"Importance of the neuron; z is its activation{sure}{effect}", rows, columns)


def _importance(stats: "ActivationStats", group: "NeuronGroup", neuron: int, metric: "Metric") -> str:
    """An importance, with its interval where there are statistics by folds."""
    if not stats.folds:
        return f"{float(getattr(stats[group.name], metric)()[neuron]):.3g}"
    from sp_lens.scoring.uncertainty import uncertainty

    return _with_interval(uncertainty(stats.part(Layout((group,))), metric=metric), group, neuron)


def _with_interval(sure: "Uncertainty", group: "NeuronGroup", neuron: int) -> str:
    value, low, high = (float(part[group.name][neuron]) for part in (sure.values, sure.low, sure.high))
    return f"{value:.3g} [{low:.3g}, {high:.3g}]"


def _densities(group: "NeuronGroup", neuron: int, stats: "Mapping[str, ActivationStats]", anchor: str) -> str:
    counted = {label: one for label, one in stats.items() if _has_histogram(one, group, neuron)}
    if not counted:
        return ""
    caption = (
        f"Share of the tokens of each corpus ({', '.join(counted)}) per unit of activation z, on a logarithmic axis: "
        "the farther apart the curves, the more the corpora differ in what they ask of this neuron."
    )
    drawing = neuron_density(counted, site=group.site, layer=group.layer, neuron=neuron)
    return figure(drawing.update_layout(title=None, height=330 + 24 * len(counted)), caption, anchor)


def _has_histogram(stats: "ActivationStats", group: "NeuronGroup", neuron: int) -> bool:
    histogram = stats[group.name].histogram
    return histogram is not None and neuron in histogram.neurons.tolist()


def _contexts(contexts: "Mapping[str, tuple[Example, ...]]", level: int) -> str:
    strongest = max((abs(one.value) for found in contexts.values() for one in found), default=0.0)
    parts = [
        f'<p class="note">A token is orange where z is above 0 and blue where it is below, in full colour at |z| = '
        f"{strongest:.3g}; the strongest is framed. BOS and the first token of a row don't count. ↵ is a line break, "
        "⇥ a tab.</p>"
    ]
    for label, found in contexts.items():
        parts.append(f"<h{level}>{escaped(label)}</h{level}>")
        if not found:
            parts.append("<p>No token of this corpus counts.</p>")
        if found[:SHOWN]:
            parts.append(_listed(found[:SHOWN], strongest, 1))
        if more := found[SHOWN:]:
            parts.append(f"<details><summary>{len(more)} more</summary>{_listed(more, strongest, SHOWN + 1)}</details>")
    return "\n".join(parts)


def _listed(examples: "Iterable[Example]", strongest: float, first: int) -> str:
    items = []
    for one in examples:
        source = f"{one.document or f'row {one.row}'}, token {one.position}"
        tokens = "".join(
            _token(token, z, strongest, peak=place == one.peak)
            for place, (token, z) in enumerate(zip(one.tokens, one.activations, strict=True))
        )
        where = f'<span class="where">z = {one.value:.3g} · {escaped(source)}</span>'
        items.append(f'<li>{where}<span class="context">{tokens}</span></li>')
    return f'<ol class="contexts" start="{first}">{"".join(items)}</ol>'


def _token(token: str, z: float, strongest: float, *, peak: bool) -> str:
    text = escaped(token)
    tag = "mark" if peak else "span"
    if math.isnan(z):
        return f"<{tag}>{text}</{tag}>"
    share = min(1.0, abs(z) / strongest) if strongest else 0.0
    red, green, blue = (int(PALETTE[1 if z > 0 else 0][i : i + 2], 16) for i in (1, 3, 5))
    colour = f"rgba({red},{green},{blue},{0.7 * share:.2f})"
    return f'<{tag} style="background:{colour}" title="z = {z:.3g}">{text}</{tag}>'
