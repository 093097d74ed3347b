"""The figure of selectivity against size or tokens: what it draws is what came."""

from typing import Any

import pandas as pd
import pytest

import sp_lens as sp

DATA = pd.DataFrame(
    {
        "parameters": [4_000_000, 1_000_000, 1_000_000],
        "selectivity": [9.0, 5.0, 2.0],
        "low": [7.0, 4.0, 1.0],
        "high": [12.0, 6.0, 4.0],
        "pair": ["a", "a", "b"],
    }
)


def test_a_curve_has_its_points_in_order_and_their_intervals() -> None:
    figure: Any = sp.plots.selectivity_by(DATA, x="parameters", series="pair")
    first, second = figure.data
    assert (first.name, list(first.x), list(first.y)) == ("a", [1, 4], [5, 9])
    assert (list(first.error_y.array), list(first.error_y.arrayminus)) == ([1, 3], [1, 2])
    assert (second.name, list(second.x), list(second.y)) == ("b", [1], [2])
    assert figure.layout.xaxis.type == "log"
    assert "millions" in figure.layout.xaxis.title.text


def test_a_caption_says_nothing_of_bars_where_there_are_none() -> None:
    subtitles = [
        sp.plots.selectivity_by(data, x="parameters", series="pair").layout.title.subtitle.text
        for data in (DATA, DATA.assign(low=float("nan"), high=float("nan")))
    ]
    assert ["bars" in subtitle for subtitle in subtitles] == [True, False]


def test_data_without_an_interval_is_refused() -> None:
    with pytest.raises(sp.SpLensError, match="'low'"):
        sp.plots.selectivity_by(DATA.drop(columns="low"), x="parameters", series="pair")


@pytest.mark.parametrize("data", [DATA.assign(parameters=0), DATA.head(0)], ids=["of nothing", "without rows"])
def test_what_has_no_logarithm_is_refused(data: pd.DataFrame) -> None:
    with pytest.raises(sp.SpLensError, match=r"'parameters' is .*: expected numbers above 0"):
        sp.plots.selectivity_by(data, x="parameters", series="pair")
