"""The experiment that sets selective pruning beside other methods of unlearning: one class of images forgotten."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import pandas as pd
import torch

from sp_lens import plots, unlearning
from sp_lens.evaluation.bootstrap import DocumentHits, Interval, document_hits
from sp_lens.experiments.registry import Pair
from sp_lens.experiments.result import Finding, Found, origins
from sp_lens.experiments.setting import Setting, plain
from sp_lens.interventions.ablation import ablate
from sp_lens.pruning.prune import prune
from sp_lens.pruning.run import Run
from sp_lens.unlearning.membership import membership_inference
from sp_lens.unlearning.relearning import relearning

# Of the forget accuracy that there was, how much relearning has to bring back.
BACK = 0.8
NOISE_COPIES = 20  # of UNSIR's noise in an epoch, at most
TRAINED = {
    "fine-tuning": unlearning.fine_tune,
    "gradient ascent": unlearning.gradient_ascent,
    "bad teacher": unlearning.bad_teacher,
    "amnesiac": unlearning.amnesiac,
}


def methods(setting: Setting) -> Found:
    """Every method at its best step: accuracies, membership inference, relearning, and what it cost."""
    found = Found()
    for pair in setting.pairs:
        corpora = setting.corpora(pair)
        # What the methods are given is what the model was trained on, as a request to forget it would be.
        corpora |= {"forget": setting.images(pair.forget, "train"), "retain": setting.images(pair.retain, "train")}
        # A run, the same again to its best step, and what is measured of the model then.
        each = _methods(setting, setting.protected(pair, corpora))
        evaluated = 2 * (setting.steps["steps"] + 1)
        passes = Counter(forget=10, retain=10, eval_forget=evaluated, eval_retain=evaluated)
        setting.tell_time(corpora, [passes for _ in each])
        found.corpora |= origins(corpora)
        runs: dict[str, Run] = {}
        hits: dict[str, DocumentHits] = {}
        rows: list[dict[str, Any]] = []
        for label, method in each.items():
            runs[label], changed, cost = _at_best(setting.model, method, corpora, setting.steps["steps"])
            records, best = runs[label].records, cost["step"]
            target = BACK * records[0]["forget_top1"]
            if not rows:
                unchanged = _row(setting, corpora, records[0], nullcontext(), target=target)
                rows.append({"method": "no change", **unchanged, **dict.fromkeys(cost, 0)})
            hits[label] = document_hits(setting.model, corpora, changed(), progress=False)
            rows.append({"method": label, **_row(setting, corpora, records[best], changed(), target=target), **cost})
        found.table += [{"pair": str(pair), **row} for row in rows]
        found.findings.append(_finding(pair, hits))
        name = plain(f"other-methods-{pair.forget}")
        found.figures[name] = plots.tradeoff(runs, hits=hits)
        found.data[name] = pd.concat([run.history.assign(method=label) for label, run in runs.items()])
    return found


def _methods(setting: Setting, protected: Mapping[str, Any]) -> dict[str, Callable[..., Run]]:
    """How each is called with the model, the corpora and a number of steps."""
    pruned: dict[str, Any] = {"site": "both", "fraction": setting.steps["fraction"], **protected}
    updates = -(-setting.scale.updates // setting.steps["steps"])
    called = {
        "selective pruning": partial(prune, metric="abs", **pruned),
        "random pruning": partial(prune, metric="random", **pruned),
        **{label: partial(method, updates=updates) for label, method in TRAINED.items()},
        "UNSIR": partial(unlearning.unsir, copies=min(NOISE_COPIES, setting.scale.updates)),
        "selective synaptic dampening": unlearning.selective_synaptic_dampening,
    }
    return {label: partial(method, progress=False) for label, method in called.items()}


def _at_best(
    model: Any, method: Callable[..., Any], corpora: Any, steps: int
) -> tuple[Run, Callable[[], AbstractContextManager[Any]], dict[str, Any]]:
    """The run, a `with` in which the model is as after its best step, and what it read on the way there.

    The best step is found on the held-out images, for every method alike.
    """
    with _counted(model) as images:
        run = short = method(model, **corpora, steps=steps)
    best = max(run.best_step, 1)
    if best < steps:  # the weights of a step are those after a run that ends there
        with _counted(model) as images:
            short = method(model, **corpora, steps=best)
    evaluated = (best + 1) * (len(corpora["eval_forget"]) + len(corpora["eval_retain"]))
    cost = {
        "step": best,
        "images read without a gradient": images["without"] - evaluated,
        "images read with a gradient": images["with"],
    }
    if isinstance(short, unlearning.UnlearningRun):
        return run, lambda: short.applied(model), cost
    return run, lambda: ablate(model, short.mask), cost


@contextmanager
def _counted(model: Any) -> Iterator[dict[str, int]]:
    """How many images go through the first block meanwhile, with and without a gradient."""
    images = {"with": 0, "without": 0}

    def count(module: Any, inputs: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        images["with" if torch.is_grad_enabled() else "without"] += len(hidden)

    handle = model.blocks[0].register_forward_hook(count)
    try:
        yield images
    finally:
        handle.remove()


def _row(
    setting: Setting, corpora: Any, record: Mapping[str, Any], changed: AbstractContextManager[Any], *, target: float
) -> dict[str, Any]:
    """Accuracies of a step, and of the model as it is in `changed` membership inference and relearning."""
    with changed:
        attack = membership_inference(
            setting.model, corpora["forget"], corpora["retain"], corpora["eval_retain"], progress=False
        )
        again = relearning(
            setting.model,
            corpora["forget"],
            eval_forget=corpora["eval_forget"],
            updates=setting.scale.updates,
            every=-(-setting.scale.updates // 5),
            progress=False,
        )
    updates = again.updates_to(target)
    return {
        "forget top-1": round(record["forget_top1"], 3),
        "retain top-1": round(record["retain_top1"], 3),
        "called members": f"{attack.share:.2f} [{attack.low:.2f}, {attack.high:.2f}]",
        "attack accuracy": round(attack.accuracy, 3),
        "updates to relearn": "never" if updates is None else updates,
    }


def _finding(pair: Pair, hits: dict[str, DocumentHits]) -> Finding:
    """Pruning against the best of the others."""
    ours = hits["selective pruning"]
    others = {label: one for label, one in hits.items() if "pruning" not in label}
    best = max(others, key=lambda label: others[label].selectivity)
    difference: Interval = ours.more_than(others[best])
    behind = sum(ours.selectivity > one.selectivity for one in others.values())
    measured = (
        f"selectivity {ours.interval()}; above {behind} of {len(others)} methods; the best of them, {best}: "
        f"{others[best].interval()}; difference {difference} points"
    )
    return Finding(
        f"{pair}: pruning separates better than half of the other methods", measured, 2 * behind >= len(others)
    )
