"""Selectivity against model size: points, error bars and rejected tables."""

from typing import Any

import pandas as pd
import pytest

import sp_lens as sp

pytestmark = pytest.mark.libraries

DATA = pd.DataFrame(
    {
        "parameters": [4_000_000, 1_000_000, 1_000_000],
        "selectivity": [9.0, 5.0, 2.0],
        "low": [7.0, 4.0, 1.0],
        "high": [12.0, 6.0, 4.0],
        "pair": ["a", "a", "b"],
    }
)


def test_curves_are_ordered_along_x_and_have_error_bars() -> None:
    figure: Any = sp.plots.selectivity_by(DATA, x="parameters", series="pair")
    first, second = figure.data
    assert (first.name, list(first.x), list(first.y)) == ("a", [1, 4], [5, 9])
    assert (list(first.error_y.array), list(first.error_y.arrayminus)) == ([1, 3], [1, 2])
    assert (second.name, list(second.x), list(second.y)) == ("b", [1], [2])
    assert figure.layout.xaxis.type == "log"
    assert figure.layout.xaxis.title.text == "parameters of the model (millions), log scale"
    assert figure.layout.title.text == "Selectivity by parameters of the model"


def test_the_subtitle_mentions_error_bars_only_if_there_are_any() -> None:
    figures: list[Any] = [
        sp.plots.selectivity_by(data, x="parameters", series="pair")
        for data in (DATA, DATA.assign(low=float("nan"), high=float("nan")))
    ]
    assert ["bars" in figure.layout.title.subtitle.text for figure in figures] == [True, False]


def test_a_missing_column_is_rejected() -> None:
    with pytest.raises(sp.SpLensError, match="the data has no column 'low'"):
        sp.plots.selectivity_by(DATA.drop(columns="low"), x="parameters", series="pair")


@pytest.mark.parametrize("data", [DATA.assign(parameters=0), DATA.head(0)], ids=["zeros", "no rows"])
def test_values_without_a_logarithm_are_rejected(data: pd.DataFrame) -> None:
    with pytest.raises(sp.SpLensError, match=r"'parameters' is .*: expected positive numbers"):
        sp.plots.selectivity_by(data, x="parameters", series="pair")
