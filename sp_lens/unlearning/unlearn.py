"""What all baselines do: check, evaluate, change the weights, evaluate, ..., and put them back."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from tqdm.auto import tqdm

from sp_lens.data.leakage import checked_corpora
from sp_lens.errors import SpLensError, check_positive
from sp_lens.evaluation.evaluate import evaluate_sides
from sp_lens.models.hooks import model_name
from sp_lens.models.loading import weights_fingerprint
from sp_lens.models.task import require_task
from sp_lens.unlearning.run import UnlearningRun
from sp_lens.unlearning.weights import Values, Weights, lent, weights_of

# The live weights, what they were, and the corpora by name -> an iterator that changes the weights by one step each
# time it is asked for the next thing, and gives what else is to be recorded of the step.
Change = Callable[[Weights, Values, Mapping[str, Any]], Iterator[Mapping[str, Any]]]


def unlearn(
    model: Any,
    corpora: Mapping[str, Any],
    change: Change,
    *,
    method: str,
    options: Mapping[str, Any],
    steps: int,
    seed: int,
    batch_tokens: int,
    progress: bool,
) -> UnlearningRun:
    """Change the model step by step, evaluate after each, and give it back as it was.

    Args:
        model: a bridge or a `HookedTransformer`.
        corpora: forget, retain, eval_forget and eval_retain.
        change: what a step does.
        method: its name, as figures have it.
        options: of the method, for the record.
        steps: how many.
        seed: of the method, and of the tokens that a masked language model is asked for.
        batch_tokens: tokens in a batch, padding included.
        progress: show a bar.
    """
    require_task(model)
    weights_of(model)  # refused before the corpora are read
    check_positive(steps=steps, batch_tokens=batch_tokens)
    corpora, about = checked_corpora(model, **corpora)
    settings = {
        "model": model_name(model),
        "weights": weights_fingerprint(model),
        "method": method,
        **options,
        "batch_tokens": batch_tokens,
        "seed": seed,
        "corpora": about,
    }

    def record(step: int, also: Mapping[str, Any]) -> dict[str, Any]:
        sides = evaluate_sides(model, corpora, seed=seed, batch_tokens=batch_tokens, progress=False)
        return {"step": step, "pruned": 0, "share": 0.0, **sides, **also}

    with lent(model) as (weights, before), tqdm(total=steps, desc=method, unit=" steps", disable=not progress) as bar:
        records = [record(0, {})]
        changes = change(weights, before, corpora)
        for step in range(1, steps + 1):
            try:
                also = next(changes)
                records.append(record(step, also))
            except SpLensError as error:  # weights that went too far, a corpus without a prediction
                raise SpLensError(f"step {step} of {method}: {error}") from error
            bar.update()
            bar.set_postfix(forget=f"{records[-1]['forget_top1']:.3f}", retain=f"{records[-1]['retain_top1']:.3f}")
        changed = {n: w.detach().cpu().clone() for n, w in weights.items() if not torch.equal(w, before[n])}
    return UnlearningRun(changed, records, settings)
