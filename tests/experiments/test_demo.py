"""The complete demo, run once through the command line, and the files that it writes."""

import contextlib
import io
import re
from pathlib import Path

import pandas as pd
import pytest
import transformers

from sp_lens.cli.__main__ import main

pytestmark = pytest.mark.demo


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The output folder of the demo and what the command printed."""
    out = tmp_path_factory.mktemp("demo") / "demo"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(["demo", "--out", str(out)]) == 0
    return out, printed.getvalue()


def test_the_demo_prints_its_summary_and_writes_all_files(demo_run: tuple[Path, str]) -> None:
    out, printed = demo_run
    assert "forgotten: code" in printed
    assert (out / "summary.txt").read_text("utf-8").strip() in printed
    files = {"tradeoff.html", "density.html", "report.html", "history.csv", "mask.safetensors", "pruned-model"}
    assert files <= {path.name for path in out.iterdir()}
    assert all(file.rstrip("/") in printed for file in files)


def test_the_report_of_the_demo_shows_four_neurons(demo_run: tuple[Path, str]) -> None:
    report = (demo_run[0] / "report.html").read_text("utf-8")
    assert report.count("<td>1 of 3,072 MLP neurons</td>") == 1
    assert len(re.findall(r"<h3 [^>]*>Neuron \d+ of layer", report)) == 4


def test_the_demo_forgets_code_and_keeps_prose(demo_run: tuple[Path, str]) -> None:
    history = pd.read_csv(demo_run[0] / "history.csv")
    assert len(history) == 9
    best = history.loc[(history["forget_drop"] - history["retain_drop"]).idxmax()]
    assert best["forget_drop"] > 3 * best["retain_drop"]


def test_transformers_loads_the_model_that_the_demo_exports(demo_run: tuple[Path, str]) -> None:
    transformers.AutoModelForCausalLM.from_pretrained(demo_run[0] / "pruned-model")


def test_the_demo_replaces_no_folder_with_other_content(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert (tmp_path / "thesis.txt").exists()
