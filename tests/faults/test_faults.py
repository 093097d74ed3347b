"""The short form of the drill, in a process of its own: it forks, which one that has threads must not."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from faults.drill import FAULTS

TRIES = 4

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the drill forks, and asks Linux of memory"
)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Any:
    file = tmp_path_factory.mktemp("faults") / "outcomes.json"
    command = [sys.executable, "-m", "faults", "--tries", str(TRIES), "--json", str(file)]
    tests = Path(__file__).parents[1]
    done = subprocess.run(
        command, check=False, cwd=tests, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert file.exists(), done.stdout + done.stderr
    return json.loads(file.read_text())


@pytest.mark.parametrize("fault", FAULTS)
def test_the_same_call_ends_as_if_nothing_had_happened(outcomes: Any, fault: str) -> None:
    outcome = outcomes[fault]
    assert not outcome["wrong"]
    assert outcome["tried"] == outcome["survived"] == TRIES
    assert outcome["lost"] == 0
