"""A short run of the simulation on the page Uncertainty: coverage of intervals and the false discovery rate."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import corpus_sizes, intervals
from sp_lens.typing import METRICS

FILE = Path(__file__).parents[2] / "benchmarks" / "uncertainty.py"


@pytest.fixture(scope="module")
def simulation() -> Any:
    spec = importlib.util.spec_from_file_location("uncertainty_benchmark", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["uncertainty_benchmark"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_true_importance_is_that_of_very_many_documents(simulation: Any) -> None:
    generator = np.random.default_rng(0)
    population = simulation.Population.random(generator, mlp=6, attn=6)
    for scale in (0, 0.4):
        stats = population.sample_stats(generator, 3000, scale=scale)
        for metric in METRICS:
            expected = population.importance(metric, scale=scale)
            np.testing.assert_allclose(simulation.flat(stats.importance(metric)), expected, rtol=0.1)


def test_intervals_have_the_right_coverage_over_documents_and_not_over_tokens(simulation: Any) -> None:
    rows = list(simulation.interval_coverage(40, corpora=30, seed=0, neurons=30))
    coverage = {(row["95 % interval of"], row["unit"]): row["coverage"] for row in rows}
    by_tokens = coverage.pop(("importance by abs", "single tokens"))
    assert len(coverage) == 8
    assert 0.93 <= np.mean(list(coverage.values())) <= 0.97
    assert all(0.91 <= fraction <= 0.98 for fraction in coverage.values())
    assert by_tokens < 0.65


def test_false_discoveries_are_rare_over_documents_and_not_over_tokens(simulation: Any) -> None:
    options = {"documents": (40, 40), "neurons": 40, "permutations": 2000, "seed": 0}
    documents, tokens = simulation.false_discoveries(tests=15, different=0.0, **options)
    assert documents["false discoveries"] <= 0.1  # at most one in 15 pairs of corpora
    assert tokens["false discoveries"] > 0.9
    documents, tokens = simulation.false_discoveries(tests=5, different=0.2, **options)
    assert documents["false discoveries"] <= 0.1
    assert documents["differences found"] > 0.7
    assert tokens["false discoveries"] > 0.3


@pytest.mark.parametrize("design", [(40, 160, None), (20, 100, 1)])
def test_corpora_of_different_sizes_keep_the_error_rate(design: tuple[int, int, int | None]) -> None:
    """With 20 folds of each corpus and without merging, std finds neurons in a quarter of such tests."""
    (row,) = corpus_sizes.discoveries(corpus_sizes.Design(*design), tests=20, seed=0, neurons=20, permutations=500)
    assert np.mean([row[metric] for metric in METRICS]) <= 0.1
    assert row["std"] <= 0.15


def test_the_tables_replace_those_on_the_page(simulation: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Before\n\n{simulation.BEGIN}\nthe old tables\n{simulation.END}\n\nAfter.\n")
    for module, name in (
        (simulation, "interval_coverage"), (simulation, "false_discoveries"), (corpus_sizes, "discoveries"),
        (intervals, "coverage"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, lambda *_, _name=name, **__: [{"simulated": _name, "share": 0.951}])
    monkeypatch.setattr(sys, "argv", ["uncertainty.py", "--corpora", "1", "--tests", "1", "--page", str(page)])
    simulation.main()
    text = page.read_text()
    assert text.startswith("# Before\n\n<!--")
    assert text.endswith("-->\n\nAfter.\n")
    assert "the old tables" not in text
    counts = {name: text.count(f"| {name} | 95.1 % |") for name in ("interval_coverage", "false_discoveries")}
    assert counts == {"interval_coverage": 4, "false_discoveries": 2}
    assert text.count("| discoveries | 95.1 % |") == len(corpus_sizes.DESIGNS)
    assert text.count("| coverage | 95.1 % |") == len(intervals.DOCUMENTS)
    assert simulation.BEGIN in simulation.PAGE.read_text()
