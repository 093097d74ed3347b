"""Check the inputs of the neuron figures and compute the scores that they draw."""

from typing import TYPE_CHECKING, Any

from sp_lens.errors import SpLensError
from sp_lens.plots._labels import values_about

if TYPE_CHECKING:
    from sp_lens.neurons.values import NeuronValues
    from sp_lens.scoring.specialisation import Specialisation
    from sp_lens.statistics.activation_stats import ActivationStats
    from sp_lens.typing import Metric, Site

_SOURCES = {
    "NeuronValues": "compute them with score(forget, retain) or stats.importance('abs')",
    "HeadValues": "compute them with scores.heads('mean') or ablation_effect(model, corpus, unit='head')",
}


def is_score(values: Any) -> bool:
    """Return whether values of neurons or heads are scores (Definition 2): `score` records its eps."""
    return "eps" in values.about


def require_values(values: Any, kind: str, function: str) -> None:
    """Raise SpLensError unless the values are of the class `kind` ("NeuronValues" or "HeadValues")."""
    # Compare names, because importing the class itself would import torch.
    if kind not in {base.__name__ for base in type(values).__mro__}:
        raise SpLensError(f"{function} expects {kind}, got {type(values).__name__}: {_SOURCES[kind]}.")


def require_specialisation(special: Any, function: str) -> None:
    """Raise SpLensError unless the argument is a `Specialisation`."""
    if not hasattr(special, "overlap"):
        raise SpLensError(
            f"{function} expects the result of sp.specialisation(), got an object of type {type(special).__name__}."
        )


def specialisation_about(special: "Specialisation") -> str:
    """Describe the importances of a specialisation: model, metric and eps."""
    first = next(iter(special.importances.values())).about
    eps = ", ".join(f"{value:g} ({site})" for site, value in special.eps.items())
    source = values_about({key: first[key] for key in ("model", "metric") if key in first})
    return f"{source}, eps {eps}"


def site_scores(
    forget: "ActivationStats", retain: "ActivationStats", *, metric: "Metric", site: "Site"
) -> "NeuronValues":
    """Return the scores (Definition 2) of the neurons of one site.

    Raises:
        SpLensError: If an argument is not ActivationStats, the statistics belong to different models, or the metric
            or site is unknown.
    """
    for side, stats in (("forget", forget), ("retain", retain)):
        if not hasattr(stats, "importance"):
            raise SpLensError(f"{side} has type {type(stats).__name__}: expected ActivationStats from collect().")
    from sp_lens.scoring.score import score

    return score(forget, retain, metric=metric).select(site)
