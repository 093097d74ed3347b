"""Pruning by the magnitude of weights and activations on the forget corpus."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from typing_extensions import Unpack

from sp_lens.data.corpora import Corpora
from sp_lens.interventions.ablation import fold_mask
from sp_lens.models.hooks import layout_of, output_weight
from sp_lens.neurons.mask import NeuronMask
from sp_lens.neurons.values import NeuronValues
from sp_lens.pruning.config import PruneConfig
from sp_lens.pruning.run import PruneRun
from sp_lens.statistics.collect import collect
from sp_lens.typing import Site
from sp_lens.unlearning.training import RunKeywords, RunOptions
from sp_lens.unlearning.unlearn import unlearn
from sp_lens.unlearning.weights import Values, Weights


def magnitude(
    model: Any,
    forget: Any,
    retain: Any,
    *,
    eval_forget: Any,
    eval_retain: Any,
    site: Site = "mlp",
    fraction: float = 0.02,
    **options: Unpack[RunKeywords],
) -> PruneRun:
    """Prune the neurons with the largest norm of the output weights times rms of the activation on the forget corpus.

    The |W| * ||X|| of Wanda (Sun et al. 2023, arXiv 2306.11695) on the forget corpus, as Wei et al. 2024 (arXiv
    2402.05162) use it to find what a behaviour depends on. They score single weights. Here it is the score of a neuron:
    the root of the sum of squares over its output weights. Statistics are collected once, and all steps follow one
    ranking over all layers. Only the forget corpus counts: in a ratio of forget to retain the weights cancel (except
    for eps), which leaves `prune(..., metric="rms", recollect=False)`.

    Args:
        model: A `TransformerBridge` or a `HookedTransformer`. Its weights are restored afterwards.
        forget: Corpus to collect statistics on, as `load_corpus` or `load_images` returns it.
        retain: Corpus to keep. It is read only to verify that the evaluation data is held out.
        eval_forget: Held-out data of the forget corpus.
        eval_retain: Held-out data of the retain corpus.
        site: "mlp" or "attn".
        fraction: Share of all neurons at the site that each step prunes.
        **options: `steps` (50 by default), `seed`, `batch_tokens` and `progress`, see `RunOptions`.

    Returns:
        A `PruneRun`, because the change to the model is a mask: `export` and every figure accept it.

    Raises:
        SpLensError: See `gradient_ascent`. Also if all neurons are pruned before the last step.
    """
    options.setdefault("steps", 50)
    run_options = RunOptions(**options)
    layout = layout_of(model).select(site)
    no_neurons = NeuronMask.from_neurons(layout, {})
    PruneConfig(site=site, fraction=fraction, steps=run_options.steps).require_enough_neurons(no_neurons)
    pruned_at = {group.name: torch.zeros(group.width, dtype=torch.int32) for group in layout}

    def steps(_weights: Weights, _original: Values, corpora: Corpora) -> Iterator[Mapping[str, Any]]:
        stats = collect(model, corpora["forget"], batch_tokens=run_options.batch_tokens, progress=False)
        rms = stats.importance("rms").select(site)
        norms = {group.name: output_weight(model, group).detach().double().norm(dim=1).cpu() for group in layout}
        values = NeuronValues(layout, {name: norms[name] * rms[name] for name in layout.names})
        mask = no_neurons
        for step in range(1, run_options.steps + 1):
            new = values.top(fraction, site=site, exclude=mask)
            for name, at in pruned_at.items():
                at[new[name]] = step
            mask = mask | new
            fold_mask(model, mask)
            yield {"pruned": mask.count(), "share": mask.share()}

    run = unlearn(
        model,
        Corpora(forget, retain, eval_forget, eval_retain),
        steps,
        method="magnitude",
        settings={"site": site, "metric": "magnitude", "unit": "neuron", "fraction": fraction, "recollect": False},
        options=run_options,
    )
    settings = {key: value for key, value in run.settings.items() if key != "method"}  # the metric has the same name
    return PruneRun(layout, pruned_at, run.records, settings, run.documents)
