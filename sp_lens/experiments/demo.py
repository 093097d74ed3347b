"""The main job on the bundled model: forget code, keep prose, in under two minutes on a laptop."""

import shutil
from pathlib import Path
from typing import Any

from sp_lens import distributed, plots
from sp_lens.data.corpora import load_corpora
from sp_lens.data.text import load_corpus
from sp_lens.errors import SpLensError
from sp_lens.interventions.ablation_effect import ablation_effect
from sp_lens.interventions.export import export
from sp_lens.models.loading import load_model
from sp_lens.pages.report import report
from sp_lens.pruning.prune import prune
from sp_lens.pruning.run import PruneRun
from sp_lens.scoring.score import score
from sp_lens.statistics.collect import collect_histograms
from sp_lens.statistics.top_examples import top_examples
from sp_lens.storage.serialization import write_bytes

FORGET, RETAIN = "code", "prose"
TOKENS = 20_000
FRACTION, STEPS = 0.05, 8
DENSITY_CORPORA = {"prose": "prose", "Python": "python", "C and C++": "non_python"}
DENSITY_TOKENS = 10_000
DENSITY_LAYER = 2
CARDS = 4
EFFECT_TOKENS = 2_000

_SUMMARY = "summary.txt"
_MARKER = ".sp-lens-demo"  # says that a demo made the folder, finished or not, so that the next may replace it


def demo(out: str | Path = "runs/demo", *, progress: bool = True) -> str:
    """Collect, score, prune step by step, evaluate, draw and export, on text that is on this machine.

    Args:
        out: folder for the results. An earlier demo's is replaced, finished or not; any other is refused.
        progress: show bars.

    Returns:
        What happened, in words that a newcomer understands; it is in `out/summary.txt` too.

    Raises:
        SpLensError: when `out` is a folder of something else, and in several processes.
    """
    distributed.require_one("the demo")
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise SpLensError(f"{out} is a file: name a folder, --out FOLDER.")
    if out.is_dir() and any(out.iterdir()) and not (out / _MARKER).exists():
        raise SpLensError(f"{out} is there and no demo made it: name another folder, --out FOLDER.")
    model = load_model("demo", device="cpu")
    shutil.rmtree(out, ignore_errors=True)
    write_bytes(out / _MARKER, b"")
    selective, random = _runs(model, out, progress)
    best = selective.best_step
    plots.tradeoff({"scored by abs": selective, "random": random}).write_html(out / "tradeoff.html")
    _density(model, progress).write_html(out / "density.html")
    _report(model, selective, out, progress)
    export(model, selective.mask_at(best), out / "pruned-model")
    summary = _summary(selective, random, best, out)
    write_bytes(out / _SUMMARY, summary.encode())
    return summary


def _runs(model: Any, out: Path, progress: bool) -> tuple[PruneRun, PruneRun]:
    corpora = load_corpora(FORGET, RETAIN, model, tokens=TOKENS, offline=True)
    settings: dict[str, Any] = {"site": "mlp", "fraction": FRACTION, "steps": STEPS, "progress": progress}
    selective = prune(model, **corpora, metric="abs", out=out, **settings)
    random = prune(model, **corpora, metric="random", out=out / "random-control", **settings)
    return selective, random


def _density(model: Any, progress: bool) -> Any:
    corpora = {
        label: load_corpus(name, model, tokens=DENSITY_TOKENS, offline=True) for label, name in DENSITY_CORPORA.items()
    }
    stats = collect_histograms(model, corpora, site="attn", layer=DENSITY_LAYER, progress=progress)
    return plots.density(stats, site="attn", layer=DENSITY_LAYER, neurons=range(100))


def _report(model: Any, run: PruneRun, out: Path, progress: bool) -> None:
    """The run as one page, with cards of the neurons that the unpruned model has most for code."""
    corpora = {name: load_corpus(name, model, tokens=TOKENS, offline=True) for name in (FORGET, RETAIN)}
    held_out = {
        name: load_corpus(name, model, tokens=EFFECT_TOKENS, split="evaluate", offline=True) for name in corpora
    }
    options: dict[str, Any] = {"progress": progress}
    stats = collect_histograms(model, corpora, site="mlp", **options)
    scores = score(stats[FORGET], stats[RETAIN], metric="abs")
    cards = scores.top(CARDS / scores.layout.select("mlp").neurons, site="mlp")
    effects: dict[str, Any] = {
        name: ablation_effect(model, corpus, unit="neuron", neurons=cards, **options)
        for name, corpus in held_out.items()
    }
    report(
        run,
        out / "report.html",
        stats=stats,
        scores=scores,
        effects=effects,
        examples={name: top_examples(model, corpus, cards, **options) for name, corpus in corpora.items()},
        neuron_pages=CARDS,
    )


def _summary(selective: PruneRun, random: PruneRun, best: int, out: Path) -> str:
    def line(run: PruneRun, side: str) -> str:
        before, after = (run.history[f"{side}_top1"][step] for step in (0, best))
        return f"{before:6.1%} -> {after:6.1%}   {(after - before) / before:+5.0%}"

    share = selective.history["share"][best]
    files = {
        "tradeoff.html": "what each step cost either side (open in a browser)",
        "density.html": f"activations of 100 attention neurons in layer {DENSITY_LAYER}, corpus by corpus",
        "report.html": f"all of the run on one page, with cards of the {CARDS} most specialised neurons",
        "history.csv": "every number of every step",
        "mask.safetensors": f"which neurons were pruned in all {selective.steps} steps",
        "pruned-model/": f"the model with the {share:.0%} of step {best} pruned, for transformers' from_pretrained",
    }
    return "\n".join(
        [
            f"Pruned {share:.0%} of the MLP neurons: those that matter more for {FORGET} than for {RETAIN}.",
            "Next tokens guessed right, on held-out text, before and after:",
            "",
            f"  forgotten: {FORGET:6} {line(selective, 'forget')}",
            f"  kept:      {RETAIN:6} {line(selective, 'retain')}",
            "",
            "As many neurons chosen at random:",
            "",
            f"             {FORGET:6} {line(random, 'forget')}",
            f"             {RETAIN:6} {line(random, 'retain')}",
            "",
            f"Files in {out}:",
            "",
            *(f"  {name:18} {what}" for name, what in files.items()),
            "",
        ]
    )
