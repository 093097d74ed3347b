"""Figures of arXiv 2403.01267 and further figures.

Each function takes results (statistics, scores, runs), never a model, and returns a plotly figure.

| Function | Figure of the paper | What it shows |
|---|---|---|
| `tradeoff` | Figure 2 | drop in accuracy on forget data against the drop on retain data, step by step |
| `perplexity` | Figure 3 | perplexity on forget data against perplexity on retain data, step by step |
| `selectivity` | Figure 4 | largest difference between the two accuracy drops, by importance metric and site |
| `density` | Figure 5 | activation densities of many neurons, one panel per corpus |
| `neuron_density` | not in the paper | activation density of one neuron on several corpora |
| `ridgeline` | not in the paper | activation densities of chosen neurons, one row per neuron |
| `score_map` | not in the paper | scores of all neurons by layer |
| `head_map` | not in the paper | importance or score of each attention head |
| `importance_scatter` | not in the paper | importance of each neuron on forget data against retain data |
| `metric_agreement` | not in the paper | rank correlation of the scores between importance metrics |
| `rank_stability` | not in the paper | overlap of the top-scoring neurons by number of tokens |
| `specialisation_by_layer` | not in the paper | share of each layer's neurons that are specific to each corpus |
| `cross_importance` | not in the paper | importance of each corpus' specific neurons on every corpus |
| `pruned_by_layer` | not in the paper | share of pruned neurons in each layer, step by step |
| `selectivity_by` | not in the paper | selectivity against model size or number of tokens |

Importing this package imports neither torch nor a model.
"""

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
