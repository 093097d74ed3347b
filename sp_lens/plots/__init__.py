"""The figures of arXiv 2403.01267: statistics or runs in, a plotly figure out. No torch and no model in here."""

from sp_lens.plots.distributions.density import density
from sp_lens.plots.distributions.neuron_density import neuron_density
from sp_lens.plots.distributions.ridgeline import ridgeline
from sp_lens.plots.neurons.cross_importance import cross_importance
from sp_lens.plots.neurons.head_map import head_map
from sp_lens.plots.neurons.importance_scatter import importance_scatter
from sp_lens.plots.neurons.metric_agreement import metric_agreement
from sp_lens.plots.neurons.rank_stability import rank_stability
from sp_lens.plots.neurons.score_map import score_map
from sp_lens.plots.neurons.specialisation_by_layer import specialisation_by_layer
from sp_lens.plots.runs.perplexity import perplexity
from sp_lens.plots.runs.pruned_by_layer import pruned_by_layer
from sp_lens.plots.runs.selectivity import selectivity
from sp_lens.plots.runs.selectivity_by import selectivity_by
from sp_lens.plots.runs.tradeoff import tradeoff
from sp_lens.plots.themes import TEMPLATES, for_paper

__all__ = [
    "TEMPLATES",
    "cross_importance",
    "density",
    "for_paper",
    "head_map",
    "importance_scatter",
    "metric_agreement",
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
