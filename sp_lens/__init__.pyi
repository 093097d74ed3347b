"""The public names and the modules that they are of. There is no other list: `__init__.py` reads this one."""

from sp_lens import baselines as baselines
from sp_lens import plots as plots
from sp_lens.ablation import ablate as ablate
from sp_lens.ablation import ablation_hooks as ablation_hooks
from sp_lens.ablation import fold_mask as fold_mask
from sp_lens.ablation import sample_activations as sample_activations
from sp_lens.classifiers import TweetClassifier as TweetClassifier
from sp_lens.classifiers import tweet_classifier as tweet_classifier
from sp_lens.collect import collect as collect
from sp_lens.collect import collect_histograms as collect_histograms
from sp_lens.compaction import compact as compact
from sp_lens.corpus import load_corpora as load_corpora
from sp_lens.corpus import load_corpus as load_corpus
from sp_lens.effects import ablation_effect as ablation_effect
from sp_lens.errors import SpLensError as SpLensError
from sp_lens.estimate import Estimate as Estimate
from sp_lens.estimate import estimate as estimate
from sp_lens.evaluate import Evaluation as Evaluation
from sp_lens.evaluate import evaluate as evaluate
from sp_lens.examples import Example as Example
from sp_lens.examples import TopExamples as TopExamples
from sp_lens.examples import top_examples as top_examples
from sp_lens.export import export as export
from sp_lens.harness import lm_eval as lm_eval
from sp_lens.images import load_images as load_images
from sp_lens.importance import head_mask as head_mask
from sp_lens.importance import score as score
from sp_lens.membership import MembershipInference as MembershipInference
from sp_lens.membership import membership_inference as membership_inference
from sp_lens.models import load_model as load_model
from sp_lens.neurons import HeadValues as HeadValues
from sp_lens.neurons import NeuronMask as NeuronMask
from sp_lens.neurons import NeuronValues as NeuronValues
from sp_lens.permutation import SpecialisedNeurons as SpecialisedNeurons
from sp_lens.permutation import specialised as specialised
from sp_lens.pruning import prune as prune
from sp_lens.rank_stability import rank_stability as rank_stability
from sp_lens.relearning import Relearning as Relearning
from sp_lens.relearning import relearning as relearning
from sp_lens.report import report as report
from sp_lens.reproduction import reproduce as reproduce
from sp_lens.runs import PruneRun as PruneRun
from sp_lens.sites import Layout as Layout
from sp_lens.sites import NeuronGroup as NeuronGroup
from sp_lens.sites import layout_of as layout_of
from sp_lens.sliding import sliding_perplexity as sliding_perplexity
from sp_lens.specialisation import Specialisation as Specialisation
from sp_lens.specialisation import specialisation as specialisation
from sp_lens.stats import ActivationStats as ActivationStats
from sp_lens.toxicity import Toxicity as Toxicity
from sp_lens.toxicity import toxicity as toxicity
from sp_lens.uncertainty import Uncertainty as Uncertainty
from sp_lens.uncertainty import uncertainty as uncertainty

__all__: list[str]
__version__: str
