"""The simulation behind the page Uncertainty, short: intervals hold the truth, tests their rate, tokens neither."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sp_lens.typing import METRICS

FILE = Path(__file__).parent.parent / "benchmarks" / "uncertainty.py"


@pytest.fixture(scope="module")
def simulation() -> Any:
    spec = importlib.util.spec_from_file_location("uncertainty_benchmark", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["uncertainty_benchmark"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_called_the_truth_is_what_very_many_documents_have(simulation: Any) -> None:
    generator = np.random.default_rng(0)
    population = simulation.Population.random(generator, mlp=6, attn=6)
    stats = population.collected(generator, 2000)
    for metric in METRICS:
        np.testing.assert_allclose(simulation.flat(stats.importance(metric)), population.importance(metric), rtol=0.1)


def test_intervals_hold_the_truth_by_documents_and_not_by_tokens(simulation: Any) -> None:
    rows = list(simulation.covered(40, corpora=30, seed=0, neurons=30))
    held = {(row["95 % interval of"], row["unit"]): row["holds the truth"] for row in rows}
    by_tokens = held.pop(("importance by abs", "each token by itself"))
    assert len(held) == 8
    assert 0.93 <= np.mean(list(held.values())) <= 0.97
    assert all(0.91 <= share <= 0.98 for share in held.values())
    assert by_tokens < 0.65


def test_false_discoveries_are_few_by_documents_and_not_by_tokens(simulation: Any) -> None:
    options = {"documents": (40, 40), "neurons": 40, "permutations": 2000, "seed": 0}
    documents, tokens = simulation.discovered(tests=15, different=0.0, **options)
    assert documents["false discoveries"] <= 0.1  # of 15 corpora, one
    assert tokens["false discoveries"] > 0.9
    documents, tokens = simulation.discovered(tests=5, different=0.2, **options)
    assert documents["false discoveries"] <= 0.1
    assert documents["of those that differ, found"] > 0.7
    assert tokens["false discoveries"] > 0.3


def test_the_table_replaces_the_one_on_the_page(
    simulation: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Before\n\n{simulation.BEGIN}\nthe old table\n{simulation.END}\n\nAfter.\n")
    for name in ("covered", "discovered"):
        monkeypatch.setattr(simulation, name, lambda *_, _name=name, **__: [{"simulated": _name, "share": 0.951}])
    monkeypatch.setattr(sys, "argv", ["uncertainty.py", "--corpora", "1", "--tests", "1", "--page", str(page)])
    simulation.main()
    text = page.read_text()
    assert text.startswith("# Before\n\n<!--")
    assert text.endswith("-->\n\nAfter.\n")
    assert "the old table" not in text
    assert (text.count("| covered | 95.1 % |"), text.count("| discovered | 95.1 % |")) == (2, 3)
    assert simulation.BEGIN in simulation.PAGE.read_text()
