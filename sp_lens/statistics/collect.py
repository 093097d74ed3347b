"""Collect activation statistics of every neuron over a corpus, in one streaming pass that keeps no activations."""

from collections.abc import Iterator, Mapping
from functools import reduce
from typing import Any

import torch
from jaxtyping import Bool, Int
from tqdm.auto import tqdm

from sp_lens import distributed
from sp_lens.data.batch import AnyBatch
from sp_lens.data.batching import BatchStream, no_counted_token
from sp_lens.data.text import describe
from sp_lens.errors import SpLensError, check_choice
from sp_lens.models.forward import inference, require_finite_activations, visit_activations
from sp_lens.models.hooks import layout_of, model_name
from sp_lens.models.plain_model import verify_once
from sp_lens.neurons.layout import Layout, NeuronGroup
from sp_lens.neurons.mask import NeuronMask
from sp_lens.statistics.activation_stats import ActivationStats
from sp_lens.statistics.histogram import Edges, Histogram
from sp_lens.statistics.moments import Moments
from sp_lens.storage.serialization import versions
from sp_lens.typing import BATCH_TOKENS, POSITIONS, Positions, Site

_ByHook = dict[str, Moments]
# The edges of a histogram and the indices of the neurons that it counts, by hook name.
_Requests = dict[str, tuple[Edges, torch.Tensor]]


def collect(
    model: Any,
    corpus: Any,
    *,
    positions: Positions = "text",
    edges: Edges | Mapping[Site, Edges] | None = None,
    neurons: NeuronMask | None = None,
    folds: int | None = None,
    fold_documents: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = True,
) -> ActivationStats:
    """Collect statistics of every MLP and attention pre-out neuron over the tokens of a corpus.

    By default, a token counts if it is text (no padding, no special token) and follows other text in its row. The first
    token of a row is left out because models place attention sinks there (see `Batch.in_context`). The tokens of an
    image are its patches; the class token does not count.

    The model runs once over the corpus, up to the last hook and without the unembedding. Activations are reduced inside
    the hooks, so memory does not grow with the number of tokens. Active ablations (`with ablate(...)`) apply.

    With several processes (`torch.distributed`), every process makes the same call, reads its share of the batches, and
    returns the statistics of the whole corpus. They equal those of one process to 1e-12 in float64.

    Args:
        model: A `TransformerBridge` or a `HookedTransformer`.
        corpus: The result of `load_corpus` or `load_images`, a list of strings, or an iterable of batches.
        positions: Token positions that count. "text" counts text that follows other text in its row, as described
            above. "all" counts every token that is not padding, also special tokens such as BOS, the first token of a
            row, and the class token of an image, as the paper's released code does. Statistics of different positions
            cannot be compared or merged.
        edges: Histogram edges, for both sites or by site. `stats.edges("attn")` returns evenly spaced ones.
        neurons: Neurons to count in histograms. None counts all neurons of the sites that have edges.
        folds: Number of folds of documents (for example 20) whose statistics are kept as well. `uncertainty`,
            `specialisation_test` and `rank_stability` need them for standard errors, intervals and tests. Documents are
            assigned to folds in turn; an image, or a row without a document, counts as a document. The statistics of
            the whole corpus are bit-identical with and without folds. Memory grows with folds times neurons, and the
            corpus is read one more time without the model. None keeps no folds.
        fold_documents: Number of documents in a fold, instead of their number. `specialisation_test` compares folds of
            equally many documents, so collect two corpora of different sizes with the same `fold_documents`.
        batch_tokens: Number of tokens per batch, including padding. A batch that does not fit into memory is split.
        progress: Whether to show a progress bar.

    Returns:
        `ActivationStats` with freq, abs, rms, std, mean, min, max and count of each neuron, and histograms if `edges`
        are given.

    Raises:
        SpLensError: If `positions` is unknown, the corpus cannot be read, an activation is NaN or infinite (the message
            names site, layer and batch), a hook does not fire exactly once per forward pass, or there are fewer than 5
            folds, more folds than documents, or folds in one of several processes. With several processes, the error
            of one is raised on all of them.
    """
    check_choice("positions", positions, POSITIONS)
    layout = layout_of(model)
    requests = _histogram_requests(layout, edges, neurons)
    if folds is not None or fold_documents is not None:
        distributed.require_one("collect with folds")
    verify_once(model)
    totals: _ByHook = {}
    silent = not (progress and distributed.is_main())
    with (
        distributed.fail_together() as ranks,
        inference(model),
        tqdm(desc="collect", unit=" tokens", disable=silent) as bar,
    ):
        sizes = {name: (len(edges), len(chosen)) for name, (edges, chosen) in requests.items()}
        ranks.require_same(layout, positions, sizes)
        stream = BatchStream(
            model, corpus, batch_tokens=batch_tokens, folds=folds, fold_documents=fold_documents, ranks=ranks
        )
        documents = stream.documents_by_fold
        fold_totals: list[_ByHook] = [{} for _ in documents]
        reduced = stream.map(
            lambda batch: _reduce_batch(
                model, layout, batch, positions=positions, folds=stream.folds_of(batch), requests=requests
            )
        )
        for batch, (moments, by_fold) in reduced:
            _merge_into(totals, moments)
            for fold, fold_moments in by_fold.items():
                _merge_into(fold_totals[fold], fold_moments)
            bar.update(int(_counted(batch, positions).sum()))
    totals = _merge_ranks(totals, layout)
    if not totals:
        raise no_counted_token()
    about = {"model": model_name(model), "positions": positions}
    about |= {"corpora": [describe(corpus)], "versions": versions()}
    kept = tuple(
        ActivationStats(layout, fold, {"model": about["model"], "documents": number})
        for fold, number in zip(fold_totals, documents, strict=True)
        if fold
    )
    return ActivationStats(layout, totals, about, kept)


