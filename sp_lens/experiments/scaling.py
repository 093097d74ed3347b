"""Experiments that are a series of runs: over models of several sizes, over numbers of tokens collected."""

from typing import Any

import pandas as pd

from sp_lens import plots
from sp_lens.data.corpora import load_corpora
from sp_lens.evaluation.bootstrap import DocumentHits
from sp_lens.experiments.result import Finding, Found, origins
from sp_lens.experiments.setting import Setting

# Of the scale's tokens, so many are collected from.
SHARES = (0.01, 0.03, 0.1, 0.3, 1.0)
FEWEST_TOKENS = 20
# A number of tokens is enough where it gives this share of the selectivity that all of them give.
ENOUGH = 0.9


def parameters_of(model: Any) -> int:
    """How many weights the model has, tied ones once."""
    return sum(parameter.numel() for parameter in getattr(model, "original_model", model).parameters())


def one_size(setting: Setting) -> Found:
    """The selectivity of one model, both ways round; `compare_sizes` sets several side by side."""
    found = Found()
    steps = setting.steps
    for place, pair in enumerate(setting.pairs):
        corpora = setting.corpora(pair)
        if place == 0:
            setting.tell_time(corpora, [setting.passes(setting.experiment.variants["abs"]) for _ in setting.pairs])
        run = setting.run(pair, "abs", corpora, **steps, **setting.experiment.variants["abs"])
        hits = setting.hits(pair, "abs", corpora, run)
        found.corpora |= origins(corpora)
        found.table.append(
            {
                "model": setting.name,
                "parameters": parameters_of(setting.model),
                "pair": str(pair),
                "forget top-1": round(run.records[0]["forget_top1"], 3),
                "retain top-1": round(run.records[0]["retain_top1"], 3),
                **_numbers(hits),
            }
        )
    return found


def compare_sizes(parts: list[Found]) -> Found:
    """The models of `one_size`, by the number of their parameters."""
    found = Found()
    for part in parts:
        found.table += part.table
        found.corpora |= part.corpora
    frame = pd.DataFrame(found.table).sort_values("parameters")
    for pair, rows in frame.groupby("pair", sort=False):
        smallest, largest = rows.iloc[0], rows.iloc[-1]
        if len(rows) == 1:
            alone = f"{smallest['model']} {_said(smallest)} alone: name models of other sizes"
            found.findings.append(Finding(f"{pair}: larger models separate better", alone, None))
            continue
        rank = rows["parameters"].corr(rows["selectivity"], method="spearman")
        above, below = largest["low"] > smallest["high"], largest["high"] < smallest["low"]
        measured = (
            f"{smallest['model']} {_said(smallest)}, {largest['model']} {_said(largest)}; rank correlation with size "
            f"{rank:.2f} over {len(rows)} models"
        )
        holds = bool(above and rank > 0) if above or below else None
        found.findings.append(Finding(f"{pair}: larger models separate better", measured, holds))
    found.figures["model-size"] = plots.selectivity_by(frame, x="parameters", series="pair")
    found.data["model-size"] = frame
    return found


def data_efficiency(setting: Setting) -> Found:
    """Collected once from ever more tokens, evaluated on all that the scale has."""
    found = Found()
    (pair,) = setting.pairs
    all_tokens = setting.scale.tokens
    corpora = setting.corpora(pair)
    counts = sorted({max(FEWEST_TOKENS, round(share * all_tokens)) for share in SHARES})
    steps = setting.steps
    setting.tell_time(corpora, [setting.passes({"recollect": False}) for _ in counts])
    found.corpora = origins(corpora)
    hits: dict[int, DocumentHits] = {}
    for tokens in counts:
        few = dict(load_corpora(*pair, setting.model, tokens=tokens, offline=setting.offline))
        few |= {"eval_forget": corpora["eval_forget"], "eval_retain": corpora["eval_retain"]}
        label = f"abs-once-{tokens}-tokens"
        run = setting.run(pair, label, few, **steps, **setting.experiment.variants["abs"], recollect=False)
        hits[tokens] = setting.hits(pair, label, few, run)
        curve = f"{setting.name}: {pair}"
        found.table.append({"model and pair": curve, "tokens": tokens, **_numbers(hits[tokens])})
    frame = pd.DataFrame(found.table)
    most = hits[all_tokens].selectivity
    enough = next(tokens for tokens in counts if hits[tokens].selectivity >= ENOUGH * most)
    measured = f"{enough} tokens of each corpus give {ENOUGH:.0%} of the selectivity that {all_tokens} give"
    found.findings.append(Finding("few tokens are enough", measured, enough <= 0.1 * all_tokens))
    found.figures["data-efficiency"] = plots.selectivity_by(frame, x="tokens", series="model and pair")
    found.data["data-efficiency"] = frame
    return found


def _numbers(hits: DocumentHits) -> dict[str, float]:
    value, low, high = (round(100 * number, 2) for number in hits.interval())
    return {"selectivity": value, "low": low, "high": high}


def _said(row: Any) -> str:
    return f"{row['selectivity']:.1f} [{row['low']:.1f}, {row['high']:.1f}] points"
