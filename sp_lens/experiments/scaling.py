"""Experiments over a range of sizes: number of parameters (model size) and number of tokens (data efficiency)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from sp_lens import plots
from sp_lens.data.corpora import load_corpora
from sp_lens.evaluation.document_hits import DocumentHits
from sp_lens.experiments.result import Finding, Outcome, offline_origins
from sp_lens.experiments.setting import Setting

# Tokens to collect from, as shares of the tokens of the scale.
TOKEN_SHARES = (0.01, 0.03, 0.1, 0.3, 1.0)
MIN_TOKENS = 20
# A number of tokens is enough if it gives this share of the selectivity that all tokens give.
ENOUGH = 0.9
# The claim that few tokens are enough holds up to this share of all tokens.
FEW = 0.1


def parameters_of(model: Any) -> int:
    """Return the number of parameters of the model. Tied parameters count once."""
    return sum(parameter.numel() for parameter in getattr(model, "original_model", model).parameters())


def selectivity_of_model(setting: Setting) -> Outcome:
    """Measure the selectivity of one model on every pair of corpora, for `compare_sizes`."""
    outcome = Outcome()
    options = setting.experiment.variants["abs"]
    for index, pair in enumerate(setting.pairs):
        corpora = setting.corpora(pair)
        if index == 0:
            setting.log_time(corpora, [setting.passes(options)] * len(setting.pairs))
        run = setting.run(pair, "abs", corpora, **options)
        hits = run.best_hits()
        outcome.corpora |= offline_origins(corpora)
        outcome.table.append(
            {
                "model": setting.model_name,
                "parameters": parameters_of(setting.model),
                "pair": str(pair),
                "forget top-1": round(run.records[0]["forget_top1"], 3),
                "retain top-1": round(run.records[0]["retain_top1"], 3),
                **_selectivity_columns(hits),
            }
        )
    return outcome


def compare_sizes(parts: Sequence[Outcome]) -> Outcome:
    """Compare the outcomes of `selectivity_of_model` by the number of parameters of the models."""
    outcome = Outcome()
    for part in parts:
        outcome.table += part.table
        outcome.corpora |= part.corpora
    frame = pd.DataFrame(outcome.table).sort_values("parameters")
    outcome.findings = [size_finding(str(pair), rows) for pair, rows in frame.groupby("pair", sort=False)]
    outcome.figures["model-size"] = plots.selectivity_by(frame, x="parameters", series="pair")
    outcome.data["model-size"] = frame
    return outcome


def size_finding(pair: str, rows: pd.DataFrame) -> Finding:
    """Judge whether the largest model is more selective than the smallest, beyond both confidence intervals.

    Args:
        pair: Name of the pair of corpora.
        rows: One row per model, in ascending order of `parameters`, with the columns `model`, `selectivity`, `low`
            and `high` (percentage points).
    """
    claim = f"{pair}: larger models separate better"
    smallest, largest = rows.iloc[0], rows.iloc[-1]
    if len(rows) == 1:
        measured = f"{_selectivity_text(smallest)}; give models of other sizes to compare"
        return Finding(claim, measured, None)
    rank = rows["parameters"].corr(rows["selectivity"], method="spearman")
    above, below = largest["low"] > smallest["high"], largest["high"] < smallest["low"]
    measured = (
        f"{_selectivity_text(smallest)}, {_selectivity_text(largest)}; rank correlation with size {rank:.2f} over "
        f"{len(rows)} models"
    )
    return Finding(claim, measured, bool(above and rank > 0) if above or below else None)


def data_efficiency(setting: Setting) -> Outcome:
    """Collect once from an increasing number of tokens, and always evaluate on all tokens of the scale."""
    outcome = Outcome()
    (pair,) = setting.pairs
    options = {**setting.experiment.variants["abs"], "recollect": False}
    all_tokens = setting.scale.tokens
    corpora = setting.corpora(pair)
    counts = sorted({max(MIN_TOKENS, round(share * all_tokens)) for share in TOKEN_SHARES})
    setting.log_time(corpora, [setting.passes(options)] * len(counts))
    outcome.corpora = offline_origins(corpora)
    hits: dict[int, DocumentHits] = {}
    for tokens in counts:
        fewer = replace(
            load_corpora(*pair, setting.model, tokens=tokens, offline=setting.offline),
            eval_forget=corpora.eval_forget,
            eval_retain=corpora.eval_retain,
        )
        label = f"abs-once-{tokens}-tokens"
        run = setting.run(pair, label, fewer, **options)
        hits[tokens] = run.best_hits()
        curve = f"{setting.model_name}: {pair}"
        outcome.table.append({"model and pair": curve, "tokens": tokens, **_selectivity_columns(hits[tokens])})
    frame = pd.DataFrame(outcome.table)
    outcome.findings.append(efficiency_finding({tokens: item.selectivity for tokens, item in hits.items()}))
    outcome.figures["data-efficiency"] = plots.selectivity_by(frame, x="tokens", series="model and pair")
    outcome.data["data-efficiency"] = frame
    return outcome


def efficiency_finding(selectivity: Mapping[int, float]) -> Finding:
    """Judge whether a tenth of the tokens gives 90 % of the selectivity of all tokens.

    Args:
        selectivity: Selectivity by number of tokens collected.
    """
    all_tokens = max(selectivity)
    enough = min(tokens for tokens, value in selectivity.items() if value >= ENOUGH * selectivity[all_tokens])
    measured = f"{enough} tokens of each corpus give {ENOUGH:.0%} of the selectivity that {all_tokens} tokens give"
    return Finding("few tokens are enough", measured, enough <= FEW * all_tokens)


def _selectivity_columns(hits: DocumentHits) -> dict[str, float]:
    value, low, high = (round(100 * number, 2) for number in hits.interval())
    return {"selectivity": value, "low": low, "high": high}


def _selectivity_text(row: Any) -> str:
    return f"{row['model']} {row['selectivity']:.1f} [{row['low']:.1f}, {row['high']:.1f}] points"
