"""Algorithm 1 of arXiv 2403.01267: collect, score, prune the top, evaluate; again."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
from tqdm.auto import tqdm

from sp_lens import ranks
from sp_lens.collect import BATCH_TOKENS, collect
from sp_lens.compaction import pruned
from sp_lens.effects import UNITS, Unit
from sp_lens.errors import SpLensError, check_choice
from sp_lens.evaluate import evaluate_sides
from sp_lens.importance import EPS, SCORE_METRICS, ScoreMetric, eps_by_site, random_values, score
from sp_lens.models import model_name, weights_fingerprint
from sp_lens.neurons import AGGREGATES, Aggregate, HeadValues, NeuronMask, NeuronValues, pick_count
from sp_lens.overlap import checked_corpora
from sp_lens.runs import PruneRun, step_file, step_files, stopped
from sp_lens.sites import SITES, Layout, Site, layout_of
from sp_lens.stats import Metric
from sp_lens.storage import write_bytes
from sp_lens.tasks import require_task

logger = logging.getLogger(__name__)

AnySite = Literal[Site, "both"]

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
            kill, to the same mask and history. A larger `steps` goes on further.
        batch_tokens: tokens in a batch, padding included.
        progress: show a bar.

    Returns:
        A `PruneRun`: `.history`, `.mask`, `.selectivity`.

    Raises:
        SpLensError: before any long work, for a model without a head, bad settings, corpora that overlap or
            can't be read, or an `out` folder that holds another run.
    """
    layout = layout_of(model)
    task = require_task(model)  # before hours of collecting, not at the first evaluation
    groups = _layout_of_site(layout, site, unit)
    check_choice("metric", metric, SCORE_METRICS)
    check_choice("aggregate", aggregate, AGGREGATES)
    eps = eps_by_site(eps)
    protected = _protected(groups, protect, unit)
    check_steps(protected, site, unit, fraction, steps)
    with ranks.together(_OTHER_RUN) as work:
        if out is not None and ranks.is_main():
            _check_writable(Path(out))
        corpora, about = checked_corpora(
            model, forget=forget, retain=retain, eval_forget=eval_forget, eval_retain=eval_retain
        )
        settings = {
            "model": model_name(model),
            "weights": weights_fingerprint(model),
            "site": site,
            "unit": unit,
            "metric": metric,
            "aggregate": aggregate if unit == "head" else None,
            "fraction": fraction,
            "recollect": recollect,
            "eps": eps,
            "seed": seed if metric == "random" or task == "masked" else None,
            "protected": None
            if protect is None
            else {"neurons": protected.count(), "fingerprint": protected.fingerprint()},
            "corpora": about,
        }
        run = _resume(out, settings, steps, lambda record: stopped(record, min_retain_top1, max_forget_top1))
        work.same(_identity(settings), steps, min_retain_top1, max_forget_top1, run and run.records)
    options: dict[str, Any] = {"batch_tokens": batch_tokens, "progress": False}

    def evaluated(mask: NeuronMask) -> dict[str, Any]:
        with pruned(model, mask):
            numbers = evaluate_sides(model, corpora, seed=seed, **options)
        return {"step": 0, "pruned": mask.count(), "share": mask.share(), **numbers}

    def scored(mask: NeuronMask) -> tuple[NeuronValues | HeadValues, NeuronMask]:
        with pruned(model, mask) as whole:
            stats = [whole(collect(model, corpora[side], **options)) for side in ("forget", "retain")]
        sinks = stats[0].merge(stats[1]).sinks()
        if unit == "neuron":
            return score(*stats, metric=metric, eps=eps), sinks
        # Definition 3 before Definition 2: the importance of a head is of its neurons' importances.
        return score(*(side.importance(cast(Metric, metric)).heads(aggregate) for side in stats), eps=eps), sinks

    bar = tqdm(total=steps, desc="prune", unit=" steps", disable=not (progress and ranks.is_main()))
    if run is None:
        empty = {group.name: torch.zeros(group.width, dtype=torch.int32) for group in groups}
        unpruned = NeuronMask.of_neurons(groups, {})
        run = _keep(PruneRun(groups, empty, [evaluated(unpruned)], settings), out)
    else:
        logger.info("going on after step %d in %s", run.steps, out)
        _keep(run, out)  # the kill may have come between the step and its history
    bar.update(run.steps)
    values, sinks = None, NeuronMask.of_neurons(groups, {})
    while run.steps < steps and not stopped(run.records[-1], min_retain_top1, max_forget_top1):
        if metric == "random":
            values = random_values(groups, seed)
            values = values.heads(aggregate) if unit == "head" else values
        elif recollect:
            values, sinks = scored(run.mask)
        elif values is None:
            values, sinks = scored(NeuronMask.of_neurons(groups, {}))
        new = _top(values, fraction, site, run.mask | protected)
        _warn_of_sinks(new, sinks, step=run.steps + 1)
        run = _step(run, new, evaluated)
        run = _keep(run, out)
        bar.update()
        bar.set_postfix(forget=f"{run.records[-1]['forget_top1']:.3f}", retain=f"{run.records[-1]['retain_top1']:.3f}")
    bar.close()
    return run


