"""A complete example on the bundled model: forget code and keep prose, in under two minutes on a laptop."""

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
NEURON_PAGES = 4
EFFECT_TOKENS = 2_000

_SUMMARY = "summary.txt"
_MARKER = ".sp-lens-demo"  # marks a folder that a demo created, finished or not, so that the next demo may replace it


def demo(out: str | Path = "runs/demo", *, progress: bool = True) -> str:
    """Collect, score, prune step by step, evaluate, plot and export, with text that is on this machine.

    Args:
        out: Folder for the results. A folder that an earlier demo created is replaced, even if that demo did not
            finish. Any other folder that is not empty is an error.
        progress: Whether to show progress bars.

    Returns:
        A summary for newcomers, which is also written to `out/summary.txt`.

    Raises:
        SpLensError: If `out` is a file or a folder with other content, or if several distributed processes are running.
    """
    distributed.require_one("the demo")
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise SpLensError(f"{out} is a file: choose a folder with --out FOLDER.")
    if out.is_dir() and any(out.iterdir()) and not (out / _MARKER).exists():
        raise SpLensError(
            f"the folder {out} is not empty and was not created by a demo: choose another folder with --out FOLDER."
        )
    model = load_model("demo", device="cpu")
    shutil.rmtree(out, ignore_errors=True)
    write_bytes(out / _MARKER, b"")
    selective, random = _prune(model, out, progress)
    best = selective.best_step
    plots.tradeoff({"scored by abs": selective, "random": random}).write_html(out / "tradeoff.html")
    _density_figure(model, progress).write_html(out / "density.html")
    _write_report(model, selective, out, progress)
    export(model, selective.mask_at(best), out / "pruned-model")
    summary = _summary(selective, random, best, out)
    write_bytes(out / _SUMMARY, summary.encode())
    return summary


def _prune(model: Any, out: Path, progress: bool) -> tuple[PruneRun, PruneRun]:
    """Return a run that prunes by the score, and a control that prunes random neurons."""
    corpora = load_corpora(FORGET, RETAIN, model, tokens=TOKENS, offline=True)
    settings: dict[str, Any] = {"site": "mlp", "fraction": FRACTION, "steps": STEPS, "progress": progress}
    selective = prune(model, **corpora, metric="abs", out=out, **settings)
    random = prune(model, **corpora, metric="random", out=out / "random-control", **settings)
    return selective, random


def _density_figure(model: Any, progress: bool) -> Any:
    corpora = {
        label: load_corpus(name, model, tokens=DENSITY_TOKENS, offline=True) for label, name in DENSITY_CORPORA.items()
    }
    stats = collect_histograms(model, corpora, site="attn", layer=DENSITY_LAYER, progress=progress)
    return plots.density(stats, site="attn", layer=DENSITY_LAYER, neurons=range(100))


def _write_report(model: Any, run: PruneRun, out: Path, progress: bool) -> None:
    """Write the report of the run, with the neurons of the unpruned model that have the highest scores."""
    corpora = {name: load_corpus(name, model, tokens=TOKENS, offline=True) for name in (FORGET, RETAIN)}
    held_out = {
        name: load_corpus(name, model, tokens=EFFECT_TOKENS, split="evaluate", offline=True) for name in corpora
    }
    options: dict[str, Any] = {"progress": progress}
    stats = collect_histograms(model, corpora, site="mlp", **options)
    scores = score(stats[FORGET], stats[RETAIN], metric="abs")
    neurons = scores.top(NEURON_PAGES / scores.layout.select("mlp").neurons, site="mlp")
    effects: dict[str, Any] = {
        name: ablation_effect(model, corpus, unit="neuron", neurons=neurons, **options)
        for name, corpus in held_out.items()
    }
    report(
        run,
        out / "report.html",
        stats=stats,
        scores=scores,
        effects=effects,
        examples={name: top_examples(model, corpus, neurons, **options) for name, corpus in corpora.items()},
        neuron_pages=NEURON_PAGES,
    )


def _summary(selective: PruneRun, random: PruneRun, best: int, out: Path) -> str:
    def accuracy(run: PruneRun, side: str) -> str:
        before, after = (run.history[f"{side}_top1"][step] for step in (0, best))
        return f"{before:6.1%} -> {after:6.1%}   {(after - before) / before:+5.0%}"

    share = selective.history["share"][best]
    files = {
        "tradeoff.html": "accuracy lost on both corpora at each step (open it in a browser)",
        "density.html": f"activation densities of 100 attention neurons in layer {DENSITY_LAYER}, by corpus",
        "report.html": f"the whole run on one page, with the {NEURON_PAGES} most specialised neurons",
        "history.csv": "all numbers of all steps",
        "mask.safetensors": f"the neurons pruned in all {selective.steps} steps",
        "pruned-model/": f"the model with {share:.0%} of the neurons pruned (step {best}), for from_pretrained",
    }
    return "\n".join(
        [
            f"Pruned {share:.0%} of the MLP neurons: those that matter more for {FORGET} than for {RETAIN}.",
            "Next-token top-1 accuracy on held-out text, before and after:",
            "",
            f"  forgotten: {FORGET:6} {accuracy(selective, 'forget')}",
            f"  kept:      {RETAIN:6} {accuracy(selective, 'retain')}",
            "",
            "The same number of neurons, chosen at random:",
            "",
            f"             {FORGET:6} {accuracy(random, 'forget')}",
            f"             {RETAIN:6} {accuracy(random, 'retain')}",
            "",
            f"Files in {out}:",
            "",
            *(f"  {name:18} {description}" for name, description in files.items()),
            "",
        ]
    )
