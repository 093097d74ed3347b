"""Model + corpus -> statistics of every neuron, in one streaming pass that keeps no activations."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial, reduce
from typing import Any

import torch
from jaxtyping import Bool, Int
from tqdm.auto import tqdm

from sp_lens import distributed
from sp_lens.data.batching import Batch, ImageBatch, batches, deal, documents_of
from sp_lens.data.text import describe
from sp_lens.errors import SpLensError
from sp_lens.models.forward import inference, require_finite, visit
from sp_lens.models.hooks import layout_of, model_name
from sp_lens.models.memory import Halving
from sp_lens.neurons.layout import Layout, NeuronGroup
from sp_lens.neurons.mask import NeuronMask
from sp_lens.statistics.activation_stats import ActivationStats
from sp_lens.statistics.histogram import Edges, Histogram
from sp_lens.statistics.moments import Moments
from sp_lens.storage.serialization import versions
from sp_lens.typing import BATCH_TOKENS, Site

# By hook name, of a batch, and by fold of documents.
_Reduced = tuple[dict[str, Moments], dict[int, dict[str, Moments]]]


def collect(
    model: Any,
    corpus: Any,
    *,
    edges: Edges | Mapping[Site, Edges] | None = None,
    neurons: NeuronMask | None = None,
    folds: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = True,
) -> ActivationStats:
    """Statistics of every MLP and attention pre-out neuron over the tokens of a corpus.

    Every token counts that is real text (no padding, no special token) and has real text before it in its
    row: at the first one, models keep attention sinks (see `Batch.in_context`). The tokens of an image are its
    patches; the class token does not count.

    One forward pass up to the last hook, without the unembedding. Reduction happens inside the hooks, so
    memory does not grow with the number of tokens. Ablations in force (`with ablate(...)`) are seen.

    In several processes (`torch.distributed`) every one makes the same call, reads its share of the batches, and
    returns the statistics of all: those of one process, to 1e-12 in float64.

    Args:
        model: a `TransformerBridge` or a `HookedTransformer`.
        corpus: what `load_corpus` or `load_images` returns, a list of strings, or an iterable of batches.
        edges: histogram edges, for both sites or by site (`stats.edges("attn")` gives even ones).
        neurons: which neurons to count in histograms; None is all those of the sites with edges.
        folds: keep the statistics of so many folds of whole documents too, 20 for instance, from which standard
            errors, intervals and tests are made (`uncertainty`, `specialised`, `rank_stability`). Documents are
            dealt to folds in turn, images likewise, rows that are of no document each by itself. What is returned
            of the whole corpus is the same to the last bit. Memory grows by folds times neurons, and the corpus is
            read once more, without the model. None keeps none.
        batch_tokens: tokens in a batch, padding included; a batch that memory does not hold is read in halves.
        progress: show a bar.

    Returns:
        `ActivationStats`: freq, abs, rms, std, mean, min, max and count, and the histograms asked for.

    Raises:
        SpLensError: for a corpus that can't be read, a NaN or infinite activation (naming site, layer and
            batch), a hook that did not fire exactly once in a pass, and folds that are fewer than 5, more than
            there are documents, or asked for in one of several processes; on the other processes too.
    """
    layout = layout_of(model)
    requests = _histogram_requests(layout, edges, neurons)
    if folds is not None:
        distributed.require_one("collect(..., folds=...)")
    dealt = None if folds is None else deal(model, corpus, folds)
    totals: dict[str, Moments] = {}
    of_folds: list[dict[str, Moments]] = [{} for _ in range(folds or 0)]
    images, halving = 0, Halving()
    silent = not (progress and distributed.is_main())
    with distributed.together() as work, inference(model), tqdm(desc="collect", unit=" tokens", disable=silent) as bar:
        work.same(layout, {name: (len(edges), len(chosen)) for name, (edges, chosen) in requests.items()})
        for number, batch in work.dealt(batches(model, corpus, batch_tokens=batch_tokens)):
            owners = None
            if dealt is not None:
                owners = torch.tensor([dealt[document] for document in documents_of(batch, images_before=images)])
                images += len(owners)
            reduced = partial(_moments, model, layout, batch, number=number, requests=requests, owners=owners)
            for moments, by_fold in halving.parts(reduced, *batch.in_context.shape):
                _merge_into(totals, moments)
                for fold, part in by_fold.items():
                    _merge_into(of_folds[fold], part)
            bar.update(int(batch.in_context.sum()))
    totals = _of_all_ranks(totals, layout, requests)
    if not totals:
        raise SpLensError("no token of the corpus counts: none is real text with real text before it.")
    about = {"model": model_name(model), "corpora": [describe(corpus)], "versions": versions()}
    kept = tuple(ActivationStats(layout, part, {"model": about["model"]}) for part in of_folds if part)
    return ActivationStats(layout, totals, about, kept)


def _merge_into(totals: dict[str, Moments], batch: Mapping[str, Moments]) -> None:
    for name, moments in batch.items():
        totals[name] = totals[name].merge(moments) if name in totals else moments


def collect_histograms(
    model: Any,
    corpora: Mapping[str, Any],
    *,
    site: Site,
    layer: int | None = None,
    neurons: NeuronMask | None = None,
    bins: int = 100,
    folds: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = True,
) -> dict[str, ActivationStats]:
    """Statistics with histograms between the same edges on every corpus, as figures of densities want them.

    Two passes over each corpus: the first finds the smallest and the largest activation on any of them,
    between which the second counts in even bins; so no activation is outside.

    Args:
        model: a `TransformerBridge` or a `HookedTransformer`.
        corpora: label -> what `load_corpus` returns, or a list of strings; what can be read twice.
        site: "mlp" or "attn".
        layer: count the neurons of this layer alone; None counts those of all.
        neurons: count these neurons alone, a mask of the model or of the site; None counts all.
        bins: how many between the edges.
        folds: keep the statistics of so many folds of documents too, see `collect`; histograms are not kept by fold.
        batch_tokens: tokens in a batch, padding included.
        progress: show bars.

    Returns:
        label -> `ActivationStats`, of the neurons of all sites, with histograms of the ones asked for.

    Raises:
        SpLensError: when there is no corpus, one that can be read only once, or no neuron that was asked for; and
            as `collect`.
    """
    if not isinstance(corpora, Mapping) or not corpora:
        raise SpLensError(f"expected {{label: corpus}}, one or more, got {type(corpora).__name__}: {{'code': corpus}}.")
    if once := [label for label, corpus in corpora.items() if isinstance(corpus, Iterator)]:
        raise SpLensError(f"corpus {once[0]!r} can be read once only, and two passes are needed: make it a list.")
    first = [collect(model, one, batch_tokens=batch_tokens, progress=progress) for one in corpora.values()]
    chosen = _chosen(first[0].layout, site, layer, neurons)
    edges: dict[Site, Edges] = {site: reduce(ActivationStats.merge, first).edges(site, neurons=chosen, bins=bins)}
    options: dict[str, Any] = {"folds": folds, "batch_tokens": batch_tokens, "progress": progress}
    return {label: collect(model, corpus, edges=edges, neurons=chosen, **options) for label, corpus in corpora.items()}


def _chosen(layout: Layout, site: Site, layer: int | None, neurons: NeuronMask | None) -> NeuronMask:
    """The neurons at `site`, of one layer or all, that are in the mask, as a mask of the whole layout."""
    if neurons is not None:
        layout.select(site).require_same(neurons.layout.select(site), "the mask of neurons for the histograms")
    there = [group.layer for group in layout.select(site)]
    if layer is not None and layer not in there:
        raise SpLensError(f"no layer {layer} at site {site!r}: there are layers {there[0]} to {there[-1]}.")
    tensors = {group.name: torch.zeros(group.width, dtype=torch.bool) for group in layout}
    for group in layout.select(site):
        if layer in (None, group.layer):
            tensors[group.name] = ~tensors[group.name] if neurons is None else neurons[group.name].cpu()
    return NeuronMask(layout, tensors)


def _moments(
    model: Any,
    layout: Layout,
    batch: Batch | ImageBatch,
    rows: slice,
    *,
    number: int,
    requests: Mapping[str, tuple[Edges, torch.Tensor]],
    owners: Int[torch.Tensor, " row"] | None,
) -> _Reduced:
    """Of some rows of a batch, and of each fold that has any of them by `owners`, the moments by hook name."""
    batch, owners = batch.part(rows), None if owners is None else owners[rows]
    seen: dict[str, Moments] = {}
    by_fold: dict[int, dict[str, Moments]] = {}
    if not batch.in_context.any():
        return seen, by_fold  # special tokens only: nothing in it counts
    counted, uncounted = _places(batch)
    places = {} if owners is None else {int(fold): _places(batch, owners == fold) for fold in owners.unique()}
    places = {fold: those for fold, those in places.items() if len(those[0])}

    def look(group: NeuronGroup, activation: torch.Tensor) -> None:
        flat = activation.flatten(0, 1)
        moments = Moments.from_activations(flat, counted=counted, uncounted=uncounted)
        for fold, (own, other) in places.items():
            of_fold = moments if len(places) == 1 else Moments.from_activations(flat, counted=own, uncounted=other)
            by_fold.setdefault(fold, {})[group.name] = of_fold
        if group.name in requests:
            real = flat.index_select(0, counted.to(flat.device)).float()
            moments = moments.with_histogram(Histogram.from_activations(real, *requests[group.name]))
        seen[group.name] = moments

    visit(model, batch, layout, look)
    for group in layout:
        require_finite(seen[group.name].mean, group, number)
    return seen, by_fold


def _places(batch: Batch | ImageBatch, rows: Bool[torch.Tensor, " row"] | None = None) -> tuple[torch.Tensor, ...]:
    """Where in the flattened batch the tokens are that count, and those that don't; of all rows or of some."""
    masks = batch.in_context, batch.uncounted
    return tuple((mask if rows is None else mask & rows[:, None]).flatten().nonzero().squeeze(1) for mask in masks)


