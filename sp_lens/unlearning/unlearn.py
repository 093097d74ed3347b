"""The procedure that all methods share: validate, evaluate, then change the weights and evaluate, step by step."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from tqdm.auto import tqdm

from sp_lens.data.corpora import Corpora
from sp_lens.data.leakage import checked_corpora
from sp_lens.errors import SpLensError
from sp_lens.evaluation.document_hits import StepDocuments
from sp_lens.evaluation.evaluate import evaluate_sides
from sp_lens.models.hooks import model_name
from sp_lens.models.loading import weights_fingerprint
from sp_lens.models.task import require_task
from sp_lens.unlearning.run import UnlearningRun
from sp_lens.unlearning.training import RunOptions
from sp_lens.unlearning.weights import Values, Weights, editable, weights_of

# (live weights, their original values, corpora) -> an iterator. Each item is one step: the weights are changed
# before it is returned, and it contains what the step adds to the evaluation in its record.
Method = Callable[[Weights, Values, Corpora], Iterator[Mapping[str, Any]]]


def unlearn(
    model: Any, corpora: Corpora, steps: Method, *, method: str, settings: Mapping[str, Any], options: RunOptions
) -> UnlearningRun:
    """Change the weights step by step, evaluate the model after each step, and restore the original weights.

    Args:
        model: A `TransformerBridge` or a `HookedTransformer`.
        corpora: The four corpora.
        steps: The steps of the method.
        method: Name of the method, which figures show.
        settings: Options of the method, as the run records them.
        options: Number of steps, seed, batch size and whether to show a progress bar.

    Raises:
        SpLensError: If the model has no head, its weights cannot be changed, the corpora overlap or cannot be read, or
            a step fails.
    """
    require_task(model)
    weights_of(model)  # raises for weights that cannot be changed, before the corpora are read
    checked, about = checked_corpora(model, **corpora)
    recorded_settings = {
        "model": model_name(model),
        "weights": weights_fingerprint(model),
        "method": method,
        **settings,
        "batch_tokens": options.batch_tokens,
        "seed": options.seed,
        "corpora": about,
    }

    records: list[dict[str, Any]] = []
    documents: list[StepDocuments] = []

    def evaluate_step(additions: Mapping[str, Any]) -> None:
        sides, of_step = evaluate_sides(
            model, checked, seed=options.seed, batch_tokens=options.batch_tokens, progress=False
        )
        records.append({"step": len(records), "pruned": 0, "share": 0.0, **sides, **additions})
        documents.append(of_step)

    bar = tqdm(total=options.steps, desc=method, unit=" steps", disable=not options.progress)
    with editable(model) as (weights, original), bar:
        evaluate_step({})
        changes = steps(weights, original, checked)
        for step in range(1, options.steps + 1):
            try:
                evaluate_step(next(changes))
            except SpLensError as error:  # the weights became NaN, or there is nothing to predict in a corpus
                raise SpLensError(f"step {step} of {method}: {error}") from error
            bar.update()
            bar.set_postfix(forget=f"{records[-1]['forget_top1']:.3f}", retain=f"{records[-1]['retain_top1']:.3f}")
        changed = {
            name: weight.detach().cpu().clone()
            for name, weight in weights.items()
            if not torch.equal(weight, original[name])
        }
    return UnlearningRun(changed, records, recorded_settings, documents)
