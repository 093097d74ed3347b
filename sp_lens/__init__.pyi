"""The public names and the modules that define them. `__init__.py` reads this list, and there is no other list."""

from . import plots as plots
from . import unlearning as unlearning
from .data.corpora import load_corpora as load_corpora
from .data.images import load_images as load_images
from .data.text import load_corpus as load_corpus
from .errors import DamagedFile as DamagedFile
from .errors import SpLensError as SpLensError
from .evaluation.evaluate import Evaluation as Evaluation
from .evaluation.evaluate import evaluate as evaluate
from .evaluation.lm_eval import lm_eval as lm_eval
from .evaluation.perplexity import sliding_perplexity as sliding_perplexity
from .experiments.classifiers import TweetClassifier as TweetClassifier
from .experiments.classifiers import tweet_classifier as tweet_classifier
from .experiments.reproduce import reproduce as reproduce
from .experiments.toxicity import Toxicity as Toxicity
from .experiments.toxicity import toxicity as toxicity
from .interventions.ablation import ablate as ablate
from .interventions.ablation import ablation_hooks as ablation_hooks
from .interventions.ablation import fold_mask as fold_mask
from .interventions.ablation_effect import ablation_effect as ablation_effect
from .interventions.activation_sample import sample_activations as sample_activations
from .interventions.compaction import compact as compact
from .interventions.effect_estimate import effect_estimate as effect_estimate
from .interventions.export import export as export
from .models.hooks import layout_of as layout_of
from .models.loading import load_model as load_model
from .neurons.layout import Layout as Layout
from .neurons.layout import NeuronGroup as NeuronGroup
from .neurons.mask import NeuronMask as NeuronMask
from .neurons.values import HeadValues as HeadValues
from .neurons.values import NeuronValues as NeuronValues
from .pages.neuron_page import neuron_page as neuron_page
from .pages.page import Page as Page
from .pages.report import report as report
from .pruning.cost import CostEstimate as CostEstimate
from .pruning.cost import estimate_cost as estimate_cost
from .pruning.prune import prune as prune
from .pruning.run import PruneInterrupted as PruneInterrupted
from .pruning.run import PruneRun as PruneRun
from .scoring.rank_stability import rank_stability as rank_stability
from .scoring.score import score as score
from .scoring.significance import SpecialisationTest as SpecialisationTest
from .scoring.significance import specialisation_test as specialisation_test
from .scoring.specialisation import Specialisation as Specialisation
from .scoring.specialisation import specialisation as specialisation
from .scoring.uncertainty import Uncertainty as Uncertainty
from .scoring.uncertainty import uncertainty as uncertainty
from .statistics.activation_stats import ActivationStats as ActivationStats
from .statistics.collect import collect as collect
from .statistics.collect import collect_histograms as collect_histograms
from .statistics.top_examples import Example as Example
from .statistics.top_examples import TopExamples as TopExamples
from .statistics.top_examples import top_examples as top_examples

__all__: list[str]
__version__: str
