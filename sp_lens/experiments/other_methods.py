"""The experiment that compares selective pruning with other unlearning methods: one class of images is forgotten."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import pandas as pd
import torch

from sp_lens import plots, unlearning
from sp_lens.data.corpora import Corpora
from sp_lens.evaluation.document_hits import DocumentHits
from sp_lens.experiments.registry import Pair
from sp_lens.experiments.result import Finding, Outcome, offline_origins
from sp_lens.experiments.setting import Setting, path_component
from sp_lens.interventions.ablation import ablate
from sp_lens.pruning.prune import prune
from sp_lens.pruning.run import Run
from sp_lens.unlearning.membership import membership_inference
from sp_lens.unlearning.relearning import relearning

RELEARNED = 0.8  # share of the initial forget accuracy at which a class counts as relearned
NOISE_IMAGES, NOISE_COPIES = 32, 20  # upper limits of UNSIR's noise images per class and their copies in an epoch
TRAINED = {
    "fine-tuning": unlearning.fine_tune,
    "gradient ascent": unlearning.gradient_ascent,
    "bad teacher": unlearning.bad_teacher,
    "amnesiac": unlearning.amnesiac,
}
PRUNING = "selective pruning"


def other_methods(setting: Setting) -> Outcome:
    """Measure every method at its best step: accuracies, membership inference, relearning and images read."""
    outcome = Outcome()
    steps = setting.step_options["steps"]
    for pair in setting.pairs:
        # The methods read images that the model was trained on, as a request to forget training data would require.
        corpora = replace(
            setting.corpora(pair),
            forget=setting.images(pair.forget, "train"),
            retain=setting.images(pair.retain, "train"),
        )
        methods = _methods(setting, setting.protected(pair, corpora))
        # An estimate for each method: a run, a second run up to the best step, membership inference and relearning.
        passes = Counter(forget=10, retain=10, eval_forget=2 * (steps + 1), eval_retain=2 * (steps + 1))
        setting.log_time(corpora, [passes] * len(methods))
        outcome.corpora |= offline_origins(corpora)
        runs: dict[str, Run] = {}
        hits: dict[str, DocumentHits] = {}
        for label, method in methods.items():
            runs[label], changed, cost = _run_to_best_step(setting.model, method, corpora, steps)
            initial, best = runs[label].records[0], runs[label].records[cost["step"]]
            if len(runs) == 1:
                row = _row(setting, corpora, initial, nullcontext(), initial)
                outcome.table.append({"pair": str(pair), "method": "no change", **row, **dict.fromkeys(cost, 0)})
            hits[label] = runs[label].best_hits()
            row = _row(setting, corpora, best, changed(), initial)
            outcome.table.append({"pair": str(pair), "method": label, **row, **cost})
        outcome.findings.append(method_finding(pair, hits))
        name = path_component(f"other-methods-{pair.forget}")
        outcome.figures[name] = plots.tradeoff(runs)
        outcome.data[name] = pd.concat([run.history.assign(method=label) for label, run in runs.items()])
    return outcome


def _methods(setting: Setting, protected: Mapping[str, Any]) -> dict[str, Callable[..., Run]]:
    """Return the methods by label, as functions of the model, the corpora and the number of steps."""
    pruned: dict[str, Any] = {"site": "both", "fraction": setting.step_options["fraction"], **protected}
    updates = -(-setting.scale.updates // setting.step_options["steps"])
    methods = {
        PRUNING: partial(prune, metric="abs", **pruned),
        "random pruning": partial(prune, metric="random", **pruned),
        **{label: partial(method, updates=updates) for label, method in TRAINED.items()},
        "UNSIR": partial(
            unlearning.unsir,
            noise_images=min(NOISE_IMAGES, setting.scale.images),
            copies=min(NOISE_COPIES, setting.scale.updates),
        ),
        "selective synaptic dampening": unlearning.selective_synaptic_dampening,
    }
    return {label: partial(method, progress=False) for label, method in methods.items()}


def _run_to_best_step(
    model: Any, method: Callable[..., Any], corpora: Corpora, steps: int
) -> tuple[Run, Callable[[], AbstractContextManager[Any]], dict[str, Any]]:
    """Run a method, and run it again up to its best step if that is not the last one.

    The best step is chosen on the held-out images, for all methods alike.

    Returns:
        The complete run, a function that returns a context manager in which the model is changed as at the best step,
        and the cost: the best step, and the number of images read up to it with and without a gradient.
    """
    with _count_images(model) as images:
        run = to_best = method(model, **corpora, steps=steps)
    best = max(run.best_step, 1)
    if best < steps:  # a run that ends at a step has the same weights as the longer run at that step
        with _count_images(model) as images:
            to_best = method(model, **corpora, steps=best)
    evaluated = (best + 1) * (len(corpora.eval_forget) + len(corpora.eval_retain))
    cost = {
        "step": best,
        "images read without a gradient": images["without gradient"] - evaluated,
        "images read with a gradient": images["with gradient"],
    }
    if isinstance(to_best, unlearning.UnlearningRun):
        return run, lambda: to_best.applied(model), cost
    return run, lambda: ablate(model, to_best.mask), cost


@contextmanager
def _count_images(model: Any) -> Iterator[dict[Literal["with gradient", "without gradient"], int]]:
    """Context manager that counts the images that pass through the first block, with and without a gradient."""
    images: dict[Literal["with gradient", "without gradient"], int] = {"with gradient": 0, "without gradient": 0}

    def count(module: Any, inputs: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        images["with gradient" if torch.is_grad_enabled() else "without gradient"] += len(hidden)

    handle = model.blocks[0].register_forward_hook(count)
    try:
        yield images
    finally:
        handle.remove()


def _row(
    setting: Setting,
    corpora: Corpora,
    record: Mapping[str, Any],
    changed: AbstractContextManager[Any],
    initial: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the accuracies of a step, and measure membership inference and relearning of the changed model."""
    updates = setting.scale.updates
    with changed:
        attack = membership_inference(
            setting.model, corpora.forget, corpora.retain, corpora.eval_retain, progress=False
        )
        relearned = relearning(
            setting.model, corpora.forget, eval_forget=corpora.eval_forget, updates=updates, every=-(-updates // 5),
            progress=False,
        )  # fmt: skip
    needed = relearned.updates_to(RELEARNED * initial["forget_top1"])
    return {
        "forget top-1": round(record["forget_top1"], 3),
        "retain top-1": round(record["retain_top1"], 3),
        "classified as members": f"{attack.share:.2f} [{attack.low:.2f}, {attack.high:.2f}]",
        "attack accuracy": round(attack.accuracy, 3),
        "updates to relearn": "never" if needed is None else needed,
    }


def method_finding(pair: Pair, hits: Mapping[str, DocumentHits]) -> Finding:
    """Judge whether selective pruning is more selective than at least half of the methods that do not prune."""
    pruning = hits[PRUNING]
    others = {label: item for label, item in hits.items() if "pruning" not in label}
    best = max(others, key=lambda label: others[label].selectivity)
    behind = sum(pruning.selectivity > item.selectivity for item in others.values())
    measured = (
        f"selectivity {pruning.interval()} points, higher than {behind} of {len(others)} methods; the best of them, "
        f"{best}: {others[best].interval()}; difference: {pruning.more_than(others[best])} points"
    )
    claim = f"{pair}: pruning separates better than at least half of the other methods"
    return Finding(claim, measured, 2 * behind >= len(others))
