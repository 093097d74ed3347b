"""The experiments of arXiv 2403.01267 as data: models, corpora, sites, metrics, steps, and what is claimed of each.

`sp_lens.reproduce` runs them. What the paper's captions and the released scripts do not say is chosen here, and said
in the experiment's `choices`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Kind = Literal["illustration", "pruning", "densities", "sizes", "data", "methods", "toxicity"]
ScaleName = Literal["smoke", "small", "paper"]


class Scale(NamedTuple):
    """How much an experiment reads and prunes.

    Attributes:
        name: "smoke", "small" or "paper".
        tokens: of each of the four corpora of text.
        images: of each corpus of images, at most.
        steps: how many.
        share: of the neurons that are gone after the last step.
        continuations: sampled for the toxicity, and how many tokens each is long.
        window_tokens: of WikiText, for its perplexity.
        updates: of the methods that train, and of relearning.
        pairs: of what is forgotten and kept, the first so many; None is all.
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
    """What is forgotten and what is kept, by name; of images with classes: "cifar10:ship", "cifar10:-ship"."""

    forget: str
    retain: str

    def __str__(self) -> str:
        return f"{self.forget} forgotten, {self.retain} kept"


@dataclass(frozen=True, eq=False)
class Experiment:
    """One figure or table of the paper.

    Attributes:
        name: as the command line has it.
        title: what it is.
        claim: what the paper says comes of it.
        kind: how it is run.
        models: the paper's, by their Hub names.
        pairs: what is forgotten and kept.
        variants: options of `prune`, by the label of the curve or bar.
        figures: functions of `sp_lens.plots` that draw the runs, where kind is "pruning".
        released: fraction and steps of the released script, where they are not those of the scale "paper".
        images: it is of classifiers of images.
        offline_pairs: instead of `pairs` with the images that are here, where the classes are others.
        choices: what is ours.
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
            choices="The paper's figure is a drawing; ours is its first step, measured.",
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
            choices="The released scripts keep `code` where Python goes, a tenth of which is Python; here it is left "
            "out. A random control is added.",
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
            choices="The runs are those of figure-2, and are not run twice.",
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
            choices="Three seeds of the random control.",
        ),
        Experiment(
            "figure-5",
            "Densities of attention pre-out neurons",
            "Feed-forward and attention neurons are specialised: some matter far more for one task than for another.",
            "densities",
            ("facebook/opt-125m",),
            (_CODE,),
            {},
            choices="A neuron counts as specialised when its mean |z| on one corpus is more than twice that on the "
            "other; how often that happens between two samples of the same corpus is the control.",
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
            choices="Only the definition is known, so models and steps are those of figure 4; three seeds of the "
            "random control.",
        ),
        Experiment(
            "model-size",
            "Selectivity against the number of parameters",
            "Larger models separate better.",
            "sizes",
            _TEXT_MODELS,
            (_CODE, _PILE),
            {"abs": {"site": "mlp", "metric": "abs"}},
            choices="The paper says it of Figure 2; here it is a number for each model, with its interval. A "
            "larger model also has more accuracy to lose.",
        ),
        Experiment(
            "data-efficiency",
            "Selectivity against the number of tokens collected",
            "Few tokens are enough.",
            "data",
            ("facebook/opt-1.3b",),
            (_CODE,),
            {"abs": {"site": "mlp", "metric": "abs"}},
            choices="Collected once, from a hundredth of the scale's tokens on; evaluated on all of them.",
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
            "The model's own continuations become less toxic, and WikiText perplexity hardly rises.",
            "toxicity",
            ("openai-community/gpt2-large", "meta-llama/Llama-2-7b-hf"),
            (Pair("toxic", "civil"),),
            {"abs": {"site": "attn", "metric": "abs"}, "random": {"site": "attn", "metric": "random"}},
            released=(0.005, 10),
            choices="Of Llama-2-7B the paper prunes both sites, in one step; here attention alone. The prompt is ours. "
            "A model that hardly predicts such comments (see its top-1) has little to forget.",
        ),
        Experiment(
            "other-methods",
            "One class of images forgotten, by selective pruning and by other methods",
            "Selective pruning compares well with other methods of unlearning, without a gradient, in few passes.",
            "methods",
            ("Ahmed9275/Vit-Cifar100",),
            (Pair("cifar100:rocket", "cifar100:-rocket"), Pair("cifar100:mushroom", "cifar100:-mushroom")),
            {},
            released=(0.03, 1),
            images=True,
            offline_pairs=(Pair("cifar10:ship", "cifar10:-ship"), Pair("cifar10:cat", "cifar10:-cat")),
            choices="Each other method has its defaults; nothing was searched.",
        ),
    )
}
