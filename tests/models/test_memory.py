"""Test batches that do not fit into memory, and the reuse of freed memory.

A hook simulates a GPU that runs out of memory with more than a given number of rows.
"""

import logging
import subprocess
import sys
from typing import Any

import pytest
import torch
from factories import little_memory, same, tiny_bridge

import sp_lens as sp
from sp_lens.cli.arguments import prepare_process

ROWS = 3


def texts(model: Any) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(5, model.cfg.d_vocab, (1, n), generator=generator) for n in (9, 20, 14, 7, 20, 11, 5, 17)]


@pytest.mark.model
def test_collecting_in_halves_comes_to_the_same(opt: Any, caplog: pytest.LogCaptureFixture) -> None:
    corpus = texts(opt)
    edges = torch.linspace(-3, 3, 13)
    whole = sp.collect(opt, corpus, edges=edges, folds=5, progress=False)
    with little_memory(opt, ROWS) as seen, caplog.at_level(logging.WARNING, "sp_lens"):
        halved = sp.collect(opt, corpus, edges=edges, folds=5, progress=False)
    assert seen[0] == 8
    assert seen[1] == 4
    assert max(seen[2:]) <= ROWS
    assert "out of memory with 160 tokens at once, going on with half" in caplog.text
    same(halved, whole)
    for one, other in zip(halved.folds, whole.folds, strict=True):
        same(one, other)


@pytest.mark.model
def test_later_batches_are_small_from_the_start(opt: Any) -> None:
    corpus = [torch.arange(2, 22).repeat(8, 1) for _ in range(3)]
    with little_memory(opt, ROWS) as seen:
        sp.collect(opt, corpus, batch_tokens=160, progress=False)
    assert seen == [8, 4, 2, 2, 2, 2, *[2] * 8]


@pytest.mark.model
def test_evaluating_in_halves_comes_to_the_same(opt: Any) -> None:
    corpus = texts(opt)
    whole = sp.evaluate(opt, corpus, progress=False)
    with little_memory(opt, ROWS):
        halved = sp.evaluate(opt, corpus, progress=False)
    assert (halved.tokens, halved.top1, halved.top10) == (whole.tokens, whole.top1, whole.top10)
    assert halved.loss == pytest.approx(whole.loss, rel=1e-6)


@pytest.mark.model
def test_a_masked_model_is_asked_for_the_same_tokens() -> None:
    bert = tiny_bridge("bert")
    corpus = texts(bert)
    whole = sp.evaluate(bert, corpus, progress=False)
    with little_memory(bert, ROWS):
        halved = sp.evaluate(bert, corpus, progress=False)
    assert (halved.tokens, halved.top1) == (whole.tokens, whole.top1)
    assert halved.loss == pytest.approx(whole.loss, rel=1e-5)


@pytest.mark.model
def test_a_row_that_does_not_fit_is_named(opt: Any) -> None:
    with little_memory(opt, 0), pytest.raises(sp.SpLensError, match="memory does not hold a row of 20 tokens"):
        sp.collect(opt, texts(opt), progress=False)


@pytest.mark.model
def test_another_error_is_not_taken_for_it(opt: Any) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("shapes do not agree")

    handle = opt.blocks[0].register_forward_pre_hook(fails)
    try:
        with pytest.raises(RuntimeError, match="shapes do not agree"):
            sp.evaluate(opt, texts(opt), progress=False)
    finally:
        handle.remove()


_FAULTS = """
import resource, torch
from sp_lens.models.memory import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(10_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(); before = faults(); keep_freed_memory(); faults(); print(before, faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc exists only on Linux")
def test_freed_memory_is_reused() -> None:
    process = subprocess.run([sys.executable, "-c", _FAULTS], check=True, capture_output=True, text=True)
    before, after = map(int, process.stdout.split())
    assert after < before / 10


@pytest.mark.model
def test_only_the_command_line_changes_the_allocator(opt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr("sp_lens.models.memory.keep_freed_memory", lambda: calls.append("keep_freed_memory"))
    sp.collect(opt, texts(opt), progress=False)
    assert calls == []
    prepare_process()
    assert calls == ["keep_freed_memory"]
