"""What an experiment gives back before it is written: findings, tables, figures and their data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from sp_lens.corpus import describe
from sp_lens.reproduction.result import Finding


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
