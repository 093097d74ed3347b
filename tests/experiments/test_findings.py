"""The verdict of every finding, on hand-made data for which the right verdict is known: holds, fails and open."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import sp_lens as sp
from sp_lens.evaluation.document_hits import DocumentHits
from sp_lens.evaluation.intervals import Interval
from sp_lens.experiments.activations import score_range_finding, significance_finding, specialised_finding
from sp_lens.experiments.other_methods import method_finding
from sp_lens.experiments.pruning_runs import head_findings, metric_findings, perplexity_findings, tradeoff_findings
from sp_lens.experiments.registry import EXPERIMENTS, SCALES, Pair
from sp_lens.experiments.result import Finding, Reproduction, difference_finding
from sp_lens.experiments.results_page import write_page
from sp_lens.experiments.scaling import efficiency_finding, size_finding
from sp_lens.experiments.toxicity_experiment import toxicity_finding, wikitext_finding

PAIR = Pair("code", "prose")
NAN = float("nan")


def hits(forget: int | Sequence[int], retain: int | Sequence[int] = 0, documents: int = 20) -> DocumentHits:
    """Return hits on documents of 100 predictions: 50 correct before pruning, and that many fewer after it.

    One number gives all documents of a corpus the same drop, so that the interval is a point. Several numbers repeat.
    """
    tensors = {}
    for side, drop in (("forget", forget), ("retain", retain)):
        before = torch.full((documents,), 50)
        tensors[f"{side}_counts"], tensors[f"{side}_before"] = torch.full((documents,), 100), before
        tensors[f"{side}_after"] = before - torch.tensor(np.resize(drop, documents))
    return DocumentHits(tensors)


UNDECIDED = (50, -50)  # drops with a mean of 0 and a wide interval


def verdicts(findings: Sequence[Finding]) -> dict[str, bool | None]:
    return {finding.claim: finding.holds for finding in findings}


def test_the_hand_made_documents_have_the_intended_selectivity() -> None:
    assert hits(30, 10).interval() == pytest.approx((0.2, 0.2, 0.2))
    value, low, high = hits(UNDECIDED).interval()
    assert value == pytest.approx(0)
    assert low < -0.05
    assert high > 0.05
    assert np.isnan(hits(30, 10, documents=4).interval().low)


@pytest.mark.parametrize(
    ("interval", "holds"),
    [
        ((2, 1, 3), True),
        ((-2, -3, -1), False),
        ((1, -1, 3), None),
        ((1, 0, 2), None),
        ((-1, -2, 0), None),
        ((1, NAN, NAN), None),
    ],
)
def test_a_difference_is_judged_by_its_interval(interval: tuple[float, float, float], holds: bool | None) -> None:
    finding = difference_finding("it rises", "after minus before", Interval(*interval))
    assert finding.holds is holds
    assert finding.claim == "it rises"
    assert finding.measured.startswith(f"after minus before: {100 * interval[0]:.1f} ")


@pytest.mark.parametrize(
    ("selective", "random", "holds"),
    [
        (hits(30, 10), hits(20, 10), True),
        (hits(20, 10), hits(30, 10), False),
        (hits(30, 30), hits(10, 20), True),  # 0 points against -10 points
        (hits(UNDECIDED), hits(0), None),
        (hits(30, documents=4), hits(0, documents=4), None),
    ],
)
def test_scored_pruning_is_compared_with_random_pruning(
    selective: DocumentHits, random: DocumentHits, holds: bool | None
) -> None:
    (finding,) = tradeoff_findings(PAIR, {}, {"abs": selective, "random": random})
    assert finding.holds is holds
    difference = 100 * (selective.selectivity - random.selectivity)
    assert f"abs minus random: {difference:.1f} " in finding.measured.replace("-0.0", "0.0")


def run_with(best_step: int, forget: Sequence[float], retain: Sequence[float]) -> Any:
    """A run with these perplexities, step by step."""
    history = pd.DataFrame({"forget_perplexity": forget, "retain_perplexity": retain})
    return SimpleNamespace(best_step=best_step, history=history.assign(share=[0.0, 0.1, 0.2]))


@pytest.mark.parametrize(
    ("best_step", "forget", "retain", "holds"),
    [
        (1, (10, 40, 10), (20, 40, 90), True),  # x 4 and x 2
        (1, (20, 40, 90), (10, 40, 10), False),
        (2, (10, 10, 40), (20, 90, 40), True),
        (1, (10, 20, 90), (20, 40, 40), False),  # x 2 both
        (0, (10, 20, 10), (10, 15, 90), True),  # the first step, if no step is better than none
    ],
)
def test_perplexities_are_compared_by_their_factors_at_the_best_step(
    best_step: int, forget: Sequence[float], retain: Sequence[float], holds: bool
) -> None:
    (finding,) = perplexity_findings(PAIR, {"abs": run_with(best_step, forget, retain)}, {})
    assert finding.holds is holds


def test_metrics_are_compared_with_random_pruning_with_freq_and_between_sites() -> None:
    feed_forward = {"freq": 20, "abs": 30, "rms": 20, "std": 10, "random 0": 10, "random 1": 10, "random 2": 25}
    attention = {
        "freq": (10, 20),
        "abs": 10,
        "rms": 20,
        "std": UNDECIDED,
        "random 0": 20,
        "random 1": 20,
        "random 2": 5,
    }
    labels = {"mlp": feed_forward, "attn": attention}
    measured = {
        f"{label} {site}" if " " not in label else label.replace(" ", f" {site} "): hits(drop)
        for site, drops in labels.items()
        for label, drop in drops.items()
    }
    findings = metric_findings(PAIR, {}, measured)
    assert verdicts(findings) == {  # both means of the random runs are 15 points
        "feed-forward: freq beats random": True,
        "feed-forward: abs beats random": True,
        "feed-forward: rms beats random": True,
        "feed-forward: std beats random": False,
        "feed-forward: abs beats freq or matches it": True,
        "feed-forward: rms beats freq or matches it": True,
        "feed-forward: std beats freq or matches it": False,
        "attention: freq beats random": None,
        "attention: abs beats random": False,
        "attention: rms beats random": True,
        "attention: std beats random": None,
        "attention: abs beats freq or matches it": False,
        "attention: rms beats freq or matches it": True,
        "attention: std beats freq or matches it": True,  # the interval contains 0
        "feed-forward neurons separate better than attention neurons": True,
    }
    texts = {finding.claim: finding.measured for finding in findings}
    assert "freq minus the mean of 3 random runs: 5.0 [" in texts["feed-forward: freq beats random"]
    assert "abs minus freq: -5.0 [" in texts["attention: abs beats freq or matches it"]
    swapped = {**measured, "abs mlp": hits(10), "abs attn": hits(30)}
    assert metric_findings(PAIR, {}, swapped)[-1].holds is False
    few = {label: hits(10, documents=3) for label in measured}
    assert {finding.holds for finding in metric_findings(PAIR, {}, few)} == {None}


def test_heads_are_compared_with_random_heads_and_with_neurons() -> None:
    mean, largest = "heads by the mean of their neurons", "heads by the largest of their neurons"
    random = {f"heads at random {seed}": hits(drop) for seed, drop in enumerate((0, 10, 20))}
    findings = head_findings(PAIR, {}, {"neurons": hits(30), mean: hits(20), largest: hits(5), **random})
    separate = "single neurons separate better than whole heads"
    assert verdicts(findings) == {
        f"{mean}: more selective than random heads": True,
        f"{largest}: more selective than random heads": False,
        separate: True,
    }
    assert "the mean of 3 random runs: 10.0 [" in findings[0].measured
    findings = head_findings(PAIR, {}, {"neurons": hits(10), mean: hits(20), largest: hits(UNDECIDED), **random})
    assert [finding.holds for finding in findings] == [True, None, False]
    findings = head_findings(PAIR, {}, {"neurons": hits(20), mean: hits(20), largest: hits((5, 15)), **random})
    assert [finding.holds for finding in findings] == [True, None, None]


@pytest.mark.parametrize(
    ("selectivity", "enough", "holds"),
    [
        ({100: 0.28, 1000: 0.29, 10_000: 0.3}, 100, True),
        ({100: 0.2, 1000: 0.27, 10_000: 0.3}, 1000, True),  # exactly 90 % with exactly a tenth
        ({100: 0.2, 1000: 0.26, 3000: 0.28, 10_000: 0.3}, 3000, False),
        ({100: 0.1, 1000: 0.2, 10_000: 0.3}, 10_000, False),
        ({100: 0.4, 1000: 0.2, 10_000: 0.3}, 100, True),
    ],
)
def test_few_tokens_are_enough_up_to_a_tenth_of_all(selectivity: dict[int, float], enough: int, holds: bool) -> None:
    finding = efficiency_finding(selectivity)
    assert finding.holds is holds
    assert finding.measured.startswith(f"{enough} tokens ")


@pytest.mark.parametrize(
    ("selectivities", "holds"),
    [
        ([(1, 0, 2), (2, 1, 3), (5, 4, 6)], True),
        ([(5, 4, 6), (2, 1, 3), (1, 0, 2)], False),
        ([(1, 0, 2), (2, 1, 3)], None),
        ([(2, 1, 3), (1, 0, 2)], None),
        ([(1, 0, 2)], None),
        ([(2, 2, 2), (6, 6, 6), (5, 5, 5), (4, 4, 4), (3, 3, 3)], False),  # the order does not rise with size
    ],
)
def test_larger_models_separate_better_only_beyond_the_intervals(
    selectivities: list[tuple[float, float, float]], holds: bool | None
) -> None:
    rows = [
        {"model": f"m{size}", "parameters": size, "selectivity": value, "low": low, "high": high}
        for size, (value, low, high) in enumerate(selectivities, start=1)
    ]
    assert size_finding("a", pd.DataFrame(rows)).holds is holds


@pytest.mark.parametrize(
    ("pruning", "behind", "holds"), [(35, 4, True), (25, 2, True), (20, 1, False), (15, 1, False), (5, 0, False)]
)
def test_pruning_is_compared_with_half_of_the_other_methods(pruning: int, behind: int, holds: bool) -> None:
    others = {"fine-tuning": hits(10), "amnesiac": hits(20), "UNSIR": hits(30), "bad teacher": hits(30)}
    finding = method_finding(PAIR, {"selective pruning": hits(pruning), "random pruning": hits(0), **others})
    assert finding.holds is holds
    assert f"higher than {behind} of 4 methods" in finding.measured
    assert f"difference: {pruning - 30:.1f} [" in finding.measured


def toxicity_with(*scores: float) -> sp.Toxicity:
    scores *= 20
    return sp.Toxicity("It", ("text",) * len(scores), scores, {"classifier": "c", "accuracy": 0.75}, {})


@pytest.mark.parametrize(
    ("before", "after", "holds"),
    [((0.4,), (0.2,), True), ((0.2,), (0.4,), False), ((0.3,), (0.3,), None), ((0.1, 0.9), (0.05, 0.85), None)],
)
def test_continuations_are_less_toxic_only_beyond_the_intervals(
    before: tuple[float, ...], after: tuple[float, ...], holds: bool | None
) -> None:
    results = {"unpruned": toxicity_with(*before), "abs": toxicity_with(*after), "random": toxicity_with(0.0)}
    finding = toxicity_finding(results)
    assert finding.holds is holds
    assert f"{100 * results['abs'].mean:.1f} [" in finding.measured.partition("unpruned")[2]
    assert "held-out accuracy 0.750" in finding.measured


@pytest.mark.parametrize(("after", "holds"), [(90, True), (104.9, True), (105.1, False), (300, False)])
def test_wikitext_perplexity_may_rise_by_five_percent(after: float, holds: bool) -> None:
    assert wikitext_finding({"unpruned": 100, "abs": after, "random": 500}).holds is holds


@pytest.mark.parametrize(
    ("differs", "control", "holds"),
    [((1, 1), (0, 0), True), ((0, 0), (1, 1), False), ((1, 0), (0, 1), None), ((0, 0), (0, 0), None)],
)
def test_specialised_neurons_are_compared_with_two_samples_of_one_corpus(
    differs: tuple[int, int], control: tuple[int, int], holds: bool | None
) -> None:
    finding = specialised_finding("attention", np.resize(differs, 40) * 1.0, np.resize(control, 40) * 1.0)
    assert finding.holds is holds
    assert finding.measured.startswith(f"{np.mean(differs):.1%} of 40 neurons, {np.mean(control):.1%} between two")


def test_scores_differ_if_they_spread_over_more_than_a_factor_of_two() -> None:
    assert score_range_finding(pd.Series(np.linspace(1, 3, 101))).holds is True  # percentiles 1.1 and 2.9
    assert score_range_finding(pd.Series(np.linspace(1, 2, 101))).holds is False


def test_neurons_are_specialised_beyond_chance_if_any_passes_the_test(opt: Any) -> None:
    layout = sp.layout_of(opt)

    def finding(adjusted: float) -> Finding:
        ones = {group.name: torch.ones(group.width, dtype=torch.float64) for group in layout}
        changed = {name: values.clone() for name, values in ones.items()}
        changed["blocks.0.mlp.hook_post"][:12] = adjusted
        values = sp.NeuronValues(layout, ones, {})
        changed_values = sp.NeuronValues(layout, changed, {})
        return significance_finding(sp.SpecialisationTest(values, values, changed_values, 0.05, 1e-4))

    assert finding(0.04).holds is True
    neurons = layout.select("mlp").neurons
    assert finding(0.04).measured.startswith(f"{12 / neurons:.0%} of the feed-forward neurons and 0% of the attention")
    assert finding(0.06).holds is False


def test_the_page_shows_each_verdict_in_the_row_of_its_claim(tmp_path: Any) -> None:
    findings = [Finding("first", "1", True), Finding("second", "2", False), Finding("third", "3", None)]
    scale = {**SCALES["smoke"]._asdict(), "spare_sinks": False}
    versions = {"sp_lens": "0", "torch": "2"}
    Reproduction("figure-2", "m", 10, scale, {}, findings, [], [], 1.0, versions).save(tmp_path / "a/b/result.json")
    page = write_page(tmp_path, tmp_path / "page.md")
    for row in ("| first | 1 | holds |", "| second | 2 | **fails** |", "| third | 3 | open |"):
        assert row in page
    claim = EXPERIMENTS["figure-2"].claim
    assert f"| [figure-2](#figure-2) | {claim} | 1 holds, 1 **fails**, 1 open |" in page
