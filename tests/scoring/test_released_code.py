"""Compare masks with those that the released code, `taker` 1.0.1, computed from the same weights and token ids.

`benchmarks/taker_masks.py` ran `taker` and wrote taker_masks.json. The functions that follow its formulas are those of
the page "Masks of the released code", and the numbers in this file are those of the page "The method".
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import cells
import pytest
import torch
from factories import DEMO_FOLDER

import sp_lens as sp
from sp_lens.typing import METRICS, Metric, Positions, Site

RECORD = json.loads(Path(__file__).with_name("taker_masks.json").read_text("utf-8"))
PAGES = Path(__file__).parents[2] / "docs" / "pages"
HOW_TO = PAGES / "how-to" / "released-code.md"
METHOD = (PAGES / "method.md").read_text("utf-8")
# The number of neurons of the top 2 % that the defaults of sp_lens share with the released code.
SHARED = {"abs": (59, 13), "freq": (59, 15), "rms": (31, 2), "std": (27, 14)}

Pair = tuple[sp.ActivationStats, sp.ActivationStats]

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """The functions of the how-to page."""
    return cells.run(cells.blocks(HOW_TO.read_text("utf-8"), "python"), str(HOW_TO))


def collect(positions: Positions) -> Pair:
    """Return the statistics of the forget and of the retain rows of the record, which all start with BOS."""
    model = sp.load_model("demo", device="cpu")
    rows = {side: [torch.tensor(row) for row in RECORD["rows"][side]] for side in ("forget", "retain")}
    forget, retain = (sp.collect(model, rows[side], positions=positions, progress=False) for side in rows)
    return forget, retain


@pytest.fixture(scope="module")
def of_all() -> Pair:
    return collect("all")


@pytest.fixture(scope="module")
def of_text() -> Pair:
    return collect("text")


def recorded(layout: sp.Layout, metric: Metric, site: Site) -> sp.NeuronMask:
    part = layout.select(site)
    return sp.NeuronMask.from_neurons(part, {name: RECORD["neurons"][metric][name] for name in part.names})


def test_the_record_is_of_the_bundled_weights() -> None:
    weights = (DEMO_FOLDER / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == RECORD["weights_sha256"], "run benchmarks/taker_masks.py again"
    assert RECORD["versions"]["taker"] == "1.0.1"
    assert sum(len(row) for rows in RECORD["rows"].values() for row in rows) == 3359


@pytest.mark.parametrize("site", ["mlp", "attn"])
@pytest.mark.parametrize("metric", METRICS)
def test_the_masks_are_those_of_the_released_code(page: Any, of_all: Pair, metric: Metric, site: Site) -> None:
    masks = [page["released_top"](page["released_scores"](*of_all, metric), RECORD["fraction"], site)]
    if metric in ("abs", "freq"):  # the formulas are those of the paper
        masks.append(sp.score(*of_all, metric=metric).top(RECORD["fraction"], site=site))
    expected = recorded(of_all[0].layout, metric, site)
    assert expected.count() == {"mlp": 61, "attn": 15}[site]
    assert all(mask == expected for mask in masks)


@pytest.mark.parametrize("mode", ["mean", "median"])
@pytest.mark.parametrize("metric", METRICS)
def test_the_heads_are_those_of_the_released_code(page: Any, of_all: Pair, metric: Metric, mode: str) -> None:
    mask = page["released_heads"](page["released_scores"](*of_all, metric), RECORD["head_fraction"], mode)
    heads = [[g.layer, head] for g in mask.layout for head in range(g.heads) if mask[g.name][head * g.d_head]]
    assert len(heads) == int(RECORD["head_fraction"] * 24) == 4
    assert heads == RECORD["heads"][metric][mode]


def test_the_number_of_neurons_is_truncated(page: Any, of_all: Pair) -> None:
    scores = sp.score(*of_all)
    assert page["released_top"](scores, 0.0195, "mlp").count() == 59  # of 59.9
    assert scores.top(0.0195, site="mlp").count() == 60


@pytest.mark.parametrize("metric", METRICS)
def test_the_method_page_states_how_many_neurons_the_defaults_share(of_text: Pair, metric: Metric) -> None:
    shared = []
    for site in ("mlp", "attn"):
        mask = sp.score(*of_text, metric=metric).top(RECORD["fraction"], site=site)
        expected = recorded(mask.layout, metric, site)
        shared.append(sum(int((mask[name] & expected[name]).sum()) for name in mask))
    assert shared == pytest.approx(SHARED[metric], abs=1)  # rounding differs between versions of torch
    (row,) = [line for line in METHOD.splitlines() if line.startswith(f"| `{metric}`") and line.endswith("| all |")]
    assert "| {} of 61 | {} of 15 |".format(*SHARED[metric]) in row
