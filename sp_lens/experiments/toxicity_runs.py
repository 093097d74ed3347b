"""The toxicity experiment: toxic comments forgotten, and what that does to the text that the model writes."""

from contextlib import nullcontext
from typing import Any

import pandas as pd

from sp_lens import plots
from sp_lens.data.registry import read_text
from sp_lens.evaluation.bootstrap import Interval
from sp_lens.evaluation.perplexity import sliding_perplexity
from sp_lens.experiments.classifiers import tweet_classifier
from sp_lens.experiments.pruning_runs import as_row, tradeoff_finding
from sp_lens.experiments.result import Finding, Found, origins
from sp_lens.experiments.setting import Setting
from sp_lens.experiments.toxicity import Toxicity, toxicity
from sp_lens.interventions.ablation import ablate

# Of the Hub; its label of toxic comments has the name that `toxicity` looks for.
CLASSIFIER = "unitary/toxic-bert"


def toxic(setting: Setting) -> Found:
    """Accuracy on both kinds of comments, the toxicity of continuations and WikiText's perplexity, before and after."""
    found = Found()
    (pair,) = setting.pairs
    corpora, steps = setting.corpora(pair), setting.steps
    variants = setting.experiment.variants
    setting.tell_time(corpora, map(setting.passes, variants.values()))
    classifier = tweet_classifier() if setting.offline else CLASSIFIER
    wikitext, record = read_text("wikitext", "evaluate", offline=setting.offline)
    texts = [document.text for document in wikitext]
    found.corpora = origins(corpora) | ({"wikitext": record["origin"]} if record["offline"] else {})
    runs = {label: setting.run(pair, label, corpora, **steps, **options) for label, options in variants.items()}
    hits = {label: setting.hits(pair, label, corpora, run) for label, run in runs.items()}
    written = {"unpruned": _written(setting, classifier, texts, None)}
    for label, run in runs.items():
        written[label] = _written(setting, classifier, texts, run.mask_at(run.best_step))
        found.table.append(as_row(pair, label, run, hits[label]))
    found.findings = [*tradeoff_finding(pair, runs, hits), _less_toxic(written), _perplexity(written)]
    found.figures["toxicity"] = plots.tradeoff(runs, hits=hits)
    found.data["toxicity"] = pd.concat([run.history.assign(run=label) for label, run in runs.items()])
    return found


def _written(setting: Setting, classifier: Any, wikitext: list[str], mask: Any) -> dict[str, Any]:
    """The toxicity of what the model writes after the best step, and the perplexity of WikiText."""
    count, tokens = setting.scale.continuations
    with nullcontext() if mask is None else ablate(setting.model, mask):
        judged = toxicity(
            setting.model, classifier=classifier, continuations=count, tokens=tokens, progress=setting.progress
        )
        perplexity = sliding_perplexity(
            setting.model, wikitext, tokens=setting.scale.window_tokens, progress=setting.progress
        ).perplexity
    return {"toxicity": judged, "perplexity": perplexity}


def _less_toxic(written: dict[str, Any]) -> Finding:
    judged: list[Toxicity] = [written[label]["toxicity"] for label in ("unpruned", "abs", "random")]
    before, after, control = (Interval(one.mean, *one.mean_interval) for one in judged)
    holds = True if after.high < before.low else False if after.low > before.high else None
    about = judged[0].classifier
    known = {key: about[key] for key in ("accuracy", "balanced_accuracy", "auc", "civil_recall") if key in about}
    quality = ", ".join(f"{key.replace('_', ' ')} {value:.3f}" for key, value in known.items()) or "not measured here"
    measured = (
        f"mean score x 100 of continuations: {before} unpruned, {after} pruned, {control} at random; by "
        f"{about['classifier']} (held out: {quality})"
    )
    return Finding("the model's continuations become less toxic", measured, holds)


def _perplexity(written: dict[str, Any]) -> Finding:
    before, after, control = (written[label]["perplexity"] for label in ("unpruned", "abs", "random"))
    measured = f"{before:.1f} unpruned, {after:.1f} pruned, {control:.1f} at random, by a sliding window"
    return Finding("WikiText perplexity rises by less than a twentieth", measured, after < 1.05 * before)
