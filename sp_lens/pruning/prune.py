"""Selective pruning, Algorithm 1 of arXiv 2403.01267, as one call that validates, checkpoints and resumes the run."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from sp_lens import distributed
from sp_lens.data.leakage import checked_corpora
from sp_lens.models.hooks import layout_of, model_name
from sp_lens.models.loading import weights_fingerprint
from sp_lens.models.task import require_task
from sp_lens.neurons.layout import Layout
from sp_lens.neurons.mask import NeuronMask
from sp_lens.pruning.algorithm import Algorithm
from sp_lens.pruning.checkpoint import identity, locked, resume, save_step
from sp_lens.pruning.config import PruneConfig
from sp_lens.pruning.run import PruneInterrupted, PruneRun
from sp_lens.typing import BATCH_TOKENS, EPS, Aggregate, AnySite, ScoreMetric, Site, Unit

_RANKS_DIFFER = (
    "the ranks were called with different models, corpora or settings, or found different steps in the folder of the "
    "run. Make the same call on every rank, and choose a folder (out=...) that all ranks can read."
)


def prune(
    model: Any,
    forget: Any,
    retain: Any,
    *,
    eval_forget: Any,
    eval_retain: Any,
    site: AnySite = "mlp",
    unit: Unit = "neuron",
    metric: ScoreMetric = "abs",
    aggregate: Aggregate = "mean",
    fraction: float = 0.02,
    steps: int = 50,
    recollect: bool = True,
    eps: float | Mapping[Site, float] = EPS,
    seed: int = 0,
    protect: NeuronMask | None = None,
    min_retain_top1: float | None = None,
    max_forget_top1: float | None = None,
    out: str | Path | None = None,
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = True,
) -> PruneRun:
    """Prune, step by step, the neurons that are more important for `forget` than for `retain` (Algorithm 1).

    Each step collects statistics on both corpora with the neurons pruned so far ablated, computes the scores, prunes
    the `fraction` of all the model's neurons at the site with the highest scores among those not pruned yet, and
    evaluates the pruned model on held-out data of both corpora. Layers that have lost at least 64 neurons are computed
    without them, so later steps take less time. The model itself is not changed: use `fold_mask`, `compact` or
    `export` for that.

    In several processes (`torch.distributed`), every process makes the same call and returns the same run. The first
    process writes the files.

    Args:
        model: A `TransformerBridge` or a `HookedTransformer`.
        forget: Corpus to forget, as `load_corpus` or `load_images` returns it. Statistics are collected on it.
        retain: Corpus to keep. Statistics are collected on it.
        eval_forget: Held-out data of the forget corpus. It must not overlap with `forget` or `retain`.
        eval_retain: Held-out data of the retain corpus. It must not overlap with `forget` or `retain`.
        site: "mlp", "attn", or "both" (the fraction is pruned at each site).
        unit: "neuron", or "head" to prune whole attention heads.
        metric: Importance metric "abs", "rms", "std" or "freq" (Definition 1), or the control "random", for which
            nothing is collected.
        aggregate: How the importances of a head's neurons are combined into one value (Definition 3).
        fraction: Share of all neurons (heads) at the site that each step prunes.
        steps: Number of steps. The released experiments use 50 steps of 2 %.
        recollect: Whether to collect statistics in every step. If False, they are collected once, and all steps follow
            one ranking.
        eps: Number added to the retain importance, see `score`.
        seed: Seed of the metric "random", and of the choice of tokens that a masked language model predicts.
        protect: Neurons that are never pruned, for example `stats.sinks()` (attention sinks; a warning is logged when
            a step prunes some). A head with a protected neuron is never pruned as a whole.
        min_retain_top1: Stop after the first step with a retain accuracy below this value.
        max_forget_top1: Stop after the first step with a forget accuracy at or below this value.
        out: Folder of the run, where every finished step is saved. After an interruption, the same call resumes after
            the last undamaged step and ends with the same mask and history. A call with more `steps` continues the
            run. Only one process at a time can write to the folder.
        batch_tokens: Number of tokens per batch, including padding.
        progress: Whether to show a progress bar.

    Returns:
        A `PruneRun` with `.history`, `.mask` and `.selectivity`.

    Raises:
        SpLensError: Before any long computation, if the model has no head, an option is invalid, the corpora overlap
            or cannot be read, or if the folder `out` contains another run or is in use.
        PruneInterrupted: On Ctrl-C. Its `run` contains the finished steps.
    """
    config = PruneConfig(
        site=site,
        unit=unit,
        metric=metric,
        aggregate=aggregate,
        fraction=fraction,
        steps=steps,
        recollect=recollect,
        eps=eps,
        seed=seed,
        batch_tokens=batch_tokens,
        min_retain_top1=min_retain_top1,
        max_forget_top1=max_forget_top1,
    )
    task = require_task(model)  # fails now rather than at the first evaluation, after a long collection
    layout = config.select(layout_of(model))
    protected = _protected(layout, protect, unit)
    config.require_enough_neurons(protected)

    with ExitStack() as stack:
        with distributed.fail_together(_RANKS_DIFFER) as ranks:
            if out is not None and distributed.is_main():
                stack.enter_context(locked(out))
            corpora, about = checked_corpora(
                model, forget=forget, retain=retain, eval_forget=eval_forget, eval_retain=eval_retain
            )
            settings = {
                "model": model_name(model),
                "weights": weights_fingerprint(model),
                **config.settings(task),
                "protected": None
                if protect is None
                else {"neurons": protected.count(), "fingerprint": protected.fingerprint()},
                "corpora": about,
            }
            run = None if out is None else resume(out, settings, config.is_last)
            ranks.require_same(config, identity(settings), run and run.records)
        algorithm = Algorithm(model, corpora, config, layout, protected)
        bar = tqdm(total=steps, desc="prune", unit=" steps", disable=not (progress and distributed.is_main()))
        run = run or algorithm.start(settings)
        _save_step(run, out)  # also after resuming: the process may have been killed before it wrote the history
        bar.update(run.steps)
        try:
            for latest in algorithm.steps(run):
                run = latest
                _save_step(run, out)
                bar.update()
                record = run.records[-1]
                bar.set_postfix(forget=f"{record['forget_top1']:.3f}", retain=f"{record['retain_top1']:.3f}")
        except KeyboardInterrupt as interrupt:
            raise PruneInterrupted(run, out) from interrupt
        finally:
            bar.close()
    return run


def _save_step(run: PruneRun, out: str | Path | None) -> None:
    """Save the last step in the first process, if there is a folder. The other processes wait."""
    with distributed.fail_together():
        if out is not None and distributed.is_main():
            save_step(run, out)


def _protected(layout: Layout, protect: NeuronMask | None, unit: Unit) -> NeuronMask:
    """Return the neurons that must not be pruned, over the groups of the run, extended to whole heads if necessary."""
    if protect is None:
        return NeuronMask.from_neurons(layout, {})
    layout.require_same(Layout(tuple(group for group in protect.layout if group in layout)), "the mask to protect")
    tensors = {group.name: protect[group.name] for group in layout}
    if unit == "head":
        for group in layout:
            heads = tensors[group.name].view(group.heads, -1).any(dim=1)
            tensors[group.name] = heads.repeat_interleave(group.d_head)
    return NeuronMask(layout, tensors)
