"""Labels of runs and the settings in subtitles of the run figures."""

from typing import Any

import pytest
from plot_factories import normal, run_of, stats_with_histograms, traces_with_mode

import sp_lens as sp

pytestmark = pytest.mark.libraries


def labels_of(figure: Any) -> list[str]:
    return [trace.name for trace in traces_with_mode(figure, "markers")]


@pytest.mark.parametrize(
    ("settings", "labels"),
    [
        ([{}], ["abs"]),
        ([{"metric": "abs"}, {"metric": "std"}], ["abs", "std"]),
        ([{"site": "mlp"}, {"site": "attn", "metric": "rms"}], ["abs, mlp", "rms, attn"]),
        (
            [{}, {"metric": "random", "seed": 1}, {"metric": "random", "seed": 2}],
            ["abs", "random, seed 1", "random, seed 2"],
        ),
        ([{"unit": "neuron"}, {"unit": "head"}], ["abs, by neuron", "abs, by head"]),
        ([{"fraction": 0.02}, {"fraction": 0.05}], ["abs, 2 % per step", "abs, 5 % per step"]),
        (
            [{"recollect": True}, {"recollect": False}],
            ["abs, statistics collected at every step", "abs, statistics collected once"],
        ),
        ([{"eps": {"mlp": 0.1, "attn": 0.2}}, {"eps": 0.3}], ["abs, eps 0.1 (mlp), 0.2 (attn)", "abs, eps 0.3"]),
        ([{}, {"protected": {"neurons": 17}}], ["abs", "abs, 17 neurons protected"]),
        ([{"protected": {"neurons": 0}}], ["abs"]),
        ([{}, {}], ["abs (1)", "abs (2)"]),
    ],
)
def test_runs_are_labelled_by_the_settings_in_which_they_differ(
    settings: list[dict[str, Any]], labels: list[str]
) -> None:
    runs = [run_of(**options) for options in settings]
    assert labels_of(sp.plots.tradeoff(runs)) == labels
    assert labels_of(sp.plots.tradeoff(iter(runs))) == labels


def test_runs_on_different_corpora_are_labelled_by_them_and_share_the_subtitle() -> None:
    corpora = [{"forget": {"source": f}, "retain": {"source": r}} for f, r in (("code", "prose"), ("prose", "code"))]
    figure: Any = sp.plots.tradeoff([run_of(corpora=sources, unit="neuron") for sources in corpora])
    assert labels_of(figure) == ["abs, forget code, retain prose", "abs, forget prose, retain code"]
    subtitle = figure.layout.title.subtitle.text
    assert subtitle == "points: pruning steps; curves: moving mean; tiny, abs, mlp, by neuron, 5 % per step"


def test_subtitles_mark_offline_text() -> None:
    corpora: dict[str, dict[str, Any]] = {"forget": {"source": "toxic", "offline": True}, "retain": {"source": "civil"}}
    scores = sp.score(*(stats_with_histograms(normal(), corpora=[about]) for about in corpora.values()))
    figures: list[Any] = [sp.plots.tradeoff(run_of(corpora=corpora)), sp.plots.score_map(scores, site="attn")]
    for figure in figures:
        assert "forget toxic (offline), retain civil" in figure.layout.title.subtitle.text.replace("<br>", " ")


def test_a_run_without_settings_is_drawn() -> None:
    run = run_of()
    assert labels_of(sp.plots.tradeoff(sp.PruneRun(run.layout, run.pruned_at, run.records, {}))) == ["run"]
