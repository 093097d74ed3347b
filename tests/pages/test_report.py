"""The report of a run: what it says in words and numbers, which neurons it shows, and that a browser can open it."""

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
    """A run over the MLP neurons: 3 and 4 of the first layer are pruned at step 2 and 1, 6 and 7 of the next at 1."""
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


def test_a_run_alone_makes_a_sensible_report(tmp_path: Path) -> None:
    page = sp.report(run_of(), tmp_path / "new" / "report.html")
    assert (tmp_path / "new" / "report.html").read_text("utf-8") == page.html
    reader = read(page)
    assert reader.headings == [
        (1, "Selective pruning: forget code, keep prose"),
        (2, "Summary"),
        (3, "Settings"),
        (2, "What it cost, step by step"),
        (2, "Where the pruned neurons are"),
    ]
    assert "MLP neurons of tiny, 2 steps of pruning." in reader.text
    assert len(page.html) < 5.2e6
    drawn = re.compile(r'Plotly\.newPlot\(\s*"')  # with the id of a place; plotly 6's own messages have it without
    assert len(drawn.findall(page.html)) == sum(map(bool, map(drawn.search, reader.scripts))) == 3


def test_it_says_what_was_read_in_the_place_of_a_corpus(tmp_path: Path) -> None:
    run = run_of(source="toxic")
    run.settings["corpora"]["forget"] |= {"offline": True, "origin": "tweets labelled hate"}
    reader = read(sp.report(run, tmp_path / "r.html"))
    assert reader.headings[0] == (1, "Selective pruning: forget toxic (offline), keep prose")
    assert reader.rows()["forget"] == [
        "toxic (offline), tweets labelled hate, 20,000 tokens, 31 documents, split 'collect'"
    ]


def test_it_says_in_words_and_numbers_what_was_forgotten_and_kept(tmp_path: Path) -> None:
    reader = read(sp.report(run_of(), tmp_path / "r.html"))
    assert (
        "At its best step, 2 of 2, the run had pruned 20.0% of the neurons. On held-out data the model then gave "
        "20.0% of the right answers on code, 50.0% before: 30.0 points lost. On prose it was 30.0%, 50.0% before: "
        "20.0 points lost. The difference, the run's selectivity, is 10.0 points."
    ) in reader.text
    rows = reader.rows()
    assert rows["top-1 accuracy, code (forget)"] == ["50.0%", "20.0%"]
    assert rows["loss (nats per prediction), prose (retain)"] == ["3.500", "3.500"]
    assert rows["perplexity, code (forget)"] == ["20.1", "60.3"]
    assert rows["model"] == ["tiny"]
    assert rows["metric"] == ["mean |z| (activation)"]
    assert rows["forget"] == ["code, 20,000 tokens, 31 documents, split 'collect'"]
    assert rows["made with"] == ["torch 2.13.0"]
    assert rows["1"] == ["10.0%", "40.0%", "48.0%", "40.2", "33.1"]  # the step, in the table of them


def test_the_best_step_may_come_before_the_last_or_be_none(tmp_path: Path) -> None:
    early = read(sp.report(run_of(retain=(0.5, 0.48, 0.1)), tmp_path / "r.html"))
    assert early.rows()["top-1 accuracy, prose (retain)"] == ["50.0%", "48.0%", "10.0%"]
    assert "At its best step, 1 of 2" in early.text
    none = read(sp.report(run_of((0.5, 0.5, 0.5), (0.5, 0.4, 0.3)), tmp_path / "r.html"))
    assert "No step took more from code than from prose" in none.text


def neurons_of(page: sp.Page) -> list[str]:
    return [title for level, title in read(page).headings if level == 3 and title.startswith("Neuron")]


def test_the_cards_are_of_the_highest_scores(tmp_path: Path) -> None:
    scores = scores_of({MLP.name: [1, 7, 3], LATER: [0, 7], "blocks.0.attn.hook_z": [100]})
    page = sp.report(run_of(), tmp_path / "r.html", scores=scores, cards=3)
    # The attention neuron could not be pruned in this run; of equal ones the earlier layer comes first.
    assert neurons_of(page) == ["Neuron 1 of layer 0, MLP", "Neuron 1 of layer 1, MLP", "Neuron 2 of layer 0, MLP"]
    reader = read(page)
    assert reader.rows()["rank"] == ["1 of all 40 MLP neurons", "2 of all 40 MLP neurons", "3 of all 40 MLP neurons"]
    captions = [given["aria-label"] for _, given in reader.attributes if given.get("role") == "img"]
    assert [caption for caption in captions if caption and caption.startswith("The score of every")] == [
        "The score of every attention pre-out neuron, each layer sorted: above 1 it matters more to forget.",
        "The score of every MLP neuron, each layer sorted: above 1 it matters more to forget.",
        "The score of every attention head: the mean of its neurons' scores.",
    ]
    assert neurons_of(sp.report(run_of(), tmp_path / "r.html", scores=scores, cards=0)) == []


