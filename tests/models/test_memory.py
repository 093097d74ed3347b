"""Freed memory is kept in the process of the command line, measured in page faults."""

import subprocess
import sys
from typing import Any

import pytest
from factories import random_rows

import sp_lens as sp
from sp_lens.cli.arguments import prepare_process

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
    sp.collect(opt, random_rows(2), progress=False)
    assert calls == []
    prepare_process()
    assert calls == ["keep_freed_memory"]
