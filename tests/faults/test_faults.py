"""A few tries of each fault. They run in a separate process, because a process with threads must not fork."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from faults.injection import FAULTS

TRIES = 1

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the faults need fork and /proc of Linux")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Any:
    file = tmp_path_factory.mktemp("faults") / "outcomes.json"
    command = [sys.executable, "-m", "faults", "--tries", str(TRIES), "--json", str(file)]
    tests = Path(__file__).parents[1]
    process = subprocess.run(
        command, check=False, cwd=tests, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert file.exists(), process.stdout + process.stderr
    return json.loads(file.read_text())


@pytest.mark.parametrize("fault", FAULTS)
def test_the_same_call_gives_the_result_of_an_undisturbed_run(outcomes: Any, fault: str) -> None:
    outcome = outcomes[fault]
    assert not outcome["failures"]
    assert outcome["tries"] == outcome["successes"] == TRIES
    assert outcome["lost_steps"] == 0
