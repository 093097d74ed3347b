"""Check runs, label them by the settings in which they differ, and describe the settings that they share."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from sp_lens.errors import SpLensError
from sp_lens.plots._labels import corpus_name

if TYPE_CHECKING:
    from sp_lens.pruning.run import Run

OneRun = TypeVar("OneRun", bound="Run")


def as_runs(runs: "OneRun | Iterable[OneRun] | Mapping[str, OneRun]") -> dict[str, "OneRun"]:
    """Return one run, several runs, or a mapping of labelled runs as a mapping from label to run.

    A generated label consists of the method, the metric and every setting in which the runs differ ("abs, mlp",
    "random, mlp, seed 1"). Runs that differ in none of the described settings are numbered.

    Raises:
        SpLensError: If there is no run, an item is not a run, or a run has no records.
    """
    if isinstance(runs, Mapping):
        labelled: dict[str, Any] = {str(label): run for label, run in runs.items()}
    else:
        listed: list[Any] = list(runs) if isinstance(runs, Iterable) else [runs]
        labelled = dict(zip(_generate_labels(listed), listed, strict=True))
    if not labelled:
        raise SpLensError("there are no runs to draw: expected a PruneRun, a list of runs, or {label: run}.")
    for label, run in labelled.items():
        if not hasattr(run, "records"):
            raise SpLensError(f"run {label!r} has type {type(run).__name__}: expected a PruneRun from prune().")
        if not run.records:
            raise SpLensError(f"run {label!r} has no records: expected at least the record of step 0.")
    return labelled


def common_settings(runs: Iterable["Run"]) -> str:
    """Describe the settings that are equal in all runs, for the subtitle of a figure."""
    facts = [run_facts(run) for run in runs]
    return ", ".join(text for key, text in facts[0].items() if all(other.get(key) == text for other in facts))


def differing_settings(facts: Iterable[Mapping[str, str]]) -> list[str]:
    """Return the keys of `run_facts` whose text is not the same in all runs."""
    listed = list(facts)
    keys = dict.fromkeys(key for settings in listed for key in settings)
    return [key for key in keys if len({settings.get(key) for settings in listed}) > 1]


def run_facts(run: Any) -> dict[str, str]:
    """Describe each setting of a run that matters to a reader, in the order in which figures list them."""
    settings = getattr(run, "settings", {})
    facts: dict[str, str] = {}

    def add(key: str, value: Any, phrase: str = "{}") -> None:
        if value is not None:  # None marks a setting without effect on the run, such as the seed with metric "abs"
            facts[key] = phrase.format(value)

    add("model", settings.get("model"))
    for side in ("forget", "retain"):
        add(side, corpus_name((settings.get("corpora") or {}).get(side, {})) or None, f"{side} {{}}")
    add("method", settings.get("method"))
    add("metric", settings.get("metric"))
    add("site", settings.get("site"))
    add("unit", settings.get("unit"), "by {}")
    add("aggregate", settings.get("aggregate"), "{} over the neurons of a head")
    fraction = settings.get("fraction")
    add("fraction", None if fraction is None else f"{100 * fraction:.3g} % per step")
    if "recollect" in settings:
        add("recollect", "statistics collected at every step" if settings["recollect"] else "statistics collected once")
    eps = settings.get("eps")
    if isinstance(eps, Mapping):
        eps = ", ".join(f"{value} ({site})" for site, value in eps.items())
    add("eps", eps, "eps {}")
    add("protected", (settings.get("protected") or {}).get("neurons") or None, "{} neurons protected")
    add("learning_rate", settings.get("learning_rate"), "learning rate {}")
    add("seed", settings.get("seed"), "seed {}")
    return facts


def _generate_labels(runs: list[Any]) -> list[str]:
    facts = [run_facts(run) for run in runs]
    keys = dict.fromkeys(["method", "metric", *differing_settings(facts)])
    labels = [", ".join(settings[key] for key in keys if key in settings) or "run" for settings in facts]
    total, seen = Counter(labels), Counter[str]()
    for index, label in enumerate(labels):
        seen[label] += 1
        if total[label] > 1:
            labels[index] = f"{label} ({seen[label]})"
    return labels
