"""Selective pruning and neuron specialisation on TransformerLens (arXiv 2403.01267).

import sp_lens as sp

model = sp.load_model("demo")
forget = sp.load_corpus("code", model, tokens=20_000, offline=True)
retain = sp.load_corpus("prose", model, tokens=20_000, offline=True)
scores = sp.score(sp.collect(model, forget), sp.collect(model, retain), metric="abs")
with sp.ablate(model, scores.top(0.1, site="mlp")):
    print(sp.evaluate(model, sp.load_corpus("code", model, tokens=20_000, split="evaluate", offline=True)))
"""

from importlib.metadata import version as _version

from sp_lens import baselines, plots
from sp_lens.ablation import ablate, ablation_hooks, fold_mask, sample_activations
from sp_lens.classifiers import TweetClassifier, tweet_classifier
from sp_lens.collect import collect, collect_histograms
from sp_lens.corpus import load_corpora, load_corpus
from sp_lens.effects import ablation_effect
from sp_lens.errors import SpLensError
from sp_lens.estimate import effect_estimate
from sp_lens.evaluate import Evaluation, evaluate
from sp_lens.examples import Example, TopExamples, top_examples
from sp_lens.export import export
from sp_lens.harness import lm_eval
from sp_lens.images import load_images
from sp_lens.importance import head_mask, score
from sp_lens.membership import MembershipInference, membership_inference
from sp_lens.models import load_model
from sp_lens.neurons import HeadValues, NeuronMask, NeuronValues
from sp_lens.pruning import prune
from sp_lens.relearning import Relearning, relearning
from sp_lens.report import report
from sp_lens.reproduction import reproduce
from sp_lens.runs import PruneRun
from sp_lens.sites import Layout, NeuronGroup, layout_of
from sp_lens.sliding import sliding_perplexity
from sp_lens.specialisation import Specialisation, specialisation
from sp_lens.stats import ActivationStats
from sp_lens.toxicity import Toxicity, toxicity

__version__ = _version("sp_lens")

__all__ = [
    "ActivationStats",
    "Evaluation",
    "Example",
    "HeadValues",
    "Layout",
    "MembershipInference",
    "NeuronGroup",
    "NeuronMask",
    "NeuronValues",
    "PruneRun",
    "Relearning",
    "SpLensError",
    "Specialisation",
    "TopExamples",
    "Toxicity",
    "TweetClassifier",
    "ablate",
    "ablation_effect",
    "ablation_hooks",
    "baselines",
    "collect",
    "collect_histograms",
    "effect_estimate",
    "evaluate",
    "export",
    "fold_mask",
    "head_mask",
    "layout_of",
    "lm_eval",
    "load_corpora",
    "load_corpus",
    "load_images",
    "load_model",
    "membership_inference",
    "plots",
    "prune",
    "relearning",
    "report",
    "reproduce",
    "sample_activations",
    "score",
    "sliding_perplexity",
    "specialisation",
    "top_examples",
    "toxicity",
    "tweet_classifier",
]
