"""A report on a pruning run: a page with what was forgotten and retained, the figures, and the pruned neurons."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from sp_lens import plots
from sp_lens.errors import SpLensError
from sp_lens.neurons.layout import NeuronGroup
from sp_lens.neurons.values import NeuronValues
from sp_lens.pages.neuron_page import neuron_anchor, neuron_name, neuron_sections, require_results
from sp_lens.pages.page import Details, Figure, Page, Paragraph, Part, Section, Table, render_page
from sp_lens.plots._labels import METRIC_NAMES, SITE_NAMES, corpus_name
from sp_lens.plots.runs._run_labels import as_runs, run_facts
from sp_lens.pruning.run import PruneRun
from sp_lens.statistics.activation_stats import ActivationStats
from sp_lens.statistics.top_examples import TopExamples
from sp_lens.storage.serialization import write_bytes
from sp_lens.typing import Site

DENSITY_CURVES = 100  # the number of neurons in Figure 5


def report(
    run: PruneRun,
    path: str | Path,
    *,
    stats: Mapping[str, ActivationStats] | None = None,
    scores: NeuronValues | None = None,
    effects: Mapping[str, NeuronValues] | None = None,
    examples: Mapping[str, TopExamples] | None = None,
    neuron_pages: int = 6,
) -> Page:
    """Write a report on a pruning run as an HTML file that needs no other file and no network.

    The report has a summary in words, the settings, the trade-off between the corpora, perplexity, and the pruned
    neurons by layer. Further results add sections: scores by neuron and by head, activation densities, and all results
    about the most specialised neurons. Results that were measured on a corpus are given as a mapping from the label of
    the corpus, as in `neuron_page`.

    Args:
        run: Pruning run, as returned by `prune`.
        path: Path of the HTML file, which is replaced if it exists.
        stats: Mapping from labels to the statistics of a corpus. With histograms, densities are drawn of at most 100
            neurons of one layer per site: the layer with the most pruned neurons. All histograms need the same edges.
        scores: Scores of all neurons, which are drawn by neuron and by head and rank the neurons with a neuron page.
        effects: Mapping from labels to `ablation_effect(model, corpus, unit="neuron", neurons=...)`, for neuron pages.
        examples: Mapping from labels to `top_examples(model, corpus, neurons)`, for neuron pages.
        neuron_pages: Number of neurons whose results are shown one by one, as on a neuron page. They are the neurons
            with the highest scores among those that the run could prune or, without scores, those that were pruned
            first. Without stats, scores, effects and examples there are none.

    Returns:
        The page that was written, which a notebook displays.

    Raises:
        SpLensError: If `run` is not a pruning run or a result belongs to another model.
    """
    ((_, run),) = as_runs({"run": run}).items()
    stats, effects, examples = stats or {}, effects or {}, examples or {}
    require_results("stats", stats, "moments", "ActivationStats")
    require_results("effects", effects, "tensors", "NeuronValues")
    require_results("examples", examples, "contexts", "TopExamples")
    for result in (*stats.values(), *([scores] if scores else []), *effects.values(), *examples.values()):
        _require_same_model(run, result)
    if neuron_pages < 0:
        raise SpLensError(f"neuron_pages={neuron_pages}: expected a number of neurons, 0 or more.")
    sections = [
        Section("Summary", "summary", _summary(run)),
        Section("Effect of each step", "steps", _steps(run)),
    ]
    if run.mask.count():
        caption = "Share of pruned neurons in each layer after each step. The dashed line is the share in all layers."
        sections.append(
            Section("Pruned neurons by layer", "layers", [Figure(plots.pruned_by_layer(run), caption, "by-layer")])
        )
    if scores is not None:
        sections.append(Section("Scores", "scores", list(_score_maps(scores))))
    if densities := list(_densities(run, stats)):
        sections.append(Section("Activation densities", "densities", densities))
    results = {"stats": stats, "scores": scores, "effects": effects, "examples": examples}
    if any(results.values()) and (neurons := _ranked_neurons(run, scores)[:neuron_pages]):
        order = "by score, highest first" if scores is not None else "by step of pruning, first to last"
        parts: list[Part] = [Paragraph(f"{len(neurons)} neurons, {order}.", is_note=True)]
        parts += [
            Section(
                neuron_name(group, neuron),
                neuron_anchor(group, neuron),
                neuron_sections(group, neuron, run=run, **results),
            )
            for group, neuron in neurons
        ]
        sections.append(Section("Most specialised neurons", "neurons", parts))
    title = f"Selective pruning: forget {_corpus(run, 'forget')}, retain {_corpus(run, 'retain')}"
    page = render_page(title, _lead(run), sections)
    write_bytes(path, page.html.encode())
    return page


def _require_same_model(run: PruneRun, result: ActivationStats | NeuronValues | TopExamples) -> None:
    groups = {group.name: group for group in run.layout}
    models = [name for name in (run.settings.get("model"), result.about.get("model")) if name]
    if len(set(models)) > 1 or any(groups.get(group.name, group) != group for group in result.layout):
        raise SpLensError(
            f"{result} of {models[-1] if models else 'a model'} belongs to another model than the run, which has "
            f"{run.layout}. Compute both with the same model."
        )


def _corpus(run: PruneRun, side: str) -> str:
    return corpus_name((run.settings.get("corpora") or {}).get(side, {})) or f"the {side} corpus"


def _lead(run: PruneRun) -> str:
    model, site = run.settings.get("model", "the model"), str(run.settings.get("site"))
    neurons = f"{SITE_NAMES[site]} neurons" if site in SITE_NAMES else "Neurons"
    return f"{neurons} of {model}, pruned in {run.steps} steps."


def _summary(run: PruneRun) -> list[Part]:
    forget, retain = _corpus(run, "forget"), _corpus(run, "retain")
    history, best = run.history, run.best_step
    before, after = history.iloc[0], history.iloc[best]
    if best:
        text = (
            f"The best step is step {best} of {run.steps}, after which {after['share']:.1%} of the neurons are pruned. "
            f"Top-1 accuracy on held-out data of {forget} changes from {before['forget_top1']:.1%} to "
            f"{after['forget_top1']:.1%} ({_points(after['forget_drop'])}), and on {retain} from "
            f"{before['retain_top1']:.1%} to {after['retain_top1']:.1%} ({_points(after['retain_drop'])}). The "
            f"difference between the two drops, the selectivity of the run, is {100 * run.selectivity:.1f} points."
        )
    else:
        text = f"In no step did accuracy on {forget} drop more than accuracy on {retain}: pruning was not selective."
    measures = {
        "top-1 accuracy": ("top1", "{:.1%}"),
        "top-1 accuracy without the 50 most common tokens": ("top1_skip50", "{:.1%}"),
        "loss (nats per prediction)": ("loss", "{:.3f}"),
        "perplexity": ("perplexity", "{:,.1f}"),
    }
    steps = {0: "before pruning", best: f"best step ({best})", run.steps: f"last step ({run.steps})"}
    if best == run.steps:
        steps[best] = f"best and last step ({best})"
    rows = [
        [f"{measure}, {corpus}", *(form.format(history[f"{side}_{key}"].iloc[step]) for step in steps)]
        for measure, (key, form) in measures.items()
        for side, corpus in (("forget", f"{forget} (forget)"), ("retain", f"{retain} (retain)"))
        if f"{side}_{key}" in history and history[f"{side}_{key}"].notna().any()  # images have no common tokens
    ]
    return [
        Paragraph(text),
        Table("Evaluation on held-out data", rows, ["measure", *steps.values()]),
        Section("Settings", "settings", [Table("Settings of the run", list(_settings(run)))]),
    ]


def _points(drop: float) -> str:
    return f"{abs(100 * drop):.1f} points {'lower' if drop >= 0 else 'higher'}"


def _settings(run: PruneRun) -> Iterator[tuple[str, str]]:
    corpora = run.settings.get("corpora") or {}
    for key, text in run_facts(run).items():
        if key not in ("forget", "retain"):  # these corpora are listed below with more detail
            yield key, METRIC_NAMES.get(text, text)
    for name, about in corpora.items():
        counts = [f"{about[key]:,} {key}" for key in ("tokens", "documents", "images") if key in about]
        origin = [about["origin"]] if "origin" in about else []
        split = [f"split {about['split']!r}"] if "split" in about else []
        yield name.replace("eval_", "held-out "), ", ".join([corpus_name(about), *origin, *counts, *split])
    versions = next((about["versions"] for about in corpora.values() if "versions" in about), {})
    if versions:
        yield "versions", ", ".join(f"{name} {version}" for name, version in versions.items())


def _steps(run: PruneRun) -> list[Part]:
    history = run.history
    caption = (
        "Drop in top-1 accuracy on the forget corpus against the drop on the retain corpus, one dot per step. The "
        "farther above the dashed diagonal, the more selective is pruning."
    )
    parts: list[Part] = [Figure(plots.tradeoff(run), caption, "tradeoff")]
    perplexities = [f"{side}_perplexity" for side in ("forget", "retain")]
    if all(column in history and history[column].map(math.isfinite).any() for column in perplexities):
        caption = (
            "Perplexity on the forget corpus against perplexity on the retain corpus, on logarithmic axes, one dot per "
            "step."
        )
        parts.append(Figure(plots.perplexity(run), caption, "perplexity"))
    forms = {"step": "{:d}", "share": "{:.1%}"}
    forms |= {
        f"{side}_{key}": form
        for key, form in (("top1", "{:.1%}"), ("perplexity", "{:,.1f}"))
        for side in ("forget", "retain")
    }
    columns = [column for column in forms if column in history]
    rows = [
        [forms[column].format(value) for column, value in zip(columns, record, strict=True)]
        for record in history[columns].itertuples(index=False)
    ]
    headings = [column.replace("_", " ").replace("share", "pruned") for column in columns]
    return [*parts, Details("Table of all steps", [Table("Evaluation after each step", rows, headings)])]


def _score_maps(scores: NeuronValues) -> Iterator[Figure]:
    sites: dict[Site, None] = dict.fromkeys(group.site for group in scores.layout)
    for site in sites:
        caption = (
            f"Scores of all {SITE_NAMES[site]} neurons, sorted in each layer. Neurons with a score above 1 are more "
            "important on the forget corpus."
        )
        yield Figure(plots.score_map(scores, site=site), caption, f"scores-{site}")
    if "attn" in sites:
        caption = "Score of each attention head, the mean of the scores of its neurons."
        yield Figure(plots.head_map(scores.heads("mean")), caption, "scores-heads")


def _densities(run: PruneRun, stats: Mapping[str, ActivationStats]) -> Iterator[Figure]:
    """Draw one layer per site: the layer with the most pruned neurons, among those with histograms on all corpora."""
    if not stats:
        return
    layout = next(iter(stats.values())).layout
    sites: dict[Site, None] = dict.fromkeys(group.site for group in layout)
    for site in sites:
        neurons = {group: _with_histogram(group, stats.values()) for group in layout.select(site)}
        groups = [group for group in neurons if neurons[group]]
        if not groups:
            continue
        group = max(groups, key=lambda group: int((run.pruned_at.get(group.name, torch.zeros(1)) > 0).sum()))
        figure = plots.density(stats, site=site, layer=group.layer, neurons=neurons[group][:DENSITY_CURVES])
        caption = (
            f"Activation densities of {SITE_NAMES[site]} neurons of layer {group.layer} on {', '.join(stats)}. Each "
            "curve is a neuron, which has the same colour on all corpora."
        )
        yield Figure(figure, caption, f"densities-{site}")


def _with_histogram(group: NeuronGroup, stats: Iterable[ActivationStats]) -> list[int]:
    """Return the neurons of a group that have a histogram on every corpus."""
    histograms = [result[group.name].histogram for result in stats]
    return sorted(set.intersection(*(set() if h is None else set(h.neurons.tolist()) for h in histograms)))


def _ranked_neurons(run: PruneRun, scores: NeuronValues | None) -> Sequence[tuple[NeuronGroup, int]]:
    """Return the neurons that the run could prune, highest score first, or without scores those that it pruned."""
    if scores is not None:
        keys = {group: (-scores[group.name].double()).tolist() for group in run.layout if group in scores.layout}
        ranked = [(key, group, n) for group, listed in keys.items() for n, key in enumerate(listed)]
        ranked = [entry for entry in ranked if not math.isnan(entry[0])]
    else:
        steps = {group: run.pruned_at[group.name].tolist() for group in run.layout}
        ranked = [(float(step), group, n) for group, listed in steps.items() for n, step in enumerate(listed) if step]
    return [(group, neuron) for _, group, neuron in sorted(ranked, key=lambda entry: entry[0])]
