"""A pruning run as one page to read: what was forgotten and kept, the figures, and the neurons that went."""

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch

from sp_lens import plots
from sp_lens.errors import SpLensError
from sp_lens.neurons.layout import NeuronGroup
from sp_lens.neurons.values import NeuronValues
from sp_lens.pages.neuron_page import by_label, neuron_name, neuron_sections
from sp_lens.pages.page import Page, Section, figure, page, table
from sp_lens.plots._shared import METRIC_NAMES, SITE_NAMES, as_runs, corpus_name, run_facts
from sp_lens.plots._text import escaped
from sp_lens.pruning.run import PruneRun
from sp_lens.statistics.activation_stats import ActivationStats
from sp_lens.statistics.top_examples import TopExamples
from sp_lens.storage.serialization import write_bytes
from sp_lens.typing import Site

DENSITY_CURVES = 100  # as Figure 5 has them


def report(
    run: PruneRun,
    path: str | Path,
    *,
    stats: Mapping[str, ActivationStats] | None = None,
    scores: NeuronValues | None = None,
    effects: Mapping[str, NeuronValues] | None = None,
    examples: Mapping[str, TopExamples] | None = None,
    cards: int = 6,
) -> Page:
    """Write all of a run as one HTML file that needs nothing else, and nothing from the network.

    A summary in words and the settings; trade-off, perplexity, and the pruned neurons by layer; and, of what
    is given, the scores by neuron and by head, the densities, and the cards of the most specialised neurons.
    What is measured on a corpus comes by the corpus' label, as for `neuron_page`.

    Args:
        run: what `prune` returns.
        path: the file to write.
        stats: label -> statistics of a corpus. With histograms, densities are drawn: of each site the layer
            that lost most neurons, at most 100 curves. Then all need the same edges.
        scores: of all neurons: a map of them, and of their heads; and it ranks the cards.
        effects: label -> `ablation_effect(model, corpus, unit="neuron", neurons=...)`, for the cards.
        examples: label -> `top_examples(model, corpus, neurons)`, for the cards.
        cards: how many neurons get one: those of the highest scores among all that the run could prune, or
            without scores the first to be pruned. 0 for none. Needs one of stats, scores, effects, examples.

    Returns:
        The page, which a notebook shows.

    Raises:
        SpLensError: for something that is no run, or of another model than the run.
    """
    ((_, run),) = as_runs({"run": run}).items()
    stats, effects, examples = stats or {}, effects or {}, examples or {}
    for name, one, attribute, kind in (
        ("stats", stats, "moments", "ActivationStats"),
        ("effects", effects, "tensors", "NeuronValues"),
        ("examples", examples, "contexts", "TopExamples"),
    ):
        by_label(name, one, attribute, kind)
    for one in (*stats.values(), *([scores] if scores else []), *effects.values(), *examples.values()):
        _require_same_model(run, one)
    if cards < 0:
        raise SpLensError(f"cards={cards}: expected how many neurons get one, 0 or more.")
    sections = [
        Section("Summary", _summary(run), "summary"),
        Section("What it cost, step by step", _costs(run), "costs"),
    ]
    if run.mask.count():
        caption = "Share of each layer's neurons that is pruned after each step; dashed, of all layers together."
        sections.append(
            Section("Where the pruned neurons are", figure(plots.pruned_by_layer(run), caption, "by-layer"), "layers")
        )
    if scores is not None:
        sections.append(Section("Scores", "\n".join(_score_maps(scores)), "scores"))
    if densities := "\n".join(_densities(run, stats)):
        sections.append(Section("Activation densities", densities, "densities"))
    given = {"stats": stats, "scores": scores, "effects": effects, "examples": examples}
    if any(given.values()):
        written = [
            _card(neuron_name(group, neuron), neuron_sections(group, neuron, run=run, **given, level=5))
            for group, neuron in _specialised(run, scores)[:cards]
        ]
        if written:
            first = "highest scores" if scores is not None else "first to be pruned"
            note = f'<p class="note">{len(written)} neurons, {first} first.</p>'
            sections.append(Section("The most specialised neurons", "\n".join([note, *written]), "neurons"))
    made = page(_title(run), _lead(run), sections)
    write_bytes(path, made.html.encode())
    return made


