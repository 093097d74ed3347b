"""Share of pruned neurons in each layer, step by step (not in the paper)."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from sp_lens.errors import SpLensError
from sp_lens.plots._labels import SITE_NAMES
from sp_lens.plots._layout import colour_bar, finish, make_panels, ordered_colours
from sp_lens.plots.runs._run_labels import as_runs, common_settings
from sp_lens.plots.themes import NEUTRAL

if TYPE_CHECKING:
    from sp_lens.neurons.layout import Layout
    from sp_lens.pruning.run import PruneRun
    from sp_lens.typing import Site

Integers = npt.NDArray[np.integer]


def pruned_by_layer(run: "PruneRun") -> go.Figure:
    """Plot the share of each layer's neurons that is pruned after each step of a run (not a figure of the paper).

    There is one line per layer, coloured from blue for the first layer to vermilion for the last, and a dashed line
    for the share over all layers. Algorithm 1 ranks the neurons of all layers together, so a layer can lose more than
    the overall share; its line then lies above the dashed line. There is one panel per site.

    Args:
        run: Result of `prune`.

    Returns:
        Figure with the step on the x axis and the pruned share of the layer's neurons in per cent on the y axis.

    Raises:
        SpLensError: If the argument is not a `PruneRun`, or the run pruned nothing.

    Example:
        >>> import sp_lens as sp
        >>> sp.plots.pruned_by_layer(None)
        Traceback (most recent call last):
            ...
        sp_lens.errors.SpLensError: run 'run' has type NoneType: expected a PruneRun from prune().
    """
    ((_, run),) = as_runs({"run": run}).items()
    if not hasattr(run, "mask"):
        raise SpLensError(f"a {type(run).__name__} prunes no neurons: expected a PruneRun from prune().")
    if not run.mask.count():
        raise SpLensError(f"the run pruned nothing in {run.steps} steps: expected a run that pruned neurons.")
    sites: list[Site] = sorted({group.site for group in run.layout})
    titles = [f"{SITE_NAMES[site]} neurons" if len(sites) > 1 else "" for site in sites]
    figure, _ = make_panels(titles, columns=2, gap=0)
    layers = sorted({group.layer for group in run.layout})
    colours = dict(zip(layers, ordered_colours(len(layers)), strict=True))
    for column, site in enumerate(sites, start=1):
        part: Layout = run.layout.select(site)
        counts = np.array([_pruned_counts(run, group.name) for group in part])  # [layer step]
        for group, count in zip(part, counts, strict=True):
            figure.add_trace(_line(f"layer {group.layer}", count, group.width, colours[group.layer]), 1, column)
        total = _line("all layers", counts.sum(axis=0), part.neurons, NEUTRAL)
        figure.add_trace(total.update(line={"dash": "dash", "width": 3}), 1, column)
    if len(layers) > 1:
        figure.add_trace(colour_bar(list(colours.values()), layers, "layer"), 1, 1)
    figure.update_xaxes(title_text="pruning step", range=[-0.03 * run.steps, 1.03 * run.steps], tickformat="d")
    if run.steps < 10:
        figure.update_xaxes(dtick=1)
    figure.update_yaxes(rangemode="tozero")
    figure.update_yaxes(title_text="pruned share of the layer's neurons (%)", col=1)
    figure.update_layout(height=540, showlegend=False)
    finish(
        figure,
        "Share of pruned neurons in each layer, step by step",
        f"dashed: all layers together; a layer above this line is pruned more than average; {common_settings([run])}",
    )
    return figure


def _pruned_counts(run: "PruneRun", name: str) -> Integers:
    """Return the number of pruned neurons of a group after each step, starting with step 0."""
    steps = run.pruned_at[name].cpu().numpy()
    return np.bincount(steps[steps > 0], minlength=run.steps + 1)[: run.steps + 1].cumsum()


def _line(name: str, pruned: Integers, width: int, colour: str) -> go.Scatter:
    return go.Scatter(
        x=np.arange(len(pruned)),
        y=100 * pruned / width,
        customdata=pruned,
        name=name,
        mode="lines",
        line={"color": colour, "width": 2},
        hovertemplate=(
            f"<b>{name}</b>, step %{{x}}<br>%{{y:.1f}} % pruned<br>"
            f"%{{customdata:,}} of {width:,} neurons<extra></extra>"
        ),
    )
