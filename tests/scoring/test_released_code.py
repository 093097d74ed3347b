"""Compare masks with those that the released code, `taker` 1.0.1, computed from the same weights and token ids.

`benchmarks/taker_masks.py` ran `taker` and wrote taker_masks.json.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import DEMO_FOLDER

import sp_lens as sp
from sp_lens.neurons.values import NeuronValues
from sp_lens.typing import Metric, Positions

RECORD = json.loads(Path(__file__).with_name("taker_masks.json").read_text("utf-8"))
METRICS: tuple[Metric, ...] = ("abs", "freq", "rms", "std")

pytestmark = pytest.mark.model


def test_the_record_is_of_the_bundled_weights() -> None:
    weights = (DEMO_FOLDER / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == RECORD["weights_sha256"], "run benchmarks/taker_masks.py again"
    assert RECORD["versions"]["taker"] == "1.0.1"


@pytest.fixture(scope="module")
def model() -> Any:
    return sp.load_model("demo", device="cpu")


def collect(model: Any, positions: Positions) -> tuple[sp.ActivationStats, sp.ActivationStats]:
    """Return the statistics of the forget and of the retain rows of the record, which all start with BOS."""
    rows = {side: [torch.tensor(row) for row in RECORD["rows"][side]] for side in ("forget", "retain")}
    forget, retain = (sp.collect(model, rows[side], positions=positions, progress=False) for side in rows)
    return forget, retain


def released_importance(stats: sp.ActivationStats, metric: Metric) -> NeuronValues:
    """Return the importance by the formulas of the released code: its std is a variance, which its rms squares."""
    if metric in ("abs", "freq"):
        return stats.importance(metric)
    tensors = {}
    for name, moments in stats.items():
        variance = moments.squares / (moments.count - 1)
        tensors[name] = variance if metric == "std" else (variance**2 + moments.mean**2).sqrt()
    return NeuronValues(stats.layout, tensors)


def scores(stats: tuple[sp.ActivationStats, sp.ActivationStats], metric: Metric) -> NeuronValues:
    forget, retain = (released_importance(side, metric) for side in stats)
    return sp.score(forget, retain, eps={"mlp": 1e-3, "attn": 1e-4})


def recorded(layout: sp.Layout, metric: Metric, site: Any) -> sp.NeuronMask:
    part = layout.select(site)
    return sp.NeuronMask.from_neurons(part, {name: RECORD["neurons"][metric][name] for name in part.names})


@pytest.fixture(scope="module")
def of_all(model: Any) -> tuple[sp.ActivationStats, sp.ActivationStats]:
    return collect(model, "all")


@pytest.mark.parametrize("site", ["mlp", "attn"])
@pytest.mark.parametrize("metric", METRICS)
def test_the_masks_are_those_of_the_released_code(of_all: Any, metric: Metric, site: Any) -> None:
    mask = scores(of_all, metric).top(RECORD["fraction"], site=site)
    expected = recorded(mask.layout, metric, site)
    assert expected.count() == mask.count() == {"mlp": 61, "attn": 15}[site]
    assert mask == expected


@pytest.mark.parametrize("mode", ["mean", "median"])
@pytest.mark.parametrize("metric", METRICS)
def test_the_heads_are_those_of_the_released_code(of_all: Any, metric: Metric, mode: Any) -> None:
    values = scores(of_all, metric).heads({"mean": "median", "median": "mean"}[mode])  # type: ignore[arg-type]
    share = int(RECORD["head_fraction"] * 24) / 24
    chosen = values.top(share)
    heads = [[group.layer, head] for group in chosen.layout for head in range(6) if chosen[group.name][head * 32]]
    assert len(heads) == int(RECORD["head_fraction"] * 24) == 4
    assert heads == RECORD["heads"][metric][mode]


def test_other_positions_give_other_masks(model: Any) -> None:
    of_text = collect(model, "text")
    for metric in METRICS:
        mask = sp.score(*of_text, metric=metric).top(RECORD["fraction"], site="mlp")
        assert mask != recorded(mask.layout, metric, "mlp")
