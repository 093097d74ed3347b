"""The page of one neuron: its score, its importance and densities on each corpus, and its top activating examples."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from sp_lens.errors import SpLensError
from sp_lens.neurons.layout import Layout, NeuronGroup
from sp_lens.pages.contexts import context_parts
from sp_lens.pages.page import Figure, Page, Part, Section, Table, render_page
from sp_lens.plots._labels import METRIC_NAMES, SITE_NAMES, values_about
from sp_lens.plots.distributions.neuron_density import neuron_density
from sp_lens.plots.neurons._inputs import is_score
from sp_lens.typing import METRICS, Metric, Site

if TYPE_CHECKING:
    from sp_lens.neurons.values import NeuronValues
    from sp_lens.pruning.run import PruneRun
    from sp_lens.scoring.uncertainty import Uncertainty
    from sp_lens.statistics.activation_stats import ActivationStats
    from sp_lens.statistics.top_examples import TopExamples

_NOT_MEASURED = "not measured"


def neuron_page(
    stats_by_corpus: "Mapping[str, ActivationStats]",
    *,
    site: Site,
    layer: int,
    neuron: int,
    scores: "NeuronValues | Uncertainty | None" = None,
    run: "PruneRun | None" = None,
    effects: "Mapping[str, NeuronValues] | None" = None,
    examples: "Mapping[str, TopExamples] | None" = None,
) -> Page:
    """Collect all results about one neuron on a page.

    Results that were measured on a corpus are given as a mapping from the label of the corpus. The page has only the
    sections for which there are results; densities are drawn for the corpora with a histogram of this neuron. Pages of
    neurons are an addition of this library; the paper has none.

    Args:
        stats_by_corpus: Mapping from labels to statistics. Statistics with histograms (`collect(..., edges=...)`) add
            densities, and statistics by folds (`collect(..., folds=20)`) add confidence intervals.
        site: "mlp" (units of `hook_post`), "attn" (units of `hook_z`).
        layer: Index of the transformer block.
        neuron: Index of the neuron in the layer. At site "attn" it is head * d_head + unit.
        scores: Scores of all neurons, as returned by `score`, or by `uncertainty` with confidence intervals. The page
            shows the rank of the neuron among all neurons of the site.
        run: Pruning run. The page shows whether and at which step the neuron was pruned.
        effects: Mapping from labels to `ablation_effect(model, corpus, unit="neuron", neurons=...)`, in nats per token.
        examples: Mapping from labels to `top_examples(model, corpus, neurons)`. Tokens are coloured by activation z,
            orange above 0 and blue below 0, on one scale for all corpora.

    Returns:
        A page that a notebook displays and that `.write_html(path)` writes to a file.

    Raises:
        SpLensError: If there is no corpus, the neuron does not exist, or a result belongs to another model.

    Example:
        >>> import sp_lens as sp
        >>> sp.neuron_page({}, site="mlp", layer=0, neuron=3)
        Traceback (most recent call last):
            ...
        sp_lens.errors.SpLensError: stats_by_corpus is empty: expected {label: ActivationStats} from collect().
    """
    require_results("stats_by_corpus", stats_by_corpus, "moments", "ActivationStats")
    if not stats_by_corpus:
        raise SpLensError("stats_by_corpus is empty: expected {label: ActivationStats} from collect().")
    stats = next(iter(stats_by_corpus.values()))
    groups = {group.layer: group for group in stats.layout.select(site)}
    if layer not in groups or not 0 <= neuron < groups[layer].width:
        raise SpLensError(
            f"there is no neuron {neuron} in layer {layer} at site {site!r}: the statistics have {stats.layout}."
        )
    sections = neuron_sections(
        groups[layer], neuron, stats=stats_by_corpus, scores=scores, run=run, effects=effects, examples=examples
    )
    model = stats.about.get("model")
    return render_page(neuron_name(groups[layer], neuron), f"Model {model}." if model else "", sections)


def neuron_name(group: NeuronGroup, neuron: int) -> str:
    """Return the name of a neuron in headings: its index, layer and site, and at attention heads the head."""
    head = f" (head {neuron // group.d_head}, unit {neuron % group.d_head})" if group.heads else ""
    return f"Neuron {neuron} of layer {group.layer}, {SITE_NAMES[group.site]}{head}"


def neuron_anchor(group: NeuronGroup, neuron: int) -> str:
    """Return the anchor of a neuron, which is also the prefix of the anchors of its sections."""
    return f"{group.site}-{group.layer}-{neuron}"


def neuron_sections(
    group: NeuronGroup,
    neuron: int,
    *,
    stats: "Mapping[str, ActivationStats]",
    scores: "NeuronValues | Uncertainty | None",
    run: "PruneRun | None",
    effects: "Mapping[str, NeuronValues] | None",
    examples: "Mapping[str, TopExamples] | None",
) -> list[Section]:
    """Return the sections about one neuron for which there are results; see `neuron_page` for the arguments.

    Raises:
        SpLensError: If a result belongs to another model.
    """
    effects, examples = effects or {}, examples or {}
    require_results("effects", effects, "tensors", "NeuronValues")
    require_results("examples", examples, "contexts", "TopExamples")
    stats = {
        label: result for label, result in stats.items() if _has_group(result.layout, group, f"statistics {label!r}")
    }
    loss_increases = {
        label: float(values[group.name][neuron])
        for label, values in effects.items()
        if _has_group(values.layout, group, f"ablation effects {label!r}")
    }
    contexts = {
        label: top[group.name][neuron]
        for label, top in examples.items()
        if _has_group(top.layout, group, f"examples {label!r}") and neuron in top.contexts.get(group.name, {})
    }
    anchor = neuron_anchor(group, neuron)
    parts: dict[str, list[Part]] = {
        "Score and pruning": _score_and_pruning(group, neuron, scores, run),
        "Importance on each corpus": _importance_table(group, neuron, stats, loss_increases),
        "Activation densities": _densities(group, neuron, stats, f"{anchor}-figure"),
        "Top activating examples": context_parts(contexts, f"{anchor}-examples") if contexts else [],
    }
    return [
        Section(title, f"{anchor}-{index}", section) for index, (title, section) in enumerate(parts.items()) if section
    ]


def require_results(name: str, results: Any, attribute: str, kind: str) -> None:
    """Raise SpLensError if `results` is not a mapping from labels to results of a kind, which have an attribute."""
    # Some results are mappings themselves: a single one would otherwise pass for a mapping from labels.
    if not isinstance(results, Mapping) or hasattr(results, attribute):
        raise SpLensError(
            f"{name} has type {type(results).__name__}: expected a mapping from corpus labels to {kind}, such as "
            f"{{'code': ...}}."
        )
    for label, result in results.items():
        if not hasattr(result, attribute):
            raise SpLensError(f"{name}[{label!r}] has type {type(result).__name__}: expected {kind}.")


def _has_group(layout: Layout, group: NeuronGroup, description: str) -> bool:
    """Return whether a layout has the group; raise SpLensError if its group of that name has another shape."""
    same_name = next((other for other in layout if other.name == group.name), None)
    if same_name not in (None, group):
        raise SpLensError(
            f"the {description} belong to another model: their shape in layer {group.layer} is {same_name.shape}, and "
            f"{group.shape} was expected. Compute them with the same model as the other results."
        )
    return same_name is not None


def _score_and_pruning(
    group: NeuronGroup, neuron: int, scores: "NeuronValues | Uncertainty | None", run: "PruneRun | None"
) -> list[Part]:
    rows = []
    if scores is None or isinstance(scores, Mapping):
        uncertainty, values = None, scores
    else:
        uncertainty, values = scores, scores.values
    if values is not None and _has_group(values.layout, group, "scores"):
        at_site = values.select(group.site)
        value = float(at_site[group.name][neuron])
        all_values = np.concatenate([at_site[name].cpu().double().numpy() for name in at_site])
        earlier = sum(other.width for other in at_site.layout if other.layer < group.layer) + neuron
        # The order of NeuronValues.top: equal values are ordered by layer and neuron.
        rank = 1 + int((all_values > value).sum() + (all_values[:earlier] == value).sum())
        metric = str(values.about.get("metric", "value"))
        text = f"{value:.3g}"
        if uncertainty is not None:
            text = f"{_with_interval(uncertainty, group, neuron)}, 95 % interval over documents"
        rows.append(("score" if is_score(values) else METRIC_NAMES.get(metric, metric), text))
        if not math.isnan(value):
            rows.append(("rank", f"{rank:,} of {len(all_values):,} {SITE_NAMES[group.site]} neurons"))
        if about := values_about(values.about):
            rows.append(("computed from", about))
    if run is not None:
        rows.append(("pruned", _pruned_at(group, neuron, run)))
    return [Table("Score and pruning of the neuron", rows)] if rows else []


def _pruned_at(group: NeuronGroup, neuron: int, run: "PruneRun") -> str:
    if not _has_group(run.layout, group, "neurons of the run"):
        return f"no: the run pruned neurons of site {run.settings.get('site', 'other')}"
    step = int(run.pruned_at[group.name][neuron])
    return f"at step {step} of {run.steps}" if step else f"not within {run.steps} steps"


def _importance_table(
    group: NeuronGroup, neuron: int, stats: "Mapping[str, ActivationStats]", loss_increases: Mapping[str, float]
) -> list[Part]:
    if not stats and not loss_increases:
        return []
    columns = ["corpus"]
    if stats:
        columns += ["tokens", "mean |z|", "rms of z", "std of z", "share z > 0", "lowest z", "highest z"]
    if loss_increases:
        columns.append("ablation effect")
    rows = []
    for label in dict.fromkeys([*stats, *loss_increases]):
        row = [label]
        if label in stats:
            moments = stats[label][group.name]
            row.append(f"{moments.count:,}")
            row += [_importance(stats[label], group, neuron, metric) for metric in METRICS]
            row += [f"{float(extreme[neuron]):.3g}" for extreme in (moments.min, moments.max)]
        elif stats:
            row += [_NOT_MEASURED] * 7
        if loss_increases:
            increase = loss_increases.get(label, math.nan)
            row.append(_NOT_MEASURED if math.isnan(increase) else f"{increase:+.2g}")
        rows.append(row)
    caption = "Importance of the neuron, computed from its activation z."
    if any(result.folds for result in stats.values()):
        caption += " Brackets contain 95 % intervals over documents."
    if loss_increases:
        caption += " The ablation effect is the increase in loss without this neuron, in nats per token."
    return [Table(caption, rows, columns)]


def _importance(stats: "ActivationStats", group: NeuronGroup, neuron: int, metric: Metric) -> str:
    if not stats.folds:
        return f"{float(getattr(stats[group.name], metric)()[neuron]):.3g}"
    from sp_lens.scoring.uncertainty import uncertainty

    return _with_interval(uncertainty(stats.part(Layout((group,))), metric=metric), group, neuron)


def _with_interval(uncertainty: "Uncertainty", group: NeuronGroup, neuron: int) -> str:
    parts = (uncertainty.values, uncertainty.low, uncertainty.high)
    value, low, high = (float(part[group.name][neuron]) for part in parts)
    return f"{value:.3g} [{low:.3g}, {high:.3g}]"


def _densities(group: NeuronGroup, neuron: int, stats: "Mapping[str, ActivationStats]", anchor: str) -> list[Part]:
    with_histogram = {label: result for label, result in stats.items() if _has_histogram(result, group, neuron)}
    if not with_histogram:
        return []
    caption = (
        f"Density of the activation z on {', '.join(with_histogram)}, on a logarithmic axis. The curves show the share "
        "of tokens per unit of z. The farther apart the curves, the more the activation differs between the corpora."
    )
    figure: Any = neuron_density(with_histogram, site=group.site, layer=group.layer, neuron=neuron)
    return [Figure(figure.update_layout(title=None, height=figure.layout.height - 170), caption, anchor)]


def _has_histogram(stats: "ActivationStats", group: NeuronGroup, neuron: int) -> bool:
    histogram = stats[group.name].histogram
    return histogram is not None and neuron in histogram.neurons.tolist()