def _merge_into(totals: _ByHook, moments: _ByHook) -> None:
    for name, new in moments.items():
        totals[name] = totals[name].merge(new) if name in totals else new


def _merge_ranks(totals: _ByHook, layout: Layout) -> _ByHook:
    """Merge the moments of all ranks in rank order; a rank without a counted token has none."""
    if distributed.world_size() == 1:
        return totals
    merged: _ByHook = {}
    for name in layout.names:  # one group at a time, as histograms of all of them from all ranks can be large
        for moments in distributed.gathered(totals[name].cpu() if name in totals else None):
            if moments is not None:
                _merge_into(merged, {name: moments})
    return merged


def collect_histograms(
    model: Any,
    corpora: Mapping[str, Any],
    *,
    site: Site,
    layer: int | None = None,
    neurons: NeuronMask | None = None,
    bins: int = 100,
    positions: Positions = "text",
    folds: int | None = None,
    fold_documents: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = True,
) -> dict[str, ActivationStats]:
    """Collect statistics with histograms that have the same edges on every corpus, for density plots.

    The model runs twice over each corpus. The first pass finds the smallest and the largest activation on any corpus,
    and the second one counts in evenly spaced bins between them, so no activation lies outside.

    Args:
        model: A `TransformerBridge` or a `HookedTransformer`.
        corpora: Corpora by label: results of `load_corpus`, or lists of strings. An iterator cannot be read twice.
        site: Site of the histograms, "mlp" or "attn".
        layer: Layer of the histograms. None counts the neurons of all layers.
        neurons: Neurons to count, a mask of the whole model or of the site. None counts all.
        bins: Number of bins between the edges.
        positions: Token positions that count, "text" or "all", see `collect`.
        folds: Number of folds of documents whose statistics are kept as well, see `collect`. Folds have no histograms.
        fold_documents: Number of documents in a fold, instead of `folds`.
        batch_tokens: Number of tokens per batch, including padding.
        progress: Whether to show progress bars.

    Returns:
        `ActivationStats` by label. They cover the neurons of all sites; only the requested ones have histograms.

    Raises:
        SpLensError: If there is no corpus, if one is an iterator, if no neuron is requested, and as for `collect`.
    """
    if not isinstance(corpora, Mapping) or not corpora:
        raise SpLensError(
            f"corpora is a {type(corpora).__name__}: expected a non-empty dictionary of corpora by label, for example "
            "{'code': corpus}."
        )
    if iterators := [label for label, corpus in corpora.items() if isinstance(corpus, Iterator)]:
        raise SpLensError(
            f"corpus {iterators[0]!r} can be read once only, because it is an iterator. Histograms need two passes, so "
            "pass a list."
        )
    options: dict[str, Any] = {"positions": positions, "batch_tokens": batch_tokens, "progress": progress}
    first = [collect(model, corpus, **options) for corpus in corpora.values()]
    chosen = _chosen_neurons(first[0].layout, site, layer, neurons)
    edges: dict[Site, Edges] = {site: reduce(ActivationStats.merge, first).edges(site, neurons=chosen, bins=bins)}
    options |= {"edges": edges, "neurons": chosen, "folds": folds, "fold_documents": fold_documents}
    return {label: collect(model, corpus, **options) for label, corpus in corpora.items()}


