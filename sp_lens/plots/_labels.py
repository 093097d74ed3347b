"""Names of sites, metrics, corpora and models in figures and pages, and descriptions of where values come from."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sp_lens.statistics.activation_stats import ActivationStats

SITE_NAMES = {"attn": "attention pre-out", "mlp": "MLP", "both": "MLP and attention pre-out"}
# The metrics of Definition 1 as axis titles. An activation z has the unit of the model, hence "(activation)".
METRIC_NAMES = {
    "abs": "mean |z| (activation)",
    "rms": "rms of z (activation)",
    "std": "std of z (activation)",
    "freq": "share of tokens with z > 0",
}


def model_prefix(stats: "ActivationStats") -> str:
    """Return the name of the model and a comma, to begin a list of settings, or "" if the name is unknown."""
    model = stats.about.get("model")
    return f"{model}, " if model else ""


def values_about(about: Mapping[str, Any]) -> str:
    """Describe what neuron or head values were computed from, as far as their `about` records it."""
    corpora = about.get("corpora") or []
    metric = f"{about['mode']} ablation" if "mode" in about else about.get("metric")
    parts = [str(part) for part in (about.get("model"), metric) if part]
    if "aggregate" in about:
        parts.append(f"{about['aggregate']} over the neurons of a head")
    if "eps" in about and len(corpora) == 2:
        names = zip(("forget", "retain"), map(corpus_names, corpora), strict=True)
        parts += [f"{side} {name}" for side, name in names if name]
    elif names := corpus_names(corpora):
        parts.append(f"on {names}")
    return ", ".join(parts)


def corpus_name(about: Mapping[str, Any]) -> str:
    """Return the name of a corpus, such as "code", or "code (offline)" if offline text replaced the Hub dataset."""
    source = about.get("source")
    return f"{source}{' (offline)' if about.get('offline') else ''}" if source else ""


def corpus_names(corpora: Any) -> str:
    """Return the names of the corpora that statistics record, such as "code + prose" for merged statistics."""
    listed = corpora if isinstance(corpora, Sequence) else []  # a loaded file can contain anything here
    names = [corpus_name(about) for about in listed if isinstance(about, Mapping)]
    return " + ".join(dict.fromkeys(name for name in names if name))