def test_without_scores_they_are_of_the_first_to_be_pruned(tmp_path: Path) -> None:
    page = sp.report(run_of(), tmp_path / "r.html", stats={"code": stats_of(1, histograms=False)}, cards=9)
    assert neurons_of(page) == [
        "Neuron 4 of layer 0, MLP",
        "Neuron 6 of layer 1, MLP",
        "Neuron 7 of layer 1, MLP",
        "Neuron 3 of layer 0, MLP",
    ]
    assert read(page).rows()["pruned"] == ["at step 1 of 2"] * 3 + ["at step 2 of 2"]


def test_densities_of_the_layer_that_lost_most(tmp_path: Path) -> None:
    run = run_of()
    run.pruned_at[LATER][9] = 2
    stats = {"code": stats_of(1), "prose": stats_of(0.5)}
    page = sp.report(run, tmp_path / "r.html", stats=stats, examples={"code": examples_of()})
    assert "Densities of the activations of MLP neurons of layer 1 on code, prose" in read(page).text
    assert "Densities of the activations of attention pre-out neurons of layer 0" in read(page).text
    assert "z = -2 · book, token 9" in read(page).text  # on the card of neuron 3
    alone = sp.report(run, tmp_path / "r.html", stats={"code": stats_of(1), "prose": stats_of(1, histograms=False)})
    assert "Densities of the activations" not in read(alone).text


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    page = sp.report(run_of(source=HOSTILE), tmp_path / "r.html", stats={HOSTILE: stats_of(1)})
    reader = read(page)
    assert HOSTILE in reader.headings[0][1]
    assert not any("<script" in script for script in reader.scripts[2:])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"stats": stats_of(1)}, "stats is a ActivationStats: say whose"),
        ({"examples": examples_of()}, "examples is a TopExamples: say whose"),
        ({"stats": {"code": stats_of(1, model="other")}}, "is of another model than the run"),
        ({"scores": scores_of(layout=Layout((NeuronGroup("mlp", 0, 7),)))}, "is of another model than the run"),
        ({"cards": -1}, "cards=-1: expected"),
    ],
)
def test_bad_input(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(sp.SpLensError, match=message):
        sp.report(run_of(), tmp_path / "r.html", **given)
    assert not (tmp_path / "r.html").exists()


def test_no_run() -> None:
    with pytest.raises(sp.SpLensError, match="expected a PruneRun"):
        sp.report(3, "r.html")  # type: ignore[arg-type]


def test_from_the_shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_of().save(tmp_path / "run" / "step-0002.safetensors")
    stats_of(1).save(tmp_path / "code.safetensors")
    command = ["report", str(tmp_path / "run"), "--out", str(tmp_path / "r.html")]
    assert main([*command, "--stats", f"Code={tmp_path / 'code.safetensors'}"]) == 0
    assert "wrote" in capsys.readouterr().out
    text = (tmp_path / "r.html").read_text("utf-8")
    assert text == sp.report(run_of(), tmp_path / "again.html", stats={"Code": stats_of(1)}).html
    with pytest.raises(SystemExit):
        main([*command, "--stats", "code.safetensors"])
    assert "'code.safetensors' is not LABEL=FILE" in capsys.readouterr().err


def test_a_browser_opens_it_without_an_error(tmp_path: Path) -> None:
    """With no network: what is fetched all the same would be an error on the console."""
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
    # plotly warns of axes that are told to match themselves, as those of small multiples are: no harm in that.
    console = [line for line in opened.stderr.splitlines() if "CONSOLE" in line]
    assert console == []
    drawn = re.findall(r'class="main-svg"', opened.stdout)
    assert len(drawn) >= file.read_text("utf-8").count("Plotly.newPlot(") > 5  # plotly has drawn into each
