"""What an experiment found, as data: its findings, its tables and where its figures are."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from sp_lens.confidence import Interval
from sp_lens.errors import SpLensError
from sp_lens.storage import read_json, write_json

RESULT = "result.json"


@dataclass(frozen=True)
class Finding:
    """A claim, and what was measured of it.

    Attributes:
        claim: in words.
        measured: in words and numbers.
        holds: whether the measurement agrees; None where it does not say (an interval that has 0 in it).
    """

    claim: str
    measured: str
    holds: bool | None


def compared(claim: str, difference: Interval, what: str) -> Finding:
    """A finding that holds when the interval of a difference is above 0, fails when below, and else is open."""
    holds = True if difference.low > 0 else False if difference.high < 0 else None
    return Finding(claim, f"{what}: {difference} points", holds)


@dataclass(frozen=True)
class Reproduction:
    """One experiment as it was run.

    Attributes:
        experiment: its name in `sp_lens.paper.EXPERIMENTS`.
        model: which was read; several, with " + ", where sizes are compared.
        parameters: of the model, the largest of several.
        scale: name, tokens, steps, ...
        corpora: name -> what of this machine stood in for it; none where all were the Hub's or are local.
        findings: what came of it.
        table: rows of numbers.
        files: of figures and data, in the folder of the result.
        seconds: that it took, with what was done before left out.
        versions: of the packages.
    """

    experiment: str
    model: str
    parameters: int
    scale: Mapping[str, Any]
    corpora: Mapping[str, str]
    findings: Sequence[Finding]
    table: Sequence[Mapping[str, Any]]
    files: Sequence[str]
    seconds: float
    versions: Mapping[str, str]

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        write_json(path, {"kind": "Reproduction", **asdict(self)})

    @classmethod
    def load(cls, path: str | Path) -> "Reproduction":
        """Read what `save` wrote.

        Raises:
            SpLensError: when the file is missing or is no reproduction.
        """
        values: Any = read_json(path)
        kind = values.pop("kind", None) if isinstance(values, dict) else None
        if kind != "Reproduction" or set(values) != {field.name for field in fields(cls)}:
            raise SpLensError(f"{path} is not a Reproduction that sp_lens saved.")
        values["findings"] = [Finding(**finding) for finding in values["findings"]]
        return cls(**values)
