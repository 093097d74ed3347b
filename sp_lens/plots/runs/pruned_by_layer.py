"""In which layers the pruned neurons are, step by step."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from sp_lens.errors import SpLensError
from sp_lens.plots._shared import SITE_NAMES, as_runs, colour_bar, common_settings, ordered_colours, panels, set_title
from sp_lens.plots.themes import NEUTRAL

if TYPE_CHECKING:
    from sp_lens.neurons.layout import Layout
    from sp_lens.pruning.run import PruneRun
    from sp_lens.typing import Site

Floats = npt.NDArray[np.floating]


def pruned_by_layer(run: "PruneRun") -> go.Figure:
    """The share of each layer's neurons that is pruned, over the steps of a run (a figure of ours).

    One line a layer, dark for the first and light for the last; the dashed line is the share of all
    layers together. The ranking is over all layers, so nothing keeps a layer from losing more than its
    share: those are the lines above the dashed one. One panel a site.

    Args:
        run: what `prune` returns.

    Returns:
        x is the step, y the pruned share of the layer's neurons in per cent.

    Raises:
        SpLensError: for anything that is no `PruneRun`, or a run that pruned nothing.

    Example:
        >>> import sp_lens as sp
        >>> sp.plots.pruned_by_layer(None)
        Traceback (most recent call last):
            ...
        sp_lens.errors.SpLensError: run 'run' is a NoneType: expected a PruneRun, as prune() returns.
    """
    ((_, run),) = as_runs({"run": run}).items()
    if not hasattr(run, "mask"):
        raise SpLensError(f"a {type(run).__name__} prunes no neurons: expected a PruneRun, as prune() returns.")
    if not run.mask.count():
        raise SpLensError(f"the run pruned nothing in {run.steps} steps: expected a step that pruned neurons.")
    sites: list[Site] = sorted({group.site for group in run.layout})
    figure, _ = panels([f"{SITE_NAMES[site]} neurons" if len(sites) > 1 else "" for site in sites], columns=2, gap=0)
    layers = sorted({group.layer for group in run.layout})
    colours = dict(zip(layers, ordered_colours(len(layers)), strict=True))
    for column, site in enumerate(sites, start=1):
        part: Layout = run.layout.select(site)
        counts = np.array([_pruned(run, group.name) for group in part])  # [layer step]
        for group, count in zip(part, counts, strict=True):
            figure.add_trace(_line(f"layer {group.layer}", count, group.width, colours[group.layer]), 1, column)
        whole = _line("all layers", counts.sum(axis=0), part.neurons, NEUTRAL)
        figure.add_trace(whole.update(line={"dash": "dash", "width": 3}), 1, column)
    if len(layers) > 1:
        figure.add_trace(colour_bar(list(colours.values()), layers, "layer"), 1, 1)
    figure.update_xaxes(title_text="pruning step", range=[-0.03 * run.steps, 1.03 * run.steps], tickformat="d")
    if run.steps < 10:
        figure.update_xaxes(dtick=1)
    figure.update_yaxes(rangemode="tozero")
    figure.update_yaxes(title_text="pruned share of the layer's neurons (%)", col=1)
    figure.update_layout(height=540, showlegend=False)
    set_title(
        figure,
        "Pruned neurons by layer, step by step",
        f"dashed: all layers together, layers above it lose more than their share; {common_settings([run])}",
    )
    return figure


def _pruned(run: "PruneRun", name: str) -> Floats:
    """How many neurons of a group were pruned after each step, step 0 among them."""
    at = run.pruned_at[name].cpu().numpy()
    return np.bincount(at[at > 0], minlength=run.steps + 1)[: run.steps + 1].cumsum()


def _line(name: str, pruned: Floats, width: int, colour: str) -> go.Scatter:
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
