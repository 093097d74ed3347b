"""Results of an experiment: claims with their verdicts, tables, figures, and the file that records them."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from sp_lens.data.text import describe
from sp_lens.errors import SpLensError
from sp_lens.evaluation.intervals import Interval
from sp_lens.storage.schema import Int64, mapping_with
from sp_lens.storage.serialization import load_values, write_json

RESULT_FILE = "result.json"
# The entries of `scale` and `versions` that the results page reads.
_SCALE = mapping_with(name=str, tokens=Int64, images=Int64, steps=Int64, share=float, spare_sinks=bool | None)
_VERSIONS = mapping_with(sp_lens=str, torch=str)


@dataclass(frozen=True)
class Finding:
    """A claim and what was measured about it.

    Attributes:
        claim: The claim in words.
        measured: The measurement in words and numbers.
        holds: Whether the measurement supports the claim. None if it is undecided, because the confidence interval
            contains 0 or could not be computed.
    """

    claim: str
    measured: str
    holds: bool | None


def difference_finding(claim: str, compared: str, difference: Interval) -> Finding:
    """Judge a claim by the confidence interval of a difference of selectivities or shares.

    Args:
        claim: The claim, which says that the difference is positive.
        compared: Description of the difference, such as "abs minus random".
        difference: The difference as a share, with its confidence interval.

    Returns:
        A finding that holds if the interval is above 0, fails if it is below 0, and is open otherwise.
    """
    holds = True if difference.low > 0 else False if difference.high < 0 else None
    return Finding(claim, f"{compared}: {difference} points", holds)


@dataclass
class Outcome:
    """What the function that runs an experiment returns.

    Attributes:
        findings: Claims and what was measured about them.
        table: Rows of the table on the results page.
        figures: Figures by file name without its suffix.
        data: Data of each figure, by the same names.
        corpora: Origin of each corpus that was replaced by offline data, see `offline_origins`.
    """

    findings: list[Finding] = field(default_factory=list)
    table: list[dict[str, Any]] = field(default_factory=list)
    figures: dict[str, go.Figure] = field(default_factory=dict)
    data: dict[str, pd.DataFrame] = field(default_factory=dict)
    corpora: dict[str, str] = field(default_factory=dict)


def offline_origins(corpora: Mapping[str, Any]) -> dict[str, str]:
    """Map the name of each corpus that was read offline to a description of the data that replaced it."""
    descriptions = [describe(corpus) for corpus in corpora.values()]
    return {str(about["source"]): str(about["origin"]) for about in descriptions if about.get("offline")}


@dataclass(frozen=True)
class Reproduction:
    """The recorded result of one experiment on one model, or on several models that it compares.

    Attributes:
        experiment: Name of the experiment in `sp_lens.experiments.registry.EXPERIMENTS`.
        model: Name of the model, or the names of several models joined by " + ".
        parameters: Number of parameters of the model, or of the largest model.
        scale: Scale of the experiment: name, number of tokens, number of steps, and so on.
        corpora: Origin of each corpus that was replaced by offline data. Empty if none was replaced.
        findings: Claims and what was measured about them.
        table: Rows of the table on the results page.
        files: Names of the files of figures and data, which lie next to the result file.
        seconds: Run time in seconds, without runs that had been done before.
        versions: Versions of the packages.
    """

    experiment: str
    model: str
    parameters: Int64
    scale: Mapping[str, Any]
    corpora: Mapping[str, str]
    findings: Sequence[Finding]
    table: Sequence[Mapping[str, Any]]
    files: Sequence[str]
    seconds: float
    versions: Mapping[str, str]

    def __post_init__(self) -> None:
        if invalid := [name for name in self.files if not re.fullmatch(r"\w[\w.+-]*", name)]:
            raise SpLensError(
                f"the result names a file {invalid[0]!r}: expected names of files in the folder of the result."
            )
        if not 0 <= self.seconds < math.inf:
            raise SpLensError(f"the run time of the result is {self.seconds} seconds: expected 0 or more.")

    def save(self, path: str | Path) -> None:
        """Write the result to a JSON file."""
        write_json(path, {"kind": "Reproduction", **asdict(self)})

    @classmethod
    def load(cls, path: str | Path) -> "Reproduction":
        """Read a file that `save` wrote.

        Raises:
            SpLensError: If the file is missing or does not contain a reproduction.
        """
        return load_values(path, cls, scale=_SCALE, versions=_VERSIONS)
