"""Every experiment of the paper at the scale "smoke": its results, its files, and the runs that experiments share."""

import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import sp_lens as sp
from sp_lens.cli.__main__ import main
from sp_lens.experiments.registry import EXPERIMENTS, SCALES
from sp_lens.experiments.reproduce import reproduce
from sp_lens.experiments.result import Reproduction
from sp_lens.experiments.results_page import write_page

NEEDS_DATA = {"vision", "toxicity", "other-methods"}
needs_data = pytest.mark.skipif("SP_LENS_DATA" not in os.environ, reason="reads the folder that SP_LENS_DATA names")
SMOKE: dict[str, Any] = {"offline": True, "scale": "smoke", "progress": False}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that all experiments of this module write to, so that they share their runs."""
    return tmp_path_factory.mktemp("paper")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[needs_data] if name in NEEDS_DATA else []) for name in EXPERIMENTS]
)
def test_every_experiment_writes_its_result_figures_and_data(name: str, out: Path) -> None:
    (result,) = reproduce(name, out=out, **SMOKE)
    assert result.findings
    assert result.scale["offline"]
    folder = next((out / name).iterdir())
    for file in result.files:
        assert (folder / file).stat().st_size
    data = [pd.read_csv(folder / file) for file in result.files if file.endswith(".csv")]
    assert data
    assert not any(frame.empty for frame in data)
    saved = Reproduction.load(folder / "result.json")
    assert json.dumps(saved.findings, default=vars) == json.dumps(result.findings, default=vars)
    assert f"### {name}: {result.model}" in (out / "reproduction.md").read_text()


def test_the_selectivity_in_the_table_is_that_of_the_run(out: Path) -> None:
    (result,) = reproduce("figure-3", out=out, **SMOKE)
    run = sp.PruneRun.load(next((out / "runs" / "demo").glob("*/code-pile_codeless/abs")))
    row = next(row for row in result.table if row["run"] == "abs" and row["pair"].startswith("code"))
    assert row["selectivity (points)"].startswith(f"{100 * run.selectivity:.1f} ")
    assert row["documents"] == " + ".join(str(len(run.documents[0][side].counts)) for side in ("forget", "retain"))


def test_more_neurons_are_specialised_between_code_and_prose_than_within_code(out: Path) -> None:
    (result,) = reproduce("figure-5", out=out, **SMOKE)
    for row in result.table:
        assert float(row["code / prose"].rstrip("%")) > float(row["code / more code"].rstrip("%"))
    assert [finding.holds for finding in result.findings] == [True, True]


def test_finished_runs_are_shared_and_not_repeated(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reproduce("figure-2", out=out, **SMOKE)

    def collect(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished run was repeated")

    monkeypatch.setattr("sp_lens.pruning.algorithm.collect", collect)
    for name in ("figure-2", "figure-3"):
        reproduce(name, out=out, **SMOKE)


def test_model_size_compares_all_models_in_one_result(out: Path, demo: Any) -> None:
    (result,) = reproduce("model-size", ["demo", "demo-masked"], out=out, **SMOKE)
    assert result.model == "demo + demo-masked"
    assert {row["model"] for row in result.table} == {"demo", "demo-masked"}
    assert result.parameters == max(row["parameters"] for row in result.table)
    assert demo.original_model.num_parameters() in {row["parameters"] for row in result.table}


def test_a_single_model_is_given_without_a_list(out: Path, demo: Any) -> None:
    for model in ("demo", demo):
        (result,) = reproduce("figure-1", model, out=out, **SMOKE)
        assert result.model == "demo"


def test_share_and_spare_sinks_change_the_runs_and_their_folder(
    out: Path, demo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tenth of the neurons with the largest mean |z| replaces the attention sinks in this test."""
    monkeypatch.setattr(sp.ActivationStats, "sinks", lambda stats: stats.importance("abs").top(0.1, site="mlp"))
    (result,) = reproduce("figure-3", demo, share=0.1, spare_sinks=True, out=out, **SMOKE)
    assert result.scale["spare_sinks"]
    (folder,) = (out / "runs" / "demo").glob("*-2-steps-of-5-percent-sinks-spared-offline")
    run = sp.PruneRun.load(folder / "code-pile_codeless" / "abs")
    assert run.mask.count() == 2 * round(0.05 * run.mask.layout.select("mlp").neurons)
    sinks = sp.NeuronMask.load(folder / "code-pile_codeless" / "sinks" / "mask.safetensors")
    assert sinks.count() == round(0.1 * sinks.layout.select("mlp").neurons)
    assert (run.mask | sinks).count() == run.mask.count() + sinks.count()  # disjoint
    assert "2 steps to 10% of the neurons, attention sinks protected" in (out / "reproduction.md").read_text()


def test_invalid_arguments_are_errors_before_any_run(tmp_path: Path) -> None:
    for name, models, options, match in (
        ("figure-6", ["demo"], {}, "figure-6"),
        ("figure-2", ["demo"], {"scale": "huge"}, "huge"),
        ("vision", ["demo"], {}, "needs an image classifier"),
        ("figure-2", ["demo-vision"], {}, "needs a language model"),
        ("toxicity", ["demo-masked"], {}, "causal"),
        ("figure-2", ["demo"], {"tokens": -1}, "tokens=-1"),
        ("figure-2", ["demo"], {"share": 1.5}, "share=1.5"),
    ):
        with pytest.raises(sp.SpLensError, match=match):
            reproduce(name, models, offline=True, out=tmp_path, **options)  # pyright: ignore[reportArgumentType]
    with pytest.raises(sp.SpLensError, match="there is no result"):
        write_page(tmp_path, tmp_path / "page.md")


def test_no_scale_prunes_more_neurons_than_there_are() -> None:
    assert all(0 < scale.share <= 1 and scale.steps > 0 for scale in SCALES.values())


def test_the_command_lists_and_runs_experiments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "--list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in EXPERIMENTS)
    page = tmp_path / "page.md"
    options = ["--model", "demo", "--offline", "--scale", "smoke", "--out", str(tmp_path / "out")]
    assert main(["reproduce", "figure-1", *options, "--page", str(page)]) == 0
    assert "holds" in capsys.readouterr().out
    assert "figure-1: demo" in page.read_text()
    assert main(["reproduce"]) == 2
    assert "--list" in capsys.readouterr().err
    assert main(["reproduce", "all", "--model", "demo"]) == 2