def _step(run: PruneRun, new: NeuronMask, evaluated: Any) -> PruneRun:
    step = run.steps + 1
    pruned_at = {name: torch.where(new[name], step, at) for name, at in run.pruned_at.items()}
    record = evaluated(run.mask | new) | {"step": step}
    return PruneRun(run.layout, pruned_at, [*run.records, record], run.settings)


def _top(values: NeuronValues | HeadValues, fraction: float, site: AnySite, pruned: NeuronMask) -> NeuronMask:
    """The next neurons to go, as a mask over all groups of the run."""
    if isinstance(values, HeadValues):
        return values.top(fraction, exclude=pruned)
    tensors: dict[str, torch.Tensor] = {}
    for one in _sites(site):
        tensors |= values.top(fraction, site=one, exclude=pruned).tensors
    return NeuronMask(pruned.layout, tensors)


def _layout_of_site(layout: Layout, site: AnySite, unit: str) -> Layout:
    check_choice("site", site, (*SITES, "both"))
    check_choice("unit", unit, UNITS)
    if unit == "head" and site != "attn":
        raise SpLensError(f'whole heads are of the attention: say site="attn" with unit="head", not site={site!r}.')
    chosen = {group for one in _sites(site) for group in layout.of(one)}
    return Layout(tuple(group for group in layout if group in chosen))


def _sites(site: AnySite) -> tuple[Site, ...]:
    return SITES if site == "both" else (site,)


def _protected(groups: Layout, protect: NeuronMask | None, unit: Unit) -> NeuronMask:
    """The neurons that must not be pruned, over all groups of the run; whole heads where heads are pruned."""
    if protect is None:
        return NeuronMask.of_neurons(groups, {})
    groups.require_same(Layout(tuple(group for group in protect.layout if group in groups)), "the mask to protect")
    tensors = {group.name: protect[group.name] for group in groups}
    if unit == "head":
        for group in groups:
            heads = tensors[group.name].view(group.heads, -1).any(dim=1)
            tensors[group.name] = heads.repeat_interleave(group.width // group.heads)
    return NeuronMask(groups, tensors)


def _warn_of_sinks(new: NeuronMask, sinks: NeuronMask, *, step: int) -> None:
    if count := sum(int((new[name] & sinks[name]).sum()) for name in new if name in sinks):
        logger.warning(
            "step %d prunes %d neurons that are at their strongest on the BOS or the first token of a row, attention "
            "sinks that all text needs: collect(model, retain).sinks() has them, prune(..., protect=...) spares them",
            step,
            count,
        )


def check_steps(protected: NeuronMask, site: AnySite, unit: Unit, fraction: float, steps: int) -> None:
    """Refuse more steps than there are neurons (heads) for, those of `protected` left out."""
    if steps < 1:
        raise SpLensError(f"steps={steps}: expected at least one.")
    for one in _sites(site):
        part = protected.of(one)
        size = {group.name: group.width // group.heads if unit == "head" else 1 for group in part.layout}
        total = sum(group.width // size[group.name] for group in part.layout)
        free = total - sum(int(part[name].sum()) // size[name] for name in part)
        k = pick_count(fraction, total, f"{one} {unit}s")
        if (steps - 1) * k >= free:
            raise SpLensError(
                f"{steps} steps of {fraction:.3g} leave nothing to prune after step {-(-free // k)}: all {free} {one} "
                f"{unit}s that may be pruned are gone by then. Ask for fewer steps or a smaller fraction."
            )


def _check_writable(out: Path) -> None:
    try:
        write_bytes(out / ".writable", b"")
        (out / ".writable").unlink()
    except OSError as error:
        raise SpLensError(f"cannot write to the folder {out} ({error}): name another, out=...") from error


def _keep(run: PruneRun, out: str | Path | None) -> PruneRun:
    """Put a finished step on disk: the run so far, then what can be made of it, its history as CSV and its mask."""
    with ranks.together():
        if out is not None and ranks.is_main():
            if not step_file(out, run.steps).exists():
                run.save(step_file(out, run.steps))
            write_bytes(Path(out) / "history.csv", run.history.to_csv(index=False).encode())
            run.mask.save(Path(out) / "mask.safetensors")
    return run


def _resume(
    out: str | Path | None, settings: Mapping[str, Any], steps: int, last: Callable[[Mapping[str, Any]], bool]
) -> PruneRun | None:
    """The last finished step in `out` that is not beyond `steps` or a stopping rule, None where there is none."""
    done = {step: file for step, file in step_files(out).items() if step <= steps} if out is not None else {}
    if not done:
        return None
    run = PruneRun.load(done[max(done)])
    there, asked = _identity(run.settings), _identity(settings)
    if different := [key for key in asked if there.get(key) != asked[key]]:
        key = different[0]
        raise SpLensError(
            f"{out} holds a run of another configuration: its {key} is {there.get(key)!r}, and {asked[key]!r} was "
            f"asked for (what differs: {', '.join(different)}). Name another folder, or repeat the call that made it."
        )
    stop = next((record["step"] for record in run.records if last(record)), run.steps)
    return run if stop == run.steps else PruneRun.load(done[stop])


def _identity(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, of the corpora only what was in them: not with which versions it was read."""
    corpora = settings.get("corpora") or {}
    return {**settings, "corpora": {name: about.get("fingerprint") for name, about in corpora.items()}}
