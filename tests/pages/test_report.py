"""The report on a run: its words and numbers, the neurons it shows, and that a browser opens it without errors."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from page_reader import read
from plot_factories import HOSTILE, LAYOUT, MLP, examples_of, scores_of
from plot_factories import scaled_stats as stats_of

import sp_lens as sp
from sp_lens.cli.__main__ import main
from sp_lens.neurons.layout import Layout, NeuronGroup

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LATER = "blocks.1.mlp.hook_post"


def run_of(
    forget: tuple[float, ...] = (0.5, 0.4, 0.2), retain: tuple[float, ...] = (0.5, 0.48, 0.3), source: str = "code"
) -> sp.PruneRun:
    """Return a run that prunes neuron 4 of layer 0 and 6 and 7 of layer 1 at step 1, and 3 of layer 0 at step 2."""
    layout = LAYOUT.select("mlp")
    records = [
        {
            "step": step,
            "share": 0.1 * step,
            "forget_top1": f,
            "retain_top1": r,
            "forget_loss": 3.0 + step,
            "retain_loss": 3.5,
            "forget_perplexity": 20.1 * (step + 1),
            "retain_perplexity": 33.1,
        }
        for step, (f, r) in enumerate(zip(forget, retain, strict=True))
    ]
    pruned_at = {group.name: torch.zeros(20, dtype=torch.int32) for group in layout}
    pruned_at[MLP.name][3:5] = torch.tensor([2, 1])
    pruned_at[LATER][6:8] = 1
    read_text = {"tokens": 20_000, "documents": 31, "split": "collect", "versions": {"torch": "2.13.0"}}
    settings = {
        "model": "tiny",
        "site": "mlp",
        "unit": "neuron",
        "metric": "abs",
        "fraction": 0.1,
        "corpora": {"forget": {"source": source} | read_text, "retain": {"source": "prose"}},
    }
    return sp.PruneRun(layout, pruned_at, records, settings)


def test_a_run_alone_makes_a_report(tmp_path: Path) -> None:
    page = sp.report(run_of(), tmp_path / "new" / "report.html")
    assert (tmp_path / "new" / "report.html").read_text("utf-8") == page.html
    reader = read(page)
    assert reader.headings == [
        (1, "Selective pruning: forget code, retain prose"),
        (2, "Summary"),
        (3, "Settings"),
        (2, "Effect of each step"),
        (2, "Pruned neurons by layer"),
    ]
    assert "MLP neurons of tiny, pruned in 2 steps." in reader.text
    assert len(page.html) < 5.2e6
    call = re.compile(r'Plotly\.newPlot\(\s*"')  # with an id: the messages of plotly.js contain the call without one
    assert len(call.findall(page.html)) == sum(bool(call.search(script)) for script in reader.scripts) == 3


def test_the_report_names_the_offline_text_of_a_corpus(tmp_path: Path) -> None:
    run = run_of(source="toxic")
    run.settings["corpora"]["forget"] |= {"offline": True, "origin": "tweets labelled hate"}
    reader = read(sp.report(run, tmp_path / "r.html"))
    assert reader.headings[0] == (1, "Selective pruning: forget toxic (offline), retain prose")
    assert reader.rows()["forget"] == [
        "toxic (offline), tweets labelled hate, 20,000 tokens, 31 documents, split 'collect'"
    ]


def test_the_summary_in_words_and_numbers(tmp_path: Path) -> None:
    reader = read(sp.report(run_of(), tmp_path / "r.html"))
    assert (
        "The best step is step 2 of 2, after which 20.0% of the neurons are pruned. Top-1 accuracy on held-out data of "
        "code changes from 50.0% to 20.0% (30.0 points lower), and on prose from 50.0% to 30.0% (20.0 points lower). "
        "The difference between the two drops, the selectivity of the run, is 10.0 points."
    ) in reader.text
    rows = reader.rows()
    assert rows["top-1 accuracy, code (forget)"] == ["50.0%", "20.0%"]
    assert rows["loss (nats per prediction), prose (retain)"] == ["3.500", "3.500"]
    assert rows["perplexity, code (forget)"] == ["20.1", "60.3"]
    assert rows["model"] == ["tiny"]
    assert rows["metric"] == ["mean |z| (activation)"]
    assert rows["forget"] == ["code, 20,000 tokens, 31 documents, split 'collect'"]
    assert rows["versions"] == ["torch 2.13.0"]
    assert rows["1"] == ["10.0%", "40.0%", "48.0%", "40.2", "33.1"]  # row of step 1 in the table of all steps


def test_the_best_step_is_an_early_one_or_none(tmp_path: Path) -> None:
    early = read(sp.report(run_of(retain=(0.5, 0.48, 0.1)), tmp_path / "r.html"))
    assert early.rows()["top-1 accuracy, prose (retain)"] == ["50.0%", "48.0%", "10.0%"]
    assert "The best step is step 1 of 2" in early.text
    none = read(sp.report(run_of((0.5, 0.5, 0.5), (0.5, 0.4, 0.3)), tmp_path / "r.html"))
    assert "In no step did accuracy on code drop more than accuracy on prose" in none.text


def neurons_of(page: sp.Page) -> list[str]:
    return [title for level, title in read(page).headings if level == 3 and title.startswith("Neuron")]


def test_neuron_pages_show_the_highest_scores(tmp_path: Path) -> None:
    scores = scores_of({MLP.name: [1, 7, 3], LATER: [0, 7], "blocks.0.attn.hook_z": [100]})
    page = sp.report(run_of(), tmp_path / "r.html", scores=scores, neuron_pages=3)
    # This run could not prune the attention neuron. Of equal scores the earlier layer comes first.
    assert neurons_of(page) == ["Neuron 1 of layer 0, MLP", "Neuron 1 of layer 1, MLP", "Neuron 2 of layer 0, MLP"]
    reader = read(page)
    assert reader.rows()["rank"] == [f"{rank} of 40 MLP neurons" for rank in (1, 2, 3)]
    captions = [attributes["aria-label"] for _, attributes in reader.attributes if attributes.get("role") == "img"]
    assert [caption.split(",")[0] for caption in captions if caption and caption.startswith("Score")] == [
        "Scores of all attention pre-out neurons",
        "Scores of all MLP neurons",
        "Score of each attention head",
    ]
    assert neurons_of(sp.report(run_of(), tmp_path / "r.html", scores=scores, neuron_pages=0)) == []


def test_without_scores_neuron_pages_show_the_neurons_pruned_first(tmp_path: Path) -> None:
    page = sp.report(run_of(), tmp_path / "r.html", stats={"code": stats_of(1, histograms=False)}, neuron_pages=9)
    assert neurons_of(page) == [
        "Neuron 4 of layer 0, MLP",
        "Neuron 6 of layer 1, MLP",
        "Neuron 7 of layer 1, MLP",
        "Neuron 3 of layer 0, MLP",
    ]
    assert read(page).rows()["pruned"] == ["at step 1 of 2"] * 3 + ["at step 2 of 2"]


def test_densities_show_the_layer_with_most_pruned_neurons(tmp_path: Path) -> None:
    run = run_of()
    run.pruned_at[LATER][9] = 2
    stats = {"code": stats_of(1), "prose": stats_of(0.5)}
    page = sp.report(run, tmp_path / "r.html", stats=stats, examples={"code": examples_of()})
    assert "Activation densities of MLP neurons of layer 1 on code, prose" in read(page).text
    assert "Activation densities of attention pre-out neurons of layer 0" in read(page).text
    assert "z = -2 · book, token 9" in read(page).text
    alone = sp.report(run, tmp_path / "r.html", stats={"code": stats_of(1), "prose": stats_of(1, histograms=False)})
    assert (2, "Activation densities") not in read(alone).headings


def test_hostile_names_are_shown_as_text(tmp_path: Path) -> None:
    page = sp.report(run_of(source=HOSTILE), tmp_path / "r.html", stats={HOSTILE: stats_of(1)})
    reader = read(page)
    assert HOSTILE in reader.headings[0][1]
    assert not any("<script" in script for script in reader.scripts[2:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stats": stats_of(1)}, "stats has type ActivationStats: expected a mapping"),
        ({"examples": examples_of()}, "examples has type TopExamples: expected a mapping"),
        ({"stats": {"code": stats_of(1, model="other")}}, "belongs to another model than the run"),
        ({"scores": scores_of(layout=Layout((NeuronGroup("mlp", 0, 7),)))}, "belongs to another model than the run"),
        ({"neuron_pages": -1}, "neuron_pages=-1: expected"),
    ],
)
def test_invalid_arguments_raise(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(sp.SpLensError, match=message):
        sp.report(run_of(), tmp_path / "r.html", **arguments)
    assert not (tmp_path / "r.html").exists()


def test_a_report_on_something_other_than_a_run_raises() -> None:
    with pytest.raises(sp.SpLensError, match="expected a PruneRun"):
        sp.report(3, "r.html")  # type: ignore[arg-type]


def test_the_command_writes_the_same_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_of().save(tmp_path / "run" / "step-0002.safetensors")
    stats_of(1).save(tmp_path / "code.safetensors")
    command = ["report", str(tmp_path / "run"), "--out", str(tmp_path / "r.html"), "--neuron-pages", "2"]
    assert main([*command, "--stats", f"Code={tmp_path / 'code.safetensors'}"]) == 0
    assert "wrote" in capsys.readouterr().out
    text = (tmp_path / "r.html").read_text("utf-8")
    assert text == sp.report(run_of(), tmp_path / "again.html", stats={"Code": stats_of(1)}, neuron_pages=2).html
    with pytest.raises(SystemExit):
        main([*command, "--stats", "code.safetensors"])
    assert "'code.safetensors' does not have the form LABEL=FILE" in capsys.readouterr().err


def test_a_browser_opens_the_report_without_an_error(tmp_path: Path) -> None:
    """Without network: an attempt to load something would be an error on the console."""
    if CHROMIUM is None:
        pytest.skip("needs a Chromium to open the page in")
    stats = {"code": stats_of(1), "prose": stats_of(0.5)}
    examples = {"code": examples_of((HOSTILE, "a", "b"))}
    file = tmp_path / "report.html"
    sp.report(run_of(), file, stats=stats, scores=scores_of({MLP.name: [1, 2, 3, 4]}), examples=examples)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom"]
    logs = [
        "--virtual-time-budget=20000",
        "--enable-logging=stderr",
        "--v=0",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    opened = subprocess.run(
        [CHROMIUM, *flags, *logs, file.as_uri()], capture_output=True, text=True, timeout=300, check=True
    )
    console = [line for line in opened.stderr.splitlines() if "CONSOLE" in line]
    assert console == []
    svgs = re.findall(r'class="main-svg"', opened.stdout)  # one or more for each figure that plotly.js has drawn
    assert len(svgs) >= file.read_text("utf-8").count("Plotly.newPlot(") > 5
