"""The drill: `python -m faults` in tests/, the long form or a short one; as a table, or as JSON for the tests."""

import argparse
import json
import platform
import random
import sys
import tempfile
from dataclasses import asdict
from datetime import date
from pathlib import Path

from tqdm import tqdm

from faults.drill import FAULTS, Outcome
from faults.scene import Scene
from sp_lens.storage.serialization import versions

PAGE = """# Faults

A run of hours has to survive what befalls it. `make test-faults` lets it happen to a pruning run of four steps on the
bundled model, again and again, then makes the same call once more, and holds mask and history, in memory and on disk,
against those of a run that was left alone, to the last bit; it wrote this table. A short form is among the tests.

{machine}

| fault | tried | the same call ended alike | finished steps lost | what the user was told, for instance |
|---|---|---|---|---|
{rows}

Faults come at random moments (seed {seed}): of the run's time, of its operations on files, or of the bytes of a
checkpoint. "Alike" is bit by bit, but for the batch that memory does not hold: numbers that are added up in smaller
parts are rounded otherwise, and agree to 1e-5 of their size.
"""


def main() -> int:
    """Exit code 1 when something was lost, or ended otherwise."""
    parser = argparse.ArgumentParser("python -m faults", description=__doc__)
    parser.add_argument("--tries", type=int, help="of each fault, at most")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    parser.add_argument("--only", choices=list(FAULTS), nargs="+", default=list(FAULTS), help="some of them")
    parser.add_argument("--json", type=Path, help="where to write what came of it")
    parser.add_argument("--page", type=Path, help="the page to write it as a table to")
    arguments = parser.parse_args()
    outcomes: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene.made(Path(folder))
        _ = scene.undisturbed, scene.seconds
        for name in tqdm(arguments.only, desc="faults"):
            fault, tries = FAULTS[name]
            tries = min(tries, arguments.tries or tries)
            outcomes[name] = fault(scene, random.Random(arguments.seed), tries)
            tqdm.write(f"{name}: {asdict(outcomes[name])}")
    if arguments.json:
        arguments.json.write_text(json.dumps({name: asdict(one) for name, one in outcomes.items()}))
    if arguments.page:
        arguments.page.write_text(_page(outcomes, arguments.seed))
    return int(any(one.wrong for one in outcomes.values()))


def _page(outcomes: dict[str, Outcome], seed: int) -> str:
    system = f"{platform.system()}, Python {platform.python_version()}, " + ", ".join(
        f"{name} {number}" for name, number in versions().items()
    )
    rows = "\n".join(
        f"| {one.fault} | {one.tried} | {one.survived} | {one.lost} | {_cell(one.told)} |" for one in outcomes.values()
    )
    return PAGE.format(machine=f"{date.today()}: {system}.", rows=rows, seed=seed)


def _cell(told: str) -> str:
    """Words as a cell of a table, the folder of the drill left out."""
    words = told.split("\n", maxsplit=1)[0].replace("|", "\\|")
    return " ".join(f"`{Path(word).name}`" if word.startswith("/") else word for word in words.split()) or "-"


if __name__ == "__main__":
    sys.exit(main())
