"""The experiments of arXiv 2403.01267 as data: models, corpora, sites, metrics, steps, and the claims of the paper.

`sp_lens.reproduce` runs them. Settings that neither the captions of the paper nor the released scripts specify are our
choice and are listed in `Experiment.choices`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Kind = Literal["illustration", "pruning", "densities", "sizes", "data", "methods", "toxicity"]
ScaleName = Literal["smoke", "small", "paper"]


class Scale(NamedTuple):
    """Amount of data and number of pruning steps of an experiment.

    Attributes:
        name: Name of the scale: "smoke", "small" or "paper".
        tokens: Number of tokens of each of the four text corpora.
        images: Maximum number of images of each image corpus.
        steps: Number of pruning steps.
        share: Share of the neurons that is pruned after the last step.
        continuations: Number of continuations sampled for the toxicity, and tokens of each.
        window_tokens: Number of WikiText tokens read for the perplexity.
        updates: Number of updates of the methods that train, and of relearning.
        pairs: Number of pairs of corpora that are used, None for all.
    """

    name: ScaleName
    tokens: int
    images: int
    steps: int
    share: float
    continuations: tuple[int, int]
    window_tokens: int
    updates: int
    pairs: int | None = None


SCALES: dict[ScaleName, Scale] = {
    "smoke": Scale(
        "smoke", tokens=600, images=16, steps=2, share=0.2, continuations=(4, 8), window_tokens=600, updates=4, pairs=1
    ),
    "small": Scale(
        "small",
        tokens=10_000,
        images=200,
        steps=5,
        share=0.5,
        continuations=(100, 50),
        window_tokens=20_000,
        updates=20,
    ),
    "paper": Scale(
        "paper",
        tokens=100_000,
        images=1000,
        steps=50,
        share=1.0,
        continuations=(1000, 200),
        window_tokens=300_000,
        updates=200,
    ),
}


class Pair(NamedTuple):
    """Names of the forgotten and the retained corpus.

    Image corpora are named with classes: "cifar10:ship" is the ships, "cifar10:-ship" all other classes.
    """

    forget: str
    retain: str

    def __str__(self) -> str:
        return f"{self.forget} forgotten, {self.retain} kept"


@dataclass(frozen=True, eq=False)
class Experiment:
    """One figure or table of the paper.

    Attributes:
        name: Name on the command line.
        title: Title of the figure or table.
        claim: What the paper claims about the result.
        kind: Key of the function that runs the experiment, in `sp_lens.experiments.reproduce.RUNNERS`.
        models: Hub names of the models in the paper.
        pairs: Pairs of corpora to forget and to retain.
        variants: Arguments of `prune` by the label of the curve or bar.
        figures: Names of the functions of `sp_lens.plots` that draw the runs, if `kind` is "pruning".
        released: Fraction and number of steps in the released script, if they differ from the scale "paper".
        images: Whether the experiment uses image classifiers.
        offline_pairs: Pairs that replace `pairs` offline, if the offline images have other classes.
        choices: Settings that are our choice.
    """

    name: str
    title: str
    claim: str
    kind: Kind
    models: tuple[str, ...]
    pairs: tuple[Pair, ...]
    variants: Mapping[str, Mapping[str, Any]]
    figures: tuple[str, ...] = ()
    released: tuple[float, int] | None = None
    images: bool = False
    offline_pairs: tuple[Pair, ...] = ()
    choices: str = ""


_TEXT_MODELS = (
    "facebook/opt-125m", "facebook/opt-1.3b", "facebook/opt-6.7b",
    "facebook/galactica-125m", "facebook/galactica-1.3b", "facebook/galactica-6.7b",
    "EleutherAI/pythia-160m", "EleutherAI/pythia-1.4b", "EleutherAI/pythia-6.9b",
    "FacebookAI/roberta-large",
)  # fmt: skip
_MEDIUM_MODELS = ("facebook/opt-1.3b", "facebook/galactica-1.3b", "EleutherAI/pythia-1.4b", "FacebookAI/roberta-large")
_VISION_MODELS = ("google/vit-base-patch16-224",)

_CODE, _PILE = Pair("code", "pile_codeless"), Pair("pile_codeless", "code")
_BIRDS = Pair("imagenet_birds", "imagenet_birdless")

_MLP_AND_RANDOM: dict[str, dict[str, Any]] = {
    "abs": {"site": "mlp", "metric": "abs"},
    "random": {"site": "mlp", "metric": "random"},
}
_METRICS: dict[str, dict[str, Any]] = {
    f"{metric} {site}" + (f" {seed}" if metric == "random" else ""): {"site": site, "metric": metric}
    | ({"seed": seed} if metric == "random" else {})
    for site in ("mlp", "attn")
    for metric, seeds in (("freq", 1), ("abs", 1), ("rms", 1), ("std", 1), ("random", 3))
    for seed in range(seeds)
}
_HEADS: dict[str, dict[str, Any]] = {
    "neurons": {"site": "attn", "metric": "abs"},
    "heads by the mean of their neurons": {"site": "attn", "metric": "abs", "unit": "head", "aggregate": "mean"},
    "heads by the largest of their neurons": {"site": "attn", "metric": "abs", "unit": "head", "aggregate": "max"},
    **{
        f"heads at random {seed}": {"site": "attn", "metric": "random", "unit": "head", "seed": seed}
        for seed in range(3)
    },
}

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        Experiment(
            "figure-1",
            "What selective pruning does",
            "Some neurons matter more for one task than for another, and these are pruned.",
            "illustration",
            _TEXT_MODELS,
            (_CODE,),
            {},
            choices="The paper's figure is a drawing. Ours shows measurements of its first step.",
        ),
        Experiment(
            "figure-2",
            "Accuracy lost on forget against retain data, text",
            "Selective pruning forgets code and keeps prose, and the reverse, and Python against other code.",
            "pruning",
            _TEXT_MODELS,
            (_CODE, _PILE, Pair("python", "non_python"), Pair("non_python", "python")),
            _MLP_AND_RANDOM,
            ("tradeoff",),
            choices="The released scripts forget Python and retain `code`, a tenth of which is Python. Here the "
            "retained code contains no Python. We add random pruning as a control.",
        ),
        Experiment(
            "figure-3",
            "Perplexity on forget against retain data",
            "The perplexity of the forgotten text rises first.",
            "pruning",
            _TEXT_MODELS,
            (_CODE, _PILE),
            _MLP_AND_RANDOM,
            ("perplexity",),
            choices="The runs are the same as in figure-2.",
        ),
        Experiment(
            "figure-4",
            "Selectivity by importance metric and site",
            "abs, rms and std beat freq or match it, depending on the activation function, and all beat random; "
            "feed-forward neurons separate better than attention neurons.",
            "pruning",
            _MEDIUM_MODELS,
            (_CODE,),
            _METRICS,
            ("selectivity",),
            choices="Random pruning is repeated with three seeds.",
        ),
        Experiment(
            "figure-5",
            "Densities of attention pre-out neurons",
            "Feed-forward and attention neurons are specialised: some matter far more for one task than for another.",
            "densities",
            ("facebook/opt-125m",),
            (_CODE,),
            {},
            choices="A neuron counts as specialised if its mean |z| on one corpus is more than twice its mean |z| on "
            "the other. The control is how often this happens between two samples of the same corpus.",
        ),
        Experiment(
            "attention-heads",
            "Whole attention heads against single attention neurons",
            "Definition 3: heads can be scored and pruned as neurons are.",
            "pruning",
            _MEDIUM_MODELS,
            (_CODE,),
            _HEADS,
            ("tradeoff",),
            choices="Only the definition is known, so models and steps are those of figure-4. Random pruning of heads "
            "is repeated with three seeds.",
        ),
        Experiment(
            "model-size",
            "Selectivity against the number of parameters",
            "Larger models separate better.",
            "sizes",
            _TEXT_MODELS,
            (_CODE, _PILE),
            {"abs": {"site": "mlp", "metric": "abs"}},
            choices="The paper makes this claim about Figure 2. Here each model has a selectivity with a confidence "
            "interval. A larger model also has more accuracy to lose.",
        ),
        Experiment(
            "data-efficiency",
            "Selectivity against the number of tokens collected",
            "Few tokens are enough.",
            "data",
            ("facebook/opt-1.3b",),
            (_CODE,),
            {"abs": {"site": "mlp", "metric": "abs"}},
            choices="Neurons are scored once, with 1 % to 100 % of the tokens of the scale. All runs are evaluated on "
            "the same tokens.",
        ),
        Experiment(
            "vision",
            "Accuracy lost on birds against all other images, and the reverse",
            "Birds can be forgotten while other classes are still recognised.",
            "pruning",
            _VISION_MODELS,
            (_BIRDS, Pair(*reversed(_BIRDS))),
            {name: {**options, "recollect": False} for name, options in _MLP_AND_RANDOM.items()},
            ("tradeoff",),
            images=True,
        ),
        Experiment(
            "toxicity",
            "Toxic comments forgotten, civil ones kept",
            "The continuations that the model writes become less toxic, and WikiText perplexity hardly rises.",
            "toxicity",
            ("openai-community/gpt2-large", "meta-llama/Llama-2-7b-hf"),
            (Pair("toxic", "civil"),),
            {"abs": {"site": "attn", "metric": "abs"}, "random": {"site": "attn", "metric": "random"}},
            released=(0.005, 10),
            choices="The paper prunes both sites of Llama-2-7B in one step. Here only attention neurons are pruned. "
            "The prompt is ours. A model that hardly predicts such comments (see its top-1 accuracy) has "
            "little to forget.",
        ),
        Experiment(
            "other-methods",
            "One class of images forgotten, by selective pruning and by other methods",
            "Selective pruning compares well with other unlearning methods, without gradients and in few passes.",
            "methods",
            ("Ahmed9275/Vit-Cifar100",),
            (Pair("cifar100:rocket", "cifar100:-rocket"), Pair("cifar100:mushroom", "cifar100:-mushroom")),
            {},
            released=(0.03, 1),
            images=True,
            offline_pairs=(Pair("cifar10:ship", "cifar10:-ship"), Pair("cifar10:cat", "cifar10:-cat")),
            choices="The other methods run with their default settings. No settings were searched.",
        ),
    )
}