def _chosen_neurons(layout: Layout, site: Site, layer: int | None, neurons: NeuronMask | None) -> NeuronMask:
    """Return a mask of the whole layout with the neurons of a site and layer, restricted to `neurons` if given."""
    if neurons is not None:
        layout.select(site).require_same(neurons.layout.select(site), "the mask of neurons for the histograms")
    layers = [group.layer for group in layout.select(site)]
    if layer is not None and layer not in layers:
        raise SpLensError(f"no layer {layer} at site {site!r}: there are layers {layers[0]} to {layers[-1]}.")
    tensors = {group.name: torch.zeros(group.width, dtype=torch.bool) for group in layout}
    for group in layout.select(site):
        if layer in (None, group.layer):
            tensors[group.name] = ~tensors[group.name] if neurons is None else neurons[group.name].cpu()
    return NeuronMask(layout, tensors)


def _reduce_batch(
    model: Any,
    layout: Layout,
    batch: AnyBatch,
    *,
    positions: Positions,
    folds: Int[torch.Tensor, " row"] | None,
    requests: _Requests,
) -> tuple[_ByHook, dict[int, _ByHook]]:
    """Return the moments of a batch by hook name, and those of each fold in it."""
    moments_of: _ByHook = {}
    by_fold: dict[int, _ByHook] = {}
    masks = (_counted(batch, positions), batch.uncounted)
    if not masks[0].any():
        return moments_of, by_fold
    counted, uncounted = _indices(masks)
    indices = {} if folds is None else {int(fold): _indices(masks, folds == fold) for fold in folds.unique()}
    indices = {fold: pair for fold, pair in indices.items() if len(pair[0])}

    def reduce_group(group: NeuronGroup, activation: torch.Tensor) -> None:
        flat = activation.flatten(0, 1)
        moments = Moments.from_activations(flat, counted=counted, uncounted=uncounted)
        for fold, (fold_counted, fold_uncounted) in indices.items():
            fold_moments = moments
            if len(indices) > 1:  # with one fold in the batch, its moments are those of the batch
                fold_moments = Moments.from_activations(flat, counted=fold_counted, uncounted=fold_uncounted)
            by_fold.setdefault(fold, {})[group.name] = fold_moments
        if group.name in requests:
            chosen = flat.index_select(0, counted.to(flat.device)).float()
            moments = moments.with_histogram(Histogram.from_activations(chosen, *requests[group.name]))
        moments_of[group.name] = moments

    visit_activations(model, batch, layout, reduce_group)
    for group in layout:
        moments = moments_of[group.name]
        sums = torch.stack([moments.mean, moments.absolute, moments.squares, moments.uncounted_peak])
        require_finite_activations(sums, group, batch.number)
    return moments_of, by_fold


def _counted(batch: AnyBatch, positions: Positions) -> Bool[torch.Tensor, "row pos"]:
    return batch.in_context if positions == "text" else batch.not_padding


def _indices(
    masks: tuple[Bool[torch.Tensor, "row pos"], Bool[torch.Tensor, "row pos"]],
    rows: Bool[torch.Tensor, " row"] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the indices, in the flattened batch, of the tokens that each mask marks, in all or some rows."""
    first, second = ((mask if rows is None else mask & rows[:, None]).flatten().nonzero().squeeze(1) for mask in masks)
    return first, second


def _histogram_requests(
    layout: Layout, edges: Edges | Mapping[Site, Edges] | None, neurons: NeuronMask | None
) -> _Requests:
    """Return the edges and the neurons of each requested histogram by hook name."""
    if edges is None:
        if neurons is not None:
            raise SpLensError(
                "neurons selects the neurons of histograms, but edges is None. Pass edges, for example "
                "edges=stats.edges('attn')."
            )
        return {}
    if neurons is not None:
        layout.require_same(neurons.layout, "the mask of neurons for the histograms")
    requests: _Requests = {}
    for group in layout:
        site_edges = edges.get(group.site) if isinstance(edges, Mapping) else edges
        if site_edges is None:
            continue
        if site_edges.ndim != 1 or len(site_edges) < 2 or not bool((site_edges[1:] > site_edges[:-1]).all()):
            raise SpLensError(
                f"edges have the shape {tuple(site_edges.shape)}: expected a vector of at least two ascending numbers."
            )
        chosen = torch.arange(group.width) if neurons is None else neurons[group.name].nonzero().squeeze(1)
        if len(chosen):
            requests[group.name] = (site_edges.float(), chosen)
    return requests
