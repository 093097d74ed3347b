"""`specialisation` compared with numpy and pandas, and the data in its figures."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import sp_lens as sp
from sp_lens.neurons.layout import Layout, NeuronGroup
from sp_lens.statistics.moments import Moments

pytestmark = pytest.mark.libraries

plots: Any = sp.plots  # untyped, for calls with invalid arguments
LAYOUT = Layout(
    (
        NeuronGroup("attn", 0, 8, heads=2),
        NeuronGroup("mlp", 0, 12),
        NeuronGroup("attn", 1, 8, heads=2),
        NeuronGroup("mlp", 1, 20),
    )
)
CORPORA = ("python", "C++", "novels")


def activations(seed: int) -> dict[str, torch.Tensor]:
    """Draw random activations [token neuron] for each group, of which a few neurons are strong and many are weak."""
    generator = torch.Generator().manual_seed(seed)
    return {
        group.name: torch.randn(40, group.width, generator=generator).abs()
        * torch.rand(group.width, generator=generator) ** 3
        for group in LAYOUT
    }


Z = {corpus: activations(seed) for seed, corpus in enumerate(CORPORA)}


def stats_of(z: dict[str, torch.Tensor], **about: Any) -> sp.ActivationStats:
    return sp.ActivationStats(LAYOUT, {name: Moments.from_activations(tensor) for name, tensor in z.items()}, about)


STATS = {corpus: stats_of(z, model="tiny", corpora=[{"source": corpus}]) for corpus, z in Z.items()}


def table(eps: float = 0.01) -> pd.DataFrame:
    """Compute the scores [neuron corpus] with numpy alone, in the order of the layout."""
    means = {corpus: np.concatenate([z[name].abs().double().mean(dim=0) for name in z]) for corpus, z in Z.items()}
    columns = {
        corpus: mean / (np.mean([other for label, other in means.items() if label != corpus], axis=0) + eps)
        for corpus, mean in means.items()
    }
    return pd.DataFrame(columns)


def test_a_score_is_the_importance_divided_by_the_mean_on_the_other_corpora() -> None:
    special = sp.specialisation(STATS, eps=0.01)
    assert list(special) == list(CORPORA)
    frame, expected = special.frame(), table()
    assert frame.columns.tolist() == ["site", "layer", "head", "neuron", *CORPORA, "corpus", "specificity"]
    assert frame[list(CORPORA)].to_numpy() == pytest.approx(expected.to_numpy(), rel=1e-5)
    assert frame["corpus"].tolist() == expected.idxmax(axis=1).tolist()
    assert frame["specificity"].tolist() == pytest.approx(expected.max(axis=1).tolist(), rel=1e-5)
    keys = [(group.site, group.layer, neuron) for group in LAYOUT for neuron in range(group.width)]
    assert list(zip(frame["site"], frame["layer"], frame["neuron"], strict=True)) == keys


def test_scores_for_two_corpora_are_definition_2() -> None:
    forget, retain = STATS["python"], STATS["novels"]
    for metric in ("abs", "rms", "std", "freq"):
        special = sp.specialisation({"python": forget, "novels": retain}, metric=metric)
        assert special["python"] == sp.score(forget, retain, metric=metric)
        assert special["novels"] == sp.score(retain, forget, metric=metric)
        assert special["python"].about["eps"] == {"mlp": 1e-3, "attn": 1e-4}


def test_the_top_scores_of_a_corpus_are_a_mask() -> None:
    mask = sp.specialisation(STATS, eps=0.01)["C++"].top(0.25, site="mlp")
    mlp = np.repeat([group.site == "mlp" for group in LAYOUT], [group.width for group in LAYOUT])
    scores = table()["C++"].to_numpy()[mlp]
    marked = np.concatenate([mask[name].numpy() for name in mask])
    assert mask.count() == 8
    assert scores[marked].min() > scores[~marked].max()


def test_counts_are_by_site_layer_and_corpus() -> None:
    counts = sp.specialisation(STATS, eps=0.01).counts(above=1.5)
    assert counts.columns.tolist() == ["site", "layer", "corpus", "neurons", "share"]
    assert len(counts) == 4 * 3
    sizes = [group.width for group in LAYOUT]
    expected = table().assign(site=np.repeat([g.site for g in LAYOUT], sizes))
    expected["layer"] = np.repeat([g.layer for g in LAYOUT], sizes)
    rows: list[Any] = list(counts.itertuples())
    for row in rows:
        here = expected.loc[(expected["site"] == row.site) & (expected["layer"] == row.layer), list(CORPORA)]
        most = (here.idxmax(axis=1) == row.corpus) & (here.max(axis=1) > 1.5)
        assert row.neurons == most.sum()
        assert row.share == pytest.approx(most.mean())
    assert counts["neurons"].sum() > 0


def test_a_silent_neuron_has_no_corpus_and_ties_go_to_the_first_corpus() -> None:
    z = torch.tensor([[0.0, 1.0, 2.0]])
    stats = [sp.ActivationStats.from_cache({"blocks.0.mlp.hook_post": tensor[None]}) for tensor in (z, z, z * 0)]
    frame = sp.specialisation({"a": stats[0], "b": stats[1], "c": stats[2]}).frame()
    assert frame["corpus"].isna().tolist() == [True, False, False]
    assert frame["corpus"].tolist()[1:] == ["a", "a"]
    assert frame["specificity"][0] == 0


def test_overlap_is_a_fraction_of_the_summed_importance() -> None:
    overlap = sp.specialisation(STATS, eps=0.01).overlap(0.25, site="mlp")
    mlp = np.repeat([group.site == "mlp" for group in LAYOUT], [group.width for group in LAYOUT])
    scores: Any = table()[mlp]
    assert overlap.index.tolist() == overlap.columns.tolist() == list(CORPORA)
    for specific in CORPORA:
        top = np.argsort(-scores[specific].to_numpy())[:8]
        for corpus in CORPORA:
            means = np.concatenate(
                [z.abs().double().mean(dim=0) for name, z in Z[corpus].items() if name.endswith("post")]
            )
            assert overlap.loc[specific, corpus] == pytest.approx(means[top].sum() / means.sum(), rel=1e-5)
    all_neurons = sp.specialisation(STATS).overlap(1, site="attn")
    assert all_neurons.to_numpy() == pytest.approx(np.ones((3, 3)))


def test_a_specialisation_is_saved_and_loaded(tmp_path: Path) -> None:
    special = sp.specialisation(STATS, metric="rms", eps={"mlp": 0.5})
    special.save(tmp_path / "special.safetensors")
    loaded = sp.Specialisation.load(tmp_path / "special.safetensors")
    pd.testing.assert_frame_equal(loaded.frame(), special.frame())
    assert loaded.eps == {"mlp": 0.5, "attn": 1e-4}
    assert loaded["C++"].about == special["C++"].about
    with pytest.raises(sp.SpLensError, match="contains 'Specialisation', but a NeuronMask was expected"):
        sp.NeuronMask.load(tmp_path / "special.safetensors")


@pytest.mark.parametrize(
    ("stats", "options", "message"),
    [
        ({}, {}, "number of corpora is 0: pass statistics of two or more"),
        ({"a": STATS["python"]}, {}, "number of corpora is 1: pass statistics of two or more"),
        (STATS["python"], {}, "got ActivationStats: pass {'code': code_stats"),
        ([STATS["python"]], {}, "got list"),
        ({"a": STATS["python"], "b": 3}, {}, "'b' is a int: expected ActivationStats"),
        ({"a": STATS["python"], "layer": STATS["C++"]}, {}, "a corpus has the label 'layer'"),
        ({"a": STATS["python"], 7: STATS["C++"]}, {}, "a corpus has the label 7"),
        ({"a": STATS["python"], "b": stats_of(Z["C++"], model="other")}, {}, "different models"),
        (STATS, {"metric": "median"}, "unknown metric 'median'"),
        (STATS, {"eps": -1}, "eps is -1: expected numbers of 0 or more"),
    ],
)
def test_invalid_input_raises_an_error(stats: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(sp.SpLensError, match=message):
        sp.specialisation(stats, **options)


# Figures


def test_bars_are_the_fractions_of_each_layer_stacked_by_corpus() -> None:
    special = sp.specialisation(STATS, eps=0.01)
    figure = sp.plots.specialisation_by_layer(special, above=1.5)
    counts = special.counts(above=1.5).set_index(["site", "corpus", "layer"])
    bars: list[Any] = list(figure.select_traces())
    assert [bar.name for bar in bars] == [*CORPORA, *CORPORA]
    for bar, site in zip(bars, ["attn"] * 3 + ["mlp"] * 3, strict=True):
        assert list(bar.x) == [0, 1]
        assert bar.y == pytest.approx([100 * counts.loc[(site, bar.name, layer), "share"] for layer in (0, 1)])
        assert list(bar.customdata) == [counts.loc[(site, bar.name, layer), "neurons"] for layer in (0, 1)]
        assert bar.showlegend == (site == "attn")
        assert bar.xaxis == ("x" if site == "attn" else "x2")
    assert (
        [bar.marker.color for bar in bars[:3]]
        == [bar.marker.color for bar in bars[3:]]
        == ["#0072B2", "#D55E00", "#009E73"]
    )
    layout: Any = figure.layout
    assert layout.barmode == "stack"
    assert [note.text for note in layout.annotations] == ["attention pre-out neurons", "MLP neurons"]
    assert [layout.xaxis.title.text, layout.yaxis.title.text] == ["layer", "share of the layer's neurons (%)"]
    assert layout.title.subtitle.text == (
        "specific: more than 1.5 times as important on this corpus as on the mean of the others; "
        "tiny, abs, eps 0.01 (mlp), 0.01 (attn)"
    )


def test_the_matrix_of_overlaps_is_in_per_cent() -> None:
    special = sp.specialisation(STATS, eps=0.01)
    figure = sp.plots.cross_importance(special, fraction=0.25)
    cells: Any = figure.data[0]
    assert cells.z == pytest.approx(100 * special.overlap(0.25).to_numpy(), rel=1e-5)
    assert cells.x == cells.y == CORPORA
    assert cells.zmin == 0
    layout: Any = figure.layout
    assert [layout.xaxis.title.text, layout.yaxis.title.text] == ["importance measured on", "neurons specific to"]
    assert cells.colorbar.title.text == "share of total importance (%)"


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda _: plots.specialisation_by_layer({}), "expects the result of sp.specialisation"),
        (lambda _: plots.cross_importance(STATS["python"]), "got an object of type ActivationStats"),
        (
            lambda s: plots.specialisation_by_layer(s, above=1e9),
            "no neuron has a specificity above 1e\\+09: the highest",
        ),
        (lambda s: plots.cross_importance(s, fraction=0), "fraction 0: expected a share"),
        (
            lambda _: plots.specialisation_by_layer(sp.specialisation(dict.fromkeys("abcdefgh", STATS["C++"]))),
            "given 8 corpora, but only has 7 distinguishable colours",
        ),
        (
            lambda s: plots.cross_importance(
                sp.specialisation(STATS | {"silent": stats_of({name: 0 * z for name, z in Z["C++"].items()})})
            ),
            "importances of all mlp neurons on 'silent' are 0",
        ),
        (
            lambda _: plots.cross_importance(
                sp.specialisation(
                    dict.fromkeys("ab", sp.ActivationStats.from_cache({"blocks.0.mlp.hook_post": torch.ones(1, 1, 5)}))
                ),
                site="attn",
            ),
            "no neurons at site 'attn'",
        ),
    ],
)
def test_figures_of_invalid_input_raise_an_error(draw: Any, message: str) -> None:
    with pytest.raises(sp.SpLensError, match=message):
        draw(sp.specialisation(STATS))
