"""Algorithm 1 of arXiv 2403.01267 as a call: checked before any long work, kept step by step, gone on with."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from sp_lens import distributed
from sp_lens.data.leakage import checked_corpora
from sp_lens.errors import SpLensError, check_choice
from sp_lens.models.hooks import layout_of, model_name
from sp_lens.models.loading import weights_fingerprint
from sp_lens.models.task import require_task
from sp_lens.neurons.layout import Layout
from sp_lens.neurons.mask import NeuronMask, pick_count
from sp_lens.pruning.algorithm import Algorithm
from sp_lens.pruning.checkpoint import identity, keep, locked, resumed
from sp_lens.pruning.run import PruneInterrupted, PruneRun, stopped
from sp_lens.scoring.score import eps_by_site
from sp_lens.typing import (
    AGGREGATES,
    BATCH_TOKENS,
    EPS,
    SCORE_METRICS,
    SITES,
    UNITS,
    Aggregate,
    AnySite,
    ScoreMetric,
    Site,
    Unit,
    sites_of,
)

_OTHER_RUN = (
    "the ranks were called with different models, corpora or settings, or found different steps in the folder of the "
    "run: make the same call on every rank, and put the folder (out=...) where all of them see it."
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
    """Prune, step after step, what matters more for `forget` than for `retain`.

    A step collects on both corpora with the neurons pruned so far ablated, scores, takes the top
    `fraction` of all the model's neurons of the site that are not pruned yet, and evaluates on held-out
    data of both. Layers that have lost 64 neurons or more are computed without them, so that a step costs less than the
    one before. The model itself is not changed: see `fold_mask`, `compact` and `export` for that.

    In several processes (`torch.distributed`) every one makes the same call, and returns the same run; the first
    writes it.

    Args:
        model: a bridge or a `HookedTransformer`.
        forget: corpus to collect from and to forget, as `load_corpus` or `load_images` returns it.
        retain: corpus to collect from and to keep.
        eval_forget: held-out data of the forget corpus; must not overlap with what is collected from.
        eval_retain: held-out text of the retain corpus, likewise.
        site: "mlp", "attn", or "both" (the fraction of each).
        unit: "neuron", or "head": whole attention heads.
        metric: "abs", "rms", "std", "freq" (Definition 1) or "random", the control, which collects nothing.
        aggregate: how the importance of a head comes of its neurons' (Definition 3).
        fraction: share of all neurons (heads) of the site that a step prunes.
        steps: how many steps; the released experiments take 50 of 2 %.
        recollect: collect anew at each step; False collects once and goes down one ranking.
        eps: added to the retain importance, see `score`.
        seed: of "random", and of the tokens that a masked language model is asked for.
        protect: neurons that are never pruned, by no metric: `stats.sinks()` (a warning says when a step
            prunes some), or a mask of your own. A head with such a neuron is never pruned as a whole.
        min_retain_top1: stop after the step at which retain accuracy is below this.
        max_forget_top1: stop after the step at which forget accuracy is at or below this.
        out: folder of the run. Every finished step is on disk there, and the same call goes on after a
            kill, to the same mask and history; after a step that is damaged on disk, from the one before. A larger
            `steps` goes on further. One process at a time works in it.
        batch_tokens: tokens in a batch, padding included.
        progress: show a bar.

    Returns:
        A `PruneRun`: `.history`, `.mask`, `.selectivity`.

    Raises:
        SpLensError: before any long work, for a model without a head, bad settings, corpora that overlap or
            can't be read, or an `out` folder that holds another run, or in which one is at work.
        PruneInterrupted: for Ctrl-C; its `run` has the steps that were done.
    """
    layout = layout_of(model)
    task = require_task(model)  # before hours of collecting, not at the first evaluation
    groups = _layout_of_site(layout, site, unit)
    check_choice("metric", metric, SCORE_METRICS)
    check_choice("aggregate", aggregate, AGGREGATES)
    options: dict[str, Any] = {
        "site": site,
        "unit": unit,
        "metric": metric,
        "aggregate": aggregate,
        "fraction": fraction,
        "recollect": recollect,
        "eps": eps_by_site(eps),
        "seed": seed,
    }
    protected = _protected(groups, protect, unit)
    check_steps(protected, site, unit, fraction, steps)

    def is_last(record: Mapping[str, Any]) -> bool:
        return record["step"] == steps or stopped(record, min_retain_top1, max_forget_top1)

    with ExitStack() as folder:
        with distributed.together(_OTHER_RUN) as work:
            if out is not None and distributed.is_main():
                folder.enter_context(locked(out))
            corpora, about = checked_corpora(
                model, forget=forget, retain=retain, eval_forget=eval_forget, eval_retain=eval_retain
            )
            settings = {
                "model": model_name(model),
                "weights": weights_fingerprint(model),
                **options,
                "aggregate": aggregate if unit == "head" else None,
                "seed": seed if metric == "random" or task == "masked" else None,
                "protected": None
                if protect is None
                else {"neurons": protected.count(), "fingerprint": protected.fingerprint()},
                "corpora": about,
            }
            run = None if out is None else resumed(out, settings, is_last)
            work.same(identity(settings), steps, min_retain_top1, max_forget_top1, run and run.records)
        algorithm = Algorithm(
            model=model, corpora=corpora, groups=groups, protected=protected, batch_tokens=batch_tokens, **options
        )
        bar = tqdm(total=steps, desc="prune", unit=" steps", disable=not (progress and distributed.is_main()))
        run = run or algorithm.unpruned(settings)
        _keep(run, out)  # of one that goes on too: the kill may have come between the step and its history
        bar.update(run.steps)
        try:
            for after in algorithm.steps_after(run, is_last):
                run = after
                _keep(run, out)
                last = run.records[-1]
                bar.update()
                bar.set_postfix(forget=f"{last['forget_top1']:.3f}", retain=f"{last['retain_top1']:.3f}")
        except KeyboardInterrupt as stop:
            raise PruneInterrupted(run, out) from stop
        finally:
            bar.close()
    return run


def _keep(run: PruneRun, out: str | Path | None) -> None:
    """Put a finished step on disk, where there is a folder: by the first process, and the others wait for it."""
    with distributed.together():
        if out is not None and distributed.is_main():
            keep(run, out)


def _layout_of_site(layout: Layout, site: AnySite, unit: str) -> Layout:
    check_choice("site", site, (*SITES, "both"))
    check_choice("unit", unit, UNITS)
    if unit == "head" and site != "attn":
        raise SpLensError(f'whole heads are of the attention: say site="attn" with unit="head", not site={site!r}.')
    chosen = {group for one in sites_of(site) for group in layout.select(one)}
    return Layout(tuple(group for group in layout if group in chosen))


def _protected(groups: Layout, protect: NeuronMask | None, unit: Unit) -> NeuronMask:
    """The neurons that must not be pruned, over all groups of the run; whole heads where heads are pruned."""
    if protect is None:
        return NeuronMask.from_neurons(groups, {})
    groups.require_same(Layout(tuple(group for group in protect.layout if group in groups)), "the mask to protect")
    tensors = {group.name: protect[group.name] for group in groups}
    if unit == "head":
        for group in groups:
            heads = tensors[group.name].view(group.heads, -1).any(dim=1)
            tensors[group.name] = heads.repeat_interleave(group.d_head)
    return NeuronMask(groups, tensors)


def check_steps(protected: NeuronMask, site: AnySite, unit: Unit, fraction: float, steps: int) -> None:
    """Refuse more steps than there are neurons (heads) for, those of `protected` left out."""
    if steps < 1:
        raise SpLensError(f"steps={steps}: expected at least one.")
    for one in sites_of(site):
        part = protected.select(one)
        size = {group.name: group.d_head if unit == "head" else 1 for group in part.layout}
        total = sum(group.width // size[group.name] for group in part.layout)
        free = total - sum(int(part[name].sum()) // size[name] for name in part)
        k = pick_count(fraction, total, f"{one} {unit}s")
        if (steps - 1) * k >= free:
            raise SpLensError(
                f"{steps} steps of {fraction:.3g} leave nothing to prune after step {-(-free // k)}: all {free} {one} "
                f"{unit}s that may be pruned are gone by then. Ask for fewer steps or a smaller fraction."
            )
