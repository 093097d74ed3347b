"""What an experiment found, as data: its findings, its tables and where its figures are."""

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
from sp_lens.evaluation.bootstrap import Interval
from sp_lens.storage.schema import Int64, mapping_with
from sp_lens.storage.serialization import load_values, write_json

RESULT = "result.json"
# What the page says of the scale and the versions.
_SCALE = mapping_with(name=str, tokens=Int64, images=Int64, steps=Int64, share=float, spare_sinks=bool | None)
_VERSIONS = mapping_with(sp_lens=str, torch=str)


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
        experiment: its name in `sp_lens.experiments.registry.EXPERIMENTS`.
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
    parameters: Int64
    scale: Mapping[str, Any]
    corpora: Mapping[str, str]
    findings: Sequence[Finding]
    table: Sequence[Mapping[str, Any]]
    files: Sequence[str]
    seconds: float
    versions: Mapping[str, str]

    def __post_init__(self) -> None:
        if away := [name for name in self.files if not re.fullmatch(r"\w[\w.+-]*", name)]:
            raise SpLensError(f"a file is called {away[0]!r}: expected names of files in the folder of the result.")
        if not 0 <= self.seconds < math.inf:
            raise SpLensError(f"it took {self.seconds} seconds: expected 0 or more.")

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        write_json(path, {"kind": "Reproduction", **asdict(self)})

    @classmethod
    def load(cls, path: str | Path) -> "Reproduction":
        """Read what `save` wrote.

        Raises:
            SpLensError: when the file is missing or is no reproduction.
        """
        return load_values(path, cls, scale=_SCALE, versions=_VERSIONS)


@dataclass
class Found:
    """Filled by the function that runs an experiment.

    Attributes:
        findings: claims, and what was measured of them.
        table: rows of numbers, as the page has them.
        figures: by the name of their files.
        data: behind each figure.
        corpora: name -> what stood in for it (`origins`).
    """

    findings: list[Finding] = field(default_factory=list)
    table: list[dict[str, Any]] = field(default_factory=list)
    figures: dict[str, go.Figure] = field(default_factory=dict)
    data: dict[str, pd.DataFrame] = field(default_factory=dict)
    corpora: dict[str, str] = field(default_factory=dict)


def origins(corpora: Mapping[str, Any]) -> dict[str, str]:
    """What stood in for the Hub's, of those of the corpora for which something did: name -> what it really is."""
    described = [describe(corpus) for corpus in corpora.values()]
    return {str(about["source"]): str(about["origin"]) for about in described if about.get("offline")}
