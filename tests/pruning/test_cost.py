"""Compare the estimated cost of a run with the passes and tokens that the run then needs."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from factories import random_rows, tiny_bridge

import sp_lens as sp
from sp_lens.cli.__main__ import main
from sp_lens.models.plain_model import mark_verified

pytestmark = pytest.mark.model

ROWS = 8


@pytest.fixture(scope="module")
def corpora() -> dict[str, Any]:
    """Four corpora with the same number of rows and different tokens."""
    return {
        name: random_rows(ROWS, seed=seed)
        for seed, name in enumerate(("forget", "retain", "eval_forget", "eval_retain"))
    }


def size(corpus: Any) -> int:
    return sum(len(row) for row in corpus)


@contextmanager
def counted(model: Any) -> Iterator[dict[str, int]]:
    """Count the calls of the first block, and the tokens of these calls."""
    count = {"calls": 0, "tokens": 0}

    def count_call(module: Any, inputs: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        count["calls"] += 1
        count["tokens"] += hidden.shape[0] * hidden.shape[1]

    handle = model.blocks[0].register_forward_hook(count_call)
    try:
        yield count
    finally:
        handle.remove()


@pytest.mark.parametrize(
    ("settings", "others"),
    [
        ({"steps": 3}, {}),
        ({"steps": 2, "metric": "std"}, {"site": "attn", "unit": "head", "fraction": 0.2}),
        ({"steps": 4, "recollect": False}, {"site": "both"}),
        ({"steps": 2, "metric": "random"}, {}),
        ({"steps": 2, "metric": "random", "recollect": False}, {}),
    ],
)
def test_passes_and_tokens_are_those_of_the_run(
    opt: Any, corpora: dict[str, Any], settings: dict[str, Any], others: dict[str, Any]
) -> None:
    cost = sp.estimate_cost(opt, **corpora, **settings)
    with counted(opt) as count:  # one row per batch, so there is no padding
        sp.prune(opt, **corpora, **settings, **{"fraction": 0.1, **others}, batch_tokens=1, progress=False)
    assert cost.passes == count["calls"] / ROWS
    assert cost.tokens == count["tokens"]
    assert cost.corpora == (2 if settings.get("metric") == "random" else 4)


def test_a_collection_is_one_pass(opt: Any, corpora: dict[str, Any]) -> None:
    cost = sp.estimate_cost(opt, corpora["forget"])
    assert (cost.passes, cost.corpora, cost.tokens) == (1, 1, size(corpora["forget"]))


def test_image_tokens_are_counted_exactly() -> None:
    """They are exact although only a few images of a dataset are read."""
    model = tiny_bridge("vit")
    mark_verified(model)  # the comparison with transformers, once for a model, is not in the estimate
    config = model.original_model.config
    pixels = torch.randn(3, config.num_channels, config.image_size, config.image_size)
    images = [{"pixel_values": pixels[index % 3], "labels": index % 2} for index in range(600)]
    with counted(model) as count:
        sp.collect(model, images, progress=False)
    for corpus in (
        images,
        Dataset.from_list([{**image, "pixel_values": image["pixel_values"].tolist()} for image in images]),
    ):
        assert sp.estimate_cost(model, corpus).tokens == count["tokens"]


def test_seconds_use_the_speed_of_each_kind_of_pass(
    opt: Any, corpora: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 0.0

    def takes(seconds_per_token: float) -> Any:
        def run(model: Any, corpus: Any, **_: Any) -> None:
            nonlocal clock
            clock += seconds_per_token * size(corpus)

        return run

    monkeypatch.setattr("time.perf_counter", lambda: clock)
    monkeypatch.setattr("sp_lens.pruning.cost.collect", takes(2))
    monkeypatch.setattr("sp_lens.pruning.cost.evaluate", takes(3))
    collected, evaluated = (size(corpora[side + "forget"]) + size(corpora[side + "retain"]) for side in ("", "eval_"))
    assert sp.estimate_cost(opt, **corpora, steps=10).seconds == pytest.approx(10 * 2 * collected + 11 * 3 * evaluated)
    longer = {**corpora, "eval_forget": 5 * corpora["eval_forget"]}
    more = 11 * 3 * 4 * size(corpora["eval_forget"])
    assert sp.estimate_cost(opt, **longer, steps=10).seconds == pytest.approx(
        10 * 2 * collected + 11 * 3 * evaluated + more
    )


def test_the_memory_estimate_includes_statistics_and_logits(opt: Any, corpora: dict[str, Any]) -> None:
    cost = sp.estimate_cost(opt, corpora["forget"])
    assert cost.model_bytes == opt.original_model.get_memory_footprint()
    stats = sp.collect(opt, corpora["forget"], progress=False)
    assert cost.other_bytes > sum(t.nbytes for moments in stats.values() for t in moments.tensors().values())
    many = {name: 300 * corpus for name, corpus in corpora.items()}
    small, large = (sp.estimate_cost(opt, **many, batch_tokens=tokens).other_bytes for tokens in (1024, 8192))
    assert 7 < large / small < 8  # not exactly 8, because of the statistics
    longest = max(len(row) for corpus in corpora.values() for row in corpus)
    one_row = longest * (4 + 1 + 8)  # float32 logits, booleans of a comparison, and the integers that sum them
    assert large > opt.cfg.d_vocab * (8192 * 4 + one_row)


def test_invalid_input_raises(opt: Any, corpora: dict[str, Any]) -> None:
    with pytest.raises(sp.SpLensError, match="missing eval_forget and eval_retain: pass the four corpora of prune"):
        sp.estimate_cost(opt, corpora["forget"], corpora["retain"])
    with pytest.raises(sp.SpLensError, match="'forget' is an iterator"):
        sp.estimate_cost(opt, iter(corpora["forget"]))
    with pytest.raises(sp.SpLensError, match="steps=0"):
        sp.estimate_cost(opt, **corpora, steps=0)
    with pytest.raises(sp.SpLensError, match="unknown metric"):
        sp.estimate_cost(opt, **corpora, metric="l1")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("prune --forget code --retain prose --steps 4 --one-shot", "12 passes over 4 corpora"),
        ("collect --corpus code --bins 10", "2 passes over 1 corpus"),
    ],
)
def test_the_command_line_prints_the_estimate_and_stops(
    command: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["--model", "demo", "--offline", "--tokens", "600", "--estimate", "--out", str(out)]
    assert main([*command.split(), *arguments]) == 0
    assert capsys.readouterr().out.startswith(expected)
    assert not out.exists()
