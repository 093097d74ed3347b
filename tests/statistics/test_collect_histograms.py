"""Histograms of several corpora: common edges, chosen neurons, and rejected arguments."""

from typing import Any

import numpy as np
import pytest
from factories import random_rows

import sp_lens as sp
from sp_lens.neurons.layout import Layout, NeuronGroup

pytestmark = [pytest.mark.libraries, pytest.mark.model]


def test_all_corpora_have_the_same_edges_which_include_all_activations(opt: Any) -> None:
    corpora = {"first": random_rows(6), "second": random_rows(9, seed=1)}
    stats = sp.collect_histograms(opt, corpora, site="attn", layer=1, bins=20, progress=False)
    name = "blocks.1.attn.hook_z"
    without_histograms = {label: sp.collect(opt, rows, progress=False) for label, rows in corpora.items()}
    low = min(float(each[name].min.min()) for each in without_histograms.values())
    high = max(float(each[name].max.max()) for each in without_histograms.values())
    for label, each in stats.items():
        assert [key for key in each if each[key].histogram] == [name]
        histogram: Any = each[name].histogram
        assert histogram.edges.numpy() == pytest.approx(np.linspace(low, high, 21), rel=1e-5, abs=1e-6)
        assert histogram.neurons.tolist() == list(range(each.layout.group(name).width))
        assert not histogram.outside.any()
        assert (histogram.counts.sum(dim=1) == each.count).all()
        assert each.frame().equals(without_histograms[label].frame())


def test_the_edges_of_chosen_neurons_are_the_range_of_these_neurons(opt: Any) -> None:
    rows = random_rows(6)
    without_histograms = sp.collect(opt, rows, progress=False)
    chosen = without_histograms.importance("abs").top(0.05, site="mlp")  # a mask of one site
    (stats,) = sp.collect_histograms(opt, {"a": rows}, site="mlp", neurons=chosen, bins=5, progress=False).values()
    marked = {name: mask.nonzero().flatten().tolist() for name, mask in chosen.items() if mask.any()}
    histograms: dict[str, Any] = {name: stats[name].histogram for name in stats if stats[name].histogram}
    assert {name: histogram.neurons.tolist() for name, histogram in histograms.items()} == marked
    high = max(float(without_histograms[name].max[indices].max()) for name, indices in marked.items())
    assert all(float(histogram.edges[-1]) == pytest.approx(high) for histogram in histograms.values())


@pytest.mark.parametrize(
    ("corpora", "options", "message"),
    [
        ({}, {}, "expected a non-empty dictionary of corpora"),
        (["text"], {}, "corpora is a list"),
        ({"a": iter(["text"])}, {}, "corpus 'a' can be read once only"),
        ({"a": random_rows(2)}, {"layer": 9}, "no layer 9 at site 'mlp': there are layers 0 to 1"),
        ({"a": random_rows(2)}, {"bins": 0}, "bins is 0: expected 1 or more"),
    ],
)
def test_invalid_arguments_are_rejected(opt: Any, corpora: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(sp.SpLensError, match=message):
        sp.collect_histograms(opt, corpora, site="mlp", progress=False, **options)


def test_empty_masks_and_masks_of_other_models_are_rejected(opt: Any) -> None:
    layout = sp.layout_of(opt)
    empty = sp.NeuronMask.from_neurons(layout, {})
    other = sp.NeuronMask.from_neurons(Layout((NeuronGroup("mlp", 0, 3),)), {})
    for mask, message in ((empty, "the mask has no neuron at site 'mlp'"), (other, "belongs to another model")):
        with pytest.raises(sp.SpLensError, match=message):
            sp.collect_histograms(opt, {"a": random_rows(2)}, site="mlp", neurons=mask, progress=False)