def _of_all_ranks(
    own: dict[str, Moments], layout: Layout, requests: Mapping[str, tuple[Edges, torch.Tensor]]
) -> dict[str, Moments]:
    """The moments of the batches of all ranks, merged in the order of the ranks."""
    if distributed.world_size() == 1:
        return own
    merged: dict[str, Moments] = {}
    for group in layout:
        moments = own[group.name] if own else _none(group, requests.get(group.name))
        parts = distributed.gathered({"count": torch.tensor(moments.count), **moments.tensors()})
        of_ranks = [Moments.from_tensors(int(part.pop("count")), part) for part in parts]
        if there := [moments for moments in of_ranks if moments.count]:
            merged[group.name] = reduce(Moments.merge, there)
    return merged


def _none(group: NeuronGroup, request: tuple[Edges, torch.Tensor] | None) -> Moments:
    """What a rank without a batch sends: of the right shapes, and left out by its count."""
    nothing = replace(Moments.from_activations(torch.zeros(1, group.width)), count=0)
    return (
        nothing
        if request is None
        else nothing.with_histogram(Histogram.from_activations(torch.zeros(0, group.width), *request))
    )


def _histogram_requests(
    layout: Layout, edges: Edges | Mapping[Site, Edges] | None, neurons: NeuronMask | None
) -> dict[str, tuple[Edges, torch.Tensor]]:
    """By hook name, the edges and the neurons to count."""
    if edges is None:
        if neurons is not None:
            raise SpLensError("neurons were chosen for histograms, but no edges given: edges=stats.edges('attn').")
        return {}
    if neurons is not None:
        layout.require_same(neurons.layout, "the mask of neurons for the histograms")
    requests = {}
    for group in layout:
        of_site = edges.get(group.site) if isinstance(edges, Mapping) else edges
        if of_site is None:
            continue
        if of_site.ndim != 1 or len(of_site) < 2 or not bool((of_site[1:] > of_site[:-1]).all()):
            raise SpLensError(f"edges of shape {tuple(of_site.shape)}: expected at least two, in ascending order.")
        chosen = torch.arange(group.width) if neurons is None else neurons[group.name].nonzero().squeeze(1)
        if len(chosen):
            requests[group.name] = (of_site.float(), chosen)
    return requests
