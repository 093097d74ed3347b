"""The command line: each command on the bundled model, exit codes, error messages and help."""

import json
from pathlib import Path

import pandas as pd
import pytest
import transformers

import sp_lens as sp
from sp_lens.cli.__main__ import main

TEXT = ["--offline", "--tokens", "2000"]


def test_the_command_line_prunes_plots_exports_and_evaluates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, mask = str(tmp_path / "run"), str(tmp_path / "run" / "mask.safetensors")
    settings = ["--forget", "code", "--retain", "prose", "--fraction", "0.1", "--steps", "2"]
    assert main(["prune", "--model", "demo", *TEXT, *settings, "--out", run]) == 0
    assert "selectivity" in capsys.readouterr().out
    assert list(pd.read_csv(tmp_path / "run" / "history.csv")["step"]) == [0, 1, 2]

    for figure in ("tradeoff", "perplexity", "selectivity", "pruned-by-layer"):
        assert main(["plot", figure, run, "--out", str(tmp_path / f"{figure}.html")]) == 0
    assert "drop in accuracy on forget" in (tmp_path / "tradeoff.html").read_text()
    assert "perplexity on forget" in (tmp_path / "perplexity.html").read_text()

    assert main(["export", "--model", "demo", "--mask", mask, "--out", str(tmp_path / "pruned")]) == 0
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")

    capsys.readouterr()
    evaluate = ["evaluate", "--model", "demo", "--corpus", "code", *TEXT]
    assert main(evaluate) == 0
    full = json.loads(capsys.readouterr().out)
    assert main([*evaluate, "--mask", mask, "--out", str(tmp_path / "evaluation.json")]) == 0
    pruned = json.loads(capsys.readouterr().out)
    assert pruned["top1"] < full["top1"]
    assert sp.Evaluation.load(tmp_path / "evaluation.json").top1 == pruned["top1"]

    assert main([*evaluate, "--device-map", "auto", "--dtype", "float16"]) == 0
    half = json.loads(capsys.readouterr().out)["loss"]
    assert half != full["loss"]
    assert abs(half - full["loss"]) < 1e-2


def test_the_command_line_collects_and_plots(tmp_path: Path) -> None:
    files = [str(tmp_path / f"{name}.safetensors") for name in ("prose", "code")]
    for name, file in zip(("prose", "code"), files, strict=True):
        histograms = ["--bins", "50", "--range", "-1", "1"]
        assert main(["collect", "--model", "demo", "--corpus", name, *TEXT, *histograms, "--out", file]) == 0
    assert 1900 < sp.ActivationStats.load(files[0]).count < 2000  # the first token of each row is not counted
    figures = {}
    for command in (
        "density --layer 1 --neurons 0 9",
        "neuron-density --layer 1 --neuron 3",
        "specialisation-by-layer",
        "cross-importance --site attn --metric std",
        "score-map",
        "head-map --metric rms",
        "importance-scatter --site attn",
        "metric-agreement",
    ):
        name, *options = command.split()
        out = tmp_path / "folder" / f"{name}.html"
        assert main(["plot", name, *files, *options, "--out", str(out)]) == 0
        figures[name] = out.read_text("utf-8")
    assert "10 of the 192 neurons" in figures["density"]
    assert "neuron 3" in figures["neuron-density"]
    assert all(name in figures["cross-importance"] for name in ("prose", "code", "attention pre-out"))
    assert "rms" in figures["head-map"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["evaluate", "--model", "demo", "--corpus", "kode"], "unknown corpus"),
        (["evaluate", "--model", "no/such", "--corpus", "code"], "cannot load the model"),
        (["evaluate", "--model", "demo", "--device", "warp", "--corpus", "code"], "there is no device 'warp' here"),
        (["collect", "--model", "demo", "--device-map", "all", "--corpus", "code", "--out", "x"], "unknown device_map"),
        (
            ["export", "--model", "demo", "--device", "cpu", "--device-map", "auto", "--mask", "x", "--out", "y"],
            "give only one of them",
        ),
        (["plot", "tradeoff", "nowhere", "--out", "x.html"], "there is no file nowhere"),
        (
            ["export", "--model", "demo", "--mask", "none.safetensors", "--out", "x"],
            "there is no file none.safetensors",
        ),
    ],
)
def test_invalid_input_exits_with_code_2_and_one_line(
    command: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("sp-lens: error: ")
    assert message in error


@pytest.mark.parametrize(
    "command",
    ["demo", "collect", "evaluate", "prune", "report", "export", "plot tradeoff", "plot density", "plot head-map"],
)
def test_help_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([*command.split(), "--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert f"example: sp-lens {command}" in " ".join(text.split())
