"""Inject all faults and write the results as a page of the documentation, or as JSON for the tests."""

import argparse
import json
import platform
import random
import re
import sys
import tempfile
from dataclasses import asdict
from datetime import date
from pathlib import Path

from tqdm import tqdm

from faults.injection import FAULTS, Outcome
from faults.run_under_test import RunUnderTest
from sp_lens.storage.serialization import versions

PAGE = """# Interrupted runs

A pruning run can take hours, so it has to survive crashes. `make test-faults` injects faults into a run of four steps
on the bundled model, then makes the same call again and compares the mask and the history, in memory and on disk, with
those of an undisturbed run, bit for bit. It generated this table. A short version is part of the tests.

{machine}

| fault | tries | same result after the same call | finished steps lost | example of the message to the user |
|---|---|---|---|---|
{rows}

Faults are injected at random (seed {seed}): at a random time of the run, before a random file operation, or into a
random byte of a checkpoint. "Same result" means identical bits, except for a batch that does not fit into memory: sums
over smaller parts are rounded differently, and agree to a relative difference of 1e-5.
"""


def main() -> int:
    """Return exit code 1 if a step was lost or a result differed."""
    parser = argparse.ArgumentParser("python -m faults", description=__doc__)
    parser.add_argument("--tries", type=int, help="maximum number of tries of each fault")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random faults (default: %(default)s)")
    parser.add_argument("--only", choices=list(FAULTS), nargs="+", default=list(FAULTS), help="faults to inject")
    parser.add_argument("--json", type=Path, help="file for the results as JSON")
    parser.add_argument("--page", type=Path, help="file for the results as a page of the documentation")
    arguments = parser.parse_args()
    outcomes: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory() as folder:
        run = RunUnderTest.create(Path(folder))
        _ = run.reference, run.seconds
        for name in tqdm(arguments.only, desc="faults"):
            inject, tries = FAULTS[name]
            outcomes[name] = inject(run, random.Random(arguments.seed), min(tries, arguments.tries or tries))
            tqdm.write(f"{name}: {asdict(outcomes[name])}")
    if arguments.json:
        arguments.json.write_text(json.dumps({name: asdict(outcome) for name, outcome in outcomes.items()}))
    if arguments.page:
        arguments.page.write_text(_page(outcomes, arguments.seed))
    return int(any(outcome.failures for outcome in outcomes.values()))


def _page(outcomes: dict[str, Outcome], seed: int) -> str:
    system = f"{platform.system()}, Python {platform.python_version()}, " + ", ".join(
        f"{name} {version}" for name, version in versions().items()
    )
    rows = "\n".join(
        f"| {outcome.fault} | {outcome.tries} | {outcome.successes} | {outcome.lost_steps} | {_cell(outcome.message)} |"
        for outcome in outcomes.values()
    )
    return PAGE.format(machine=f"{date.today()}: {system}.", rows=rows, seed=seed)


def _cell(message: str) -> str:
    """Return the first line of a message as a cell of a table, with paths shortened to file names."""
    line = message.split("\n", maxsplit=1)[0].replace("|", "\\|")
    return re.sub(r"/\S*/(\S+?)([.,:]?)(?=\s|$)", r"`\1`\2", line) or "-"


if __name__ == "__main__":
    sys.exit(main())