def _require_same_model(run: PruneRun, one: ActivationStats | NeuronValues | TopExamples) -> None:
    here = {group.name: group for group in run.layout}
    names = [name for name in (run.settings.get("model"), one.about.get("model")) if name]
    if len(set(names)) > 1 or any(here.get(group.name, group) != group for group in one.layout):
        raise SpLensError(
            f"{one} of {names[-1:] or 'a model'} is of another model than the run, which has {run.layout}: make both "
            "with the same."
        )


def _source(run: PruneRun, side: str) -> str:
    return corpus_name((run.settings.get("corpora") or {}).get(side, {})) or f"the {side} corpus"


def _title(run: PruneRun) -> str:
    return f"Selective pruning: forget {_source(run, 'forget')}, keep {_source(run, 'retain')}"


def _lead(run: PruneRun) -> str:
    model, site = run.settings.get("model", "the model"), run.settings.get("site")
    return escaped(f"{SITE_NAMES.get(str(site), 'The')} neurons of {model}, {run.steps} steps of pruning.")


def _summary(run: PruneRun) -> str:
    forget, retain = _source(run, "forget"), _source(run, "retain")
    history, best = run.history, run.best_step
    before, after = history.iloc[0], history.iloc[best]
    if best:
        words = (
            f"At its best step, {best} of {run.steps}, the run had pruned {after['share']:.1%} of the neurons. On "
            f"held-out data the model then gave {after['forget_top1']:.1%} of the right answers on {forget}, "
            f"{before['forget_top1']:.1%} before: {_points(after['forget_drop'])}. On {retain} it was "
            f"{after['retain_top1']:.1%}, {before['retain_top1']:.1%} before: {_points(after['retain_drop'])}. The "
            f"difference, the run's selectivity, is {100 * run.selectivity:.1f} points."
        )
    else:
        words = f"No step took more from {forget} than from {retain}: as far as accuracy tells, nothing was selective."
    numbers = {
        "top-1 accuracy": ("top1", "{:.1%}"),
        "top-1 without the 50 commonest tokens": ("top1_skip50", "{:.1%}"),
        "loss (nats per prediction)": ("loss", "{:.3f}"),
        "perplexity": ("perplexity", "{:,.1f}"),
    }
    steps = {0: "before", best: f"best step ({best})", run.steps: f"last step ({run.steps})"}
    if best == run.steps:
        steps[best] = f"best and last step ({best})"
    rows = [
        [f"{what}, {name}", *(form.format(history[f"{side}_{key}"].iloc[step]) for step in steps)]
        for what, (key, form) in numbers.items()
        for side, name in (("forget", f"{forget} (forget)"), ("retain", f"{retain} (retain)"))
        if f"{side}_{key}" in history and history[f"{side}_{key}"].notna().any()  # of images there is no skip-50
    ]
    return (
        f"<p>{escaped(words)}</p>\n{table('On held-out data', rows, ['measure', *steps.values()])}\n"
        f"<h3>Settings</h3>\n{table('What the run was asked for', _settings(run))}"
    )


def _points(drop: float) -> str:
    return f"{abs(100 * drop):.1f} points {'lost' if drop >= 0 else 'won'}"


def _settings(run: PruneRun) -> Iterator[tuple[str, str]]:
    for key, text in run_facts(run).items():
        if key not in ("forget", "retain"):  # told below, with all that was read
            yield key, METRIC_NAMES.get(text, text)
    for name, about in (run.settings.get("corpora") or {}).items():
        read = [f"{about[key]:,} {key}" for key in ("tokens", "documents", "images") if key in about]
        split = [f"split {about['split']!r}"] if "split" in about else []
        origin = [about["origin"]] if "origin" in about else []
        yield name.replace("eval_", "held-out "), ", ".join([corpus_name(about), *origin, *read, *split])
    versions = next((c["versions"] for c in (run.settings.get("corpora") or {}).values() if "versions" in c), {})
    if versions:
        yield "made with", ", ".join(f"{name} {version}" for name, version in versions.items())


