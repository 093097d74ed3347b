"""The figures of arXiv 2403.01267: statistics or runs in, a plotly figure out. No torch and no model in here."""

from sp_lens.plots._page import Page
from sp_lens.plots.cross_importance import cross_importance
from sp_lens.plots.density import density
from sp_lens.plots.head_map import head_map
from sp_lens.plots.importance_scatter import importance_scatter
from sp_lens.plots.metric_agreement import metric_agreement
from sp_lens.plots.neuron_card import neuron_card
from sp_lens.plots.neuron_density import neuron_density
from sp_lens.plots.perplexity import perplexity
from sp_lens.plots.pruned_by_layer import pruned_by_layer
from sp_lens.plots.rank_stability import rank_stability
from sp_lens.plots.ridgeline import ridgeline
from sp_lens.plots.score_map import score_map
from sp_lens.plots.selectivity import selectivity
from sp_lens.plots.selectivity_by import selectivity_by
from sp_lens.plots.specialisation_by_layer import specialisation_by_layer
from sp_lens.plots.templates import TEMPLATES, for_paper
from sp_lens.plots.tradeoff import tradeoff

__all__ = [
    "TEMPLATES",
    "Page",
    "cross_importance",
    "density",
    "for_paper",
    "head_map",
    "importance_scatter",
    "metric_agreement",
    "neuron_card",
    "neuron_density",
    "perplexity",
    "pruned_by_layer",
    "rank_stability",
    "ridgeline",
    "score_map",
    "selectivity",
    "selectivity_by",
    "specialisation_by_layer",
    "tradeoff",
]
