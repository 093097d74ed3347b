"""Metric agreement: Spearman's correlation by two formulas, and rejected statistics."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from plot_factories import stats_of, traces, varied

import sp_lens as sp

pytestmark = pytest.mark.libraries

plots: Any = sp.plots  # without types, because some calls pass the wrong type


def test_cells_are_spearmans_rank_correlations() -> None:
    forget, retain = stats_of(varied(seed=1), varied(seed=2)), stats_of(varied(seed=3), varied(seed=4))
    figure: Any = sp.plots.metric_agreement(forget, retain)
    (cells,) = traces(figure)
    metrics: tuple[Any, ...] = ("freq", "abs", "rms", "std")
    assert cells.x == cells.y == metrics
    frame = pd.DataFrame({m: sp.score(forget, retain, metric=m).frame()["value"] for m in metrics})
    assert cells.z == pytest.approx(frame.corr(method="spearman").to_numpy(), rel=1e-5)
    # There are no ties, so the correlation is also 1 - 6 sum d^2 / n (n^2 - 1).
    d = np.argsort(np.argsort(frame["abs"].to_numpy())) - np.argsort(np.argsort(frame["std"].to_numpy()))
    assert cells.z[1, 3] == pytest.approx(1 - 6 * (d**2).sum() / (60 * (60**2 - 1)), rel=1e-5)
    assert cells.text[0][0] == "1.00"
    assert (cells.zmin, cells.zmax) == (-1 if (cells.z < 0).any() else 0, 1)
    assert figure.layout.xaxis.title.text == figure.layout.yaxis.title.text == "score by"


@pytest.mark.parametrize(
    ("forget", "retain", "options", "message"),
    [
        ({}, {}, {}, "forget has type dict: expected ActivationStats"),
        (*[stats_of(torch.ones(5, 4))] * 2, {}, "all 4 mlp neurons have the same score by 'freq'"),
        (*[stats_of(varied())] * 2, {"site": "attn"}, "no neurons at site 'attn'"),
    ],
)
def test_invalid_arguments_are_rejected(forget: Any, retain: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(sp.SpLensError, match=message):
        plots.metric_agreement(forget, retain, **options)
