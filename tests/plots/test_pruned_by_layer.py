"""Share of pruned neurons by layer: counts of every step, panels, size, and rejected arguments."""

from typing import Any

import pytest
import torch
from plot_factories import MLP_LAYOUT, megabytes, pruned_at_steps, run_of, traces

import sp_lens as sp
from sp_lens.neurons.layout import Layout, NeuronGroup

pytestmark = pytest.mark.libraries


def test_lines_count_the_mask_of_each_step() -> None:
    layout = Layout((NeuronGroup("mlp", 1, 4), NeuronGroup("mlp", 3, 5)))
    steps = dict(zip(layout.names, [pruned_at_steps(1, 1, 0, 2), pruned_at_steps(0, 0, 2, 0, 0)], strict=True))
    run = run_of(layout=layout, pruned_at=steps)
    figure: Any = sp.plots.pruned_by_layer(run)
    first, second, total, _colour_bar = traces(figure)
    assert [first.name, second.name, total.name] == ["layer 1", "layer 3", "all layers"]
    for line, name in ((first, layout.names[0]), (second, layout.names[1])):
        assert list(line.x) == [0, 1, 2]
        shares = [float(run.mask_at(step)[name].double().mean()) * 100 for step in range(3)]
        assert line.y == pytest.approx(shares)
    assert total.y == pytest.approx([run.mask_at(step).share() * 100 for step in range(3)])
    assert total.customdata.tolist() == [0, 2, 4]
    assert "%{y:.1f} % pruned<br>%{customdata:,} of 9 neurons" in total.hovertemplate
    assert total.line.dash == "dash"
    assert first.line.color != second.line.color
    assert figure.layout.xaxis.title.text == "pruning step"
    assert figure.layout.yaxis.title.text == "pruned share of the layer's neurons (%)"


def test_each_site_has_a_panel() -> None:
    layout = Layout((NeuronGroup("attn", 0, 4, heads=2), NeuronGroup("mlp", 0, 2)))
    steps = dict(zip(layout.names, [pruned_at_steps(0, 0, 0, 1), pruned_at_steps(1, 0)], strict=True))
    run = run_of([0.5, 0.4], [0.5, 0.4], layout=layout, pruned_at=steps, site="both")
    figure: Any = sp.plots.pruned_by_layer(run)
    assert [note.text for note in figure.layout.annotations] == ["attention pre-out neurons", "MLP neurons"]
    assert [list(line.y) for line in traces(figure)] == [[0, 25]] * 2 + [[0, 50]] * 2
    assert [line.xaxis for line in traces(figure)] == ["x", "x", "x2", "x2"]


def test_a_run_of_one_step_has_a_line_per_layer() -> None:
    steps = {name: pruned_at_steps(*[0, 1] * 10) for name in MLP_LAYOUT.names}
    figure = sp.plots.pruned_by_layer(run_of([0.5, 0.3], [0.5, 0.4], pruned_at=steps))
    assert [list(trace.y) for trace in traces(figure) if trace.mode == "lines"] == [[0, 50]] * 3


def test_a_run_of_80_layers_makes_a_small_figure() -> None:
    layout = Layout(tuple(NeuronGroup("mlp", layer, 16384) for layer in range(80)))
    steps = {name: torch.arange(16384, dtype=torch.int32) % 60 for name in layout.names}
    steps = {name: torch.where(step > 50, 0, step) for name, step in steps.items()}
    run = run_of([0.5] * 51, [0.5] * 51, layout=layout, pruned_at=steps)
    assert megabytes(sp.plots.pruned_by_layer(run)) < 1


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (run_of(), "the run pruned nothing in 2 steps"),
        (run_of([0.5], [0.5]), "the run pruned nothing in 0 steps"),
        ([run_of()], "has type list: expected a PruneRun"),
        (run_of().mask, "has type NeuronMask: expected a PruneRun"),
    ],
)
def test_invalid_runs_are_rejected(run: Any, message: str) -> None:
    with pytest.raises(sp.SpLensError, match=message):
        sp.plots.pruned_by_layer(run)
