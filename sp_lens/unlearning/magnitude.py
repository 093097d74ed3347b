"""Pruning by the size of weights times the size of activations."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from sp_lens.interventions.ablation import fold_mask
from sp_lens.models.hooks import layout_of, output_weight
from sp_lens.neurons.mask import NeuronMask
from sp_lens.neurons.values import NeuronValues
from sp_lens.pruning.prune import check_steps
from sp_lens.pruning.run import PruneRun
from sp_lens.statistics.collect import collect
from sp_lens.typing import BATCH_TOKENS, Site
from sp_lens.unlearning.unlearn import unlearn
from sp_lens.unlearning.weights import Values, Weights


def magnitude(
    model: Any,
    forget: Any,
    retain: Any,
    *,
    eval_forget: Any,
    eval_retain: Any,
    steps: int = 50,
    site: Site = "mlp",
    fraction: float = 0.02,
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = True,
) -> PruneRun:
    """Prune the neurons that write most on the forget corpus: norm of the output weights times rms of z.

    Wanda's |W| * ||X|| (Sun et al. 2023, arXiv 2306.11695) on the forget corpus, as Wei et al. 2024 (arXiv
    2402.05162) use it to find what a behaviour needs; theirs is of single weights, and this of a neuron, the
    root of the sum of squares over its output weights. Largest first, in one ranking over all layers,
    collected once. Of the forget corpus alone: in a ratio of forget to retain the weights
    cancel (but for eps), and what is left is `prune(..., metric="rms", recollect=False)`.

    Args:
        model: a bridge or a `HookedTransformer`, which comes back as it was.
        forget: corpus to collect from, as `load_corpus` or `load_images` returns it.
        retain: is not read, but for the check that what is evaluated is held out.
        eval_forget: held-out text of the forget corpus.
        eval_retain: held-out text of the retain corpus.
        steps: how many steps.
        site: "mlp" or "attn".
        fraction: share of all neurons of the site that a step prunes.
        seed: of the tokens that a masked language model is asked for.
        batch_tokens: tokens in a batch, padding included.
        progress: show a bar.

    Returns:
        A `PruneRun`, for what is changed is a mask: `export` and every figure take it.

    Raises:
        SpLensError: as `gradient_ascent`, and for more steps than there are neurons for.
    """
    groups = layout_of(model).select(site)
    empty = NeuronMask.from_neurons(groups, {})
    check_steps(empty, site, "neuron", fraction, steps)
    pruned_at = {group.name: torch.zeros(group.width, dtype=torch.int32) for group in groups}

    def change(weights: Weights, before: Values, corpora: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        rms = (
            collect(model, corpora["forget"], batch_tokens=batch_tokens, progress=False).importance("rms").select(site)
        )
        norms = {group.name: output_weight(model, group).detach().double().norm(dim=1).cpu() for group in groups}
        values = NeuronValues(groups, {name: norms[name] * rms[name] for name in groups.names})
        mask = empty
        for step in range(1, steps + 1):
            new = values.top(fraction, site=site, exclude=mask)
            for name, at in pruned_at.items():
                at[new[name]] = step
            mask = mask | new
            fold_mask(model, mask)
            yield {"pruned": mask.count(), "share": mask.share()}

    corpora = {"forget": forget, "retain": retain, "eval_forget": eval_forget, "eval_retain": eval_retain}
    run = unlearn(
        model,
        corpora,
        change,
        method="magnitude",
        options={"site": site, "metric": "magnitude", "unit": "neuron", "fraction": fraction, "recollect": False},
        steps=steps,
        seed=seed,
        batch_tokens=batch_tokens,
        progress=progress,
    )
    settings = {key: value for key, value in run.settings.items() if key != "method"}  # its metric says it
    return PruneRun(groups, pruned_at, run.records, settings)
