"""Rank stability figure: medians, percentile bands, and rejected tables."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

import sp_lens as sp

pytestmark = pytest.mark.libraries


def test_lines_are_medians_and_bands_are_percentiles() -> None:
    table = pd.DataFrame(
        {
            "order": [0, 0, 1, 1, 2, 2],
            "folds": [1, 2] * 3,
            "tokens": [100.0, 220.0, 120.0, 220.0, 110.0, 220.0],
            "with_all": [0.2, 1.0, 0.4, 1.0, 0.3, 1.0],
            "with_others": [0.1, np.nan, 0.3, np.nan, 0.2, np.nan],
        }
    )
    figure: Any = sp.plots.rank_stability(table)
    band, line, _, others = figure.data
    assert list(line.x) == [110, 220]
    assert list(line.y) == pytest.approx([30, 100])
    assert list(band.y) == pytest.approx([22, 100, 100, 38])
    assert list(others.y) == pytest.approx([20])
    with pytest.raises(sp.SpLensError, match=r"expected the table of sp.rank_stability\(\), got 6 rows"):
        sp.plots.rank_stability(table.drop(columns="tokens"))
