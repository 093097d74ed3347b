"""The figures of arXiv 2403.01267: statistics or runs in, a plotly figure out. No torch and no model in here."""

from sp_lens.plots._page import Page
from sp_lens.plots.density import density
from sp_lens.plots.head_map import head_map
from sp_lens.plots.importance_scatter import importance_scatter
from sp_lens.plots.metric_agreement import metric_agreement
from sp_lens.plots.neuron_card import neuron_card
from sp_lens.plots.perplexity import perplexity
from sp_lens.plots.pruned_by_layer import pruned_by_layer
from sp_lens.plots.score_map import score_map
from sp_lens.plots.selectivity import selectivity
from sp_lens.plots.tradeoff import tradeoff

__all__ = [
    "Page",
    "density",
    "head_map",
    "importance_scatter",
    "metric_agreement",
    "neuron_card",
    "perplexity",
    "pruned_by_layer",
    "score_map",
    "selectivity",
    "tradeoff",
]
