"""Every experiment of the paper, small; what is written; what is not done twice; the page."""

import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import sp_lens as sp
from sp_lens.cli.__main__ import main
from sp_lens.evaluation.bootstrap import Interval
from sp_lens.experiments.registry import EXPERIMENTS, SCALES
from sp_lens.experiments.reproduce import reproduce
from sp_lens.experiments.result import Found, Reproduction, compared
from sp_lens.experiments.results_page import write_page
from sp_lens.experiments.scaling import compare_sizes

NEEDS_DATA = {"vision", "toxicity", "other-methods"}
needs_data = pytest.mark.skipif("SP_LENS_DATA" not in os.environ, reason="reads the folder that SP_LENS_DATA names")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all experiments write, so that they share their runs."""
    return tmp_path_factory.mktemp("paper")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[needs_data] if name in NEEDS_DATA else []) for name in EXPERIMENTS]
)
def test_every_experiment_runs_and_writes_what_it_found(name: str, out: Path) -> None:
    (result,) = reproduce(name, offline=True, scale="smoke", out=out, progress=False)
    assert result.findings
    assert result.scale["offline"]
    folder = next((out / name).iterdir())
    for file in result.files:
        assert (folder / file).stat().st_size
    data = [pd.read_csv(folder / file) for file in result.files if file.endswith(".csv")]
    assert data
    assert not any(frame.empty for frame in data)
    again = Reproduction.load(folder / "result.json")
    assert json.dumps(again.findings, default=vars) == json.dumps(result.findings, default=vars)
    assert f"### {name}: {result.model}" in (out / "reproduction.md").read_text()


def test_a_table_has_what_the_runs_have(out: Path) -> None:
    """Selectivity in the table against the history that `prune` wrote."""
    (result,) = reproduce("figure-3", offline=True, scale="smoke", out=out, progress=False)
    history = pd.read_csv(next((out / "figure-3").glob("*/figure-3-code-pile_codeless.csv"))).query("run == 'abs'")
    drop = {side: history[f"{side}_top1"].iloc[0] - history[f"{side}_top1"] for side in ("forget", "retain")}
    best = (drop["forget"] - drop["retain"]).max()
    row = next(row for row in result.table if row["run"] == "abs" and row["pair"].startswith("code"))
    assert row["selectivity (points)"].startswith(f"{100 * best:.1f} ")


def test_runs_are_shared_and_not_done_twice(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reproduce("figure-2", offline=True, scale="smoke", out=out, progress=False)

    def collected(*_: Any, **__: Any) -> None:
        raise AssertionError("collected again")

    monkeypatch.setattr("sp_lens.pruning.algorithm.collect", collected)
    for name in ("figure-2", "figure-3"):
        reproduce(name, offline=True, scale="smoke", out=out, progress=False)


def test_sizes_are_set_side_by_side(out: Path, demo: Any) -> None:
    (result,) = reproduce("model-size", ["demo", "demo-masked"], offline=True, scale="smoke", out=out, progress=False)
    assert result.model == "demo + demo-masked"
    assert {row["model"] for row in result.table} == {"demo", "demo-masked"}
    assert result.parameters == max(row["parameters"] for row in result.table)
    assert demo.original_model.num_parameters() in {row["parameters"] for row in result.table}


def test_larger_models_separate_better_only_beyond_the_intervals() -> None:
    def verdict(*rows: tuple[float, float, float]) -> bool | None:
        names = ("selectivity", "low", "high")
        table = [
            {"pair": "a", "model": f"m{size}", "parameters": size, **dict(zip(names, row, strict=True))}
            for size, row in enumerate(rows, start=1)
        ]
        return compare_sizes([Found(table=[row]) for row in table]).findings[0].holds

    assert verdict((1, 0, 2), (2, 1, 3), (5, 4, 6)) is True
    assert verdict((5, 4, 6), (2, 1, 3), (1, 0, 2)) is False
    assert verdict((1, 0, 2), (2, 1, 3)) is None
    assert verdict((1, 0, 2)) is None


def test_one_model_needs_no_list(out: Path, demo: Any) -> None:
    for model in ("demo", demo):
        (result,) = reproduce("figure-1", model, offline=True, scale="smoke", out=out, progress=False)
        assert result.model == "demo"


def test_a_smaller_share_is_pruned_and_sinks_are_spared(out: Path, demo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is largest is taken for a sink; the steps are smaller, and the folder is another one."""
    monkeypatch.setattr(sp.ActivationStats, "sinks", lambda stats: stats.importance("abs").top(0.1, site="mlp"))
    options: dict[str, Any] = {"offline": True, "scale": "smoke", "out": out, "progress": False}
    (result,) = reproduce("figure-3", demo, share=0.1, spare_sinks=True, **options)
    assert result.scale["spare_sinks"]
    (folder,) = (out / "runs" / "demo").glob("*-2-steps-of-5-percent-sinks-spared-offline")
    run = sp.PruneRun.load(folder / "code-pile_codeless" / "abs")
    assert run.mask.count() == 2 * round(0.05 * run.mask.layout.select("mlp").neurons)
    sinks = sp.NeuronMask.load(folder / "code-pile_codeless" / "sinks" / "mask.safetensors")
    assert sinks.count() == round(0.1 * sinks.layout.select("mlp").neurons)
    assert (run.mask | sinks).count() == run.mask.count() + sinks.count()  # no neuron is both
    assert "2 steps to 10% of the neurons, sinks spared" in (out / "reproduction.md").read_text()


def test_what_does_not_fit_is_refused_before_any_run(tmp_path: Path) -> None:
    for name, models, options, match in (
        ("figure-6", ["demo"], {}, "figure-6"),
        ("figure-2", ["demo"], {"scale": "huge"}, "huge"),
        ("vision", ["demo"], {}, "classifier of images"),
        ("figure-2", ["demo-vision"], {}, "language model"),
        ("toxicity", ["demo-masked"], {}, "causal"),
        ("figure-2", ["demo"], {"tokens": -1}, "tokens=-1"),
        ("figure-2", ["demo"], {"share": 1.5}, "share=1.5"),
    ):
        with pytest.raises(sp.SpLensError, match=match):
            reproduce(name, models, offline=True, out=tmp_path, **options)  # pyright: ignore[reportArgumentType]
    with pytest.raises(sp.SpLensError, match="no result"):
        write_page(tmp_path, tmp_path / "page.md")


def test_a_claim_holds_fails_or_is_open_by_its_interval() -> None:
    verdicts = [compared("it does", Interval(*ends), "x").holds for ends in ((2, 1, 3), (-2, -3, -1), (1, -1, 3))]
    assert verdicts == [True, False, None]
    assert compared("it does", Interval(1, float("nan"), float("nan")), "x").holds is None


def test_scales_take_no_more_neurons_than_there_are() -> None:
    assert all(0 < scale.share <= 1 and scale.steps > 0 for scale in SCALES.values())


def test_the_command_lists_runs_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "--list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in EXPERIMENTS)
    page = tmp_path / "page.md"
    command = [
        "reproduce",
        "figure-1",
        "--model",
        "demo",
        "--offline",
        "--scale",
        "smoke",
        "--out",
        str(tmp_path / "o"),
    ]
    assert main([*command, "--page", str(page)]) == 0
    assert "holds" in capsys.readouterr().out
    assert "figure-1: demo" in page.read_text()
    assert main(["reproduce"]) == 2
    assert "--list" in capsys.readouterr().err
    assert main(["reproduce", "all", "--model", "demo"]) == 2