def _costs(run: PruneRun) -> str:
    history = run.history
    parts = [
        figure(
            plots.tradeoff(run),
            "Top-1 accuracy lost on the forget corpus against that lost on the retain corpus, a dot a step: the higher "
            "above the dashed diagonal, the more selective.",
            "tradeoff",
        )
    ]
    perplexities = [f"{side}_perplexity" for side in ("forget", "retain")]
    if all(column in history and history[column].map(math.isfinite).any() for column in perplexities):
        caption = (
            "Perplexity on the forget corpus against that on the retain corpus, on logarithmic axes, a dot a step."
        )
        parts.append(figure(plots.perplexity(run), caption, "perplexity"))
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
    steps = table("Every step", rows, [column.replace("_", " ").replace("share", "pruned") for column in columns])
    return "\n".join([*parts, f"<details><summary>The numbers of every step</summary>{steps}</details>"])


def _score_maps(scores: NeuronValues) -> Iterator[str]:
    sites: dict[Site, None] = dict.fromkeys(group.site for group in scores.layout)
    for site in sites:
        caption = f"The score of every {SITE_NAMES[site]} neuron, each layer sorted: above 1 it matters more to forget."
        yield figure(plots.score_map(scores, site=site), caption, f"scores-{site}")
    if "attn" in sites:
        caption = "The score of every attention head: the mean of its neurons' scores."
        yield figure(plots.head_map(scores.heads("mean")), caption, "scores-heads")


def _densities(run: PruneRun, stats: Mapping[str, ActivationStats]) -> Iterator[str]:
    """Of each site, the layer that lost most neurons (or else the first) among those with histograms on all corpora."""
    if not stats:
        return
    layout = next(iter(stats.values())).layout
    sites: dict[Site, None] = dict.fromkeys(group.site for group in layout)
    for site in sites:
        counted = {group: _counted(group, stats.values()) for group in layout.select(site)}
        counted = {group: neurons for group, neurons in counted.items() if neurons}
        if not counted:
            continue
        group = max(counted, key=lambda group: int((run.pruned_at.get(group.name, torch.zeros(1)) > 0).sum()))
        drawing = plots.density(stats, site=site, layer=group.layer, neurons=counted[group][:DENSITY_CURVES])
        caption = (
            f"Densities of the activations of {SITE_NAMES[site]} neurons of layer {group.layer} on "
            f"{', '.join(stats)}, a curve a neuron, in the same colour on each corpus."
        )
        yield figure(drawing, caption, f"densities-{site}")


def _counted(group: NeuronGroup, stats: Iterable[ActivationStats]) -> list[int]:
    """The neurons of a group of which every corpus has a histogram."""
    histograms = [one[group.name].histogram for one in stats]
    neurons = [set() if one is None else set(one.neurons.tolist()) for one in histograms]
    return sorted(set.intersection(*neurons))


def _specialised(run: PruneRun, scores: NeuronValues | None) -> list[tuple[NeuronGroup, int]]:
    """The neurons that the run could prune, highest scores first, or else those that it pruned, the first first."""
    if scores is not None:
        groups = [group for group in run.layout if group in scores.layout]
        flat = [(-float(value), group, neuron) for group in groups for neuron, value in enumerate(scores[group.name])]
        flat = [one for one in flat if not math.isnan(one[0])]
    else:
        steps = {group: run.pruned_at[group.name].tolist() for group in run.layout}
        flat = [(float(step), group, n) for group, at in steps.items() for n, step in enumerate(at) if step]
    return [(group, neuron) for _, group, neuron in sorted(flat, key=lambda one: one[0])]


def _card(title: str, parts: list[Section]) -> str:
    bodies = (f"<h4>{part.title}</h4>\n{part.body}" for part in parts)
    return "\n".join(["<article>", f"<h3>{escaped(title)}</h3>", *bodies, "</article>"])
