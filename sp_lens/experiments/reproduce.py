"""Run an experiment of `sp_lens.paper`, and write what came of it."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from sp_lens import distributed
from sp_lens.errors import SpLensError, check_choice
from sp_lens.experiments.activations import densities, illustration
from sp_lens.experiments.other_methods import methods
from sp_lens.experiments.pruning_runs import pruning
from sp_lens.experiments.registry import EXPERIMENTS, SCALES, Experiment, Scale, ScaleName
from sp_lens.experiments.result import RESULT, Found, Reproduction
from sp_lens.experiments.results_page import PAGE, write_page
from sp_lens.experiments.scaling import compare_sizes, data_efficiency, one_size, parameters_of
from sp_lens.experiments.setting import Setting
from sp_lens.experiments.toxicity_runs import toxic
from sp_lens.models.hooks import model_name
from sp_lens.models.loading import load_model
from sp_lens.models.task import reads_images, task_of
from sp_lens.plots._files import write_figure
from sp_lens.pruning.checkpoint import locked
from sp_lens.storage.serialization import versions, write_bytes

KINDS: dict[str, Callable[[Setting], Found]] = {
    "illustration": illustration,
    "pruning": pruning,
    "densities": densities,
    "data": data_efficiency,
    "methods": methods,
    "toxicity": toxic,
}


def reproduce(
    name: str,
    models: Any = None,
    *,
    scale: ScaleName = "small",
    tokens: int | None = None,
    steps: int | None = None,
    share: float | None = None,
    spare_sinks: bool = False,
    offline: bool = False,
    out: str | Path = "runs/paper",
    image_format: str = "html",
    progress: bool = True,
) -> list[Reproduction]:
    """Run one experiment of the paper: its runs, figures and data, and a comparison with what the paper claims.

    The time that it will take is logged before it starts. What has been run is not run again: the same call goes on
    after a kill, and experiments share their runs.

    Args:
        name: one of `sp_lens.experiments.registry.EXPERIMENTS`, such as "figure-2".
        models: one or several, by name, as `load_model` takes it, or loaded; by default those of the paper, or with
            `offline` a bundled one. "model-size" compares them; every other experiment is done for each.
        scale: "smoke" (does it run?), "small" (minutes on a laptop) or "paper" (the released settings).
        tokens: of each corpus, instead of the scale's.
        steps: of pruning, instead of the scale's; of the same share of neurons in all.
        share: of the neurons that are gone after the last step, instead of the scale's: a model that knows much
            breaks by less.
        spare_sinks: never prune the neurons of attention sinks, which all text needs (`ActivationStats.sinks`).
        offline: read the text and images of this machine in the place of the Hub's. It is recorded.
        out: folder of runs, results, and of the page of all of them.
        image_format: of the figures, "html", or "png", "svg", "pdf", which need kaleido and a Chrome.
        progress: show bars.

    Returns:
        A `Reproduction` for each model, or one of them all; saved, with its figures and their data, in
        `out/NAME/MODEL/`. `out/reproduction.md` is the page of all that are in `out`.

    Raises:
        SpLensError: before any long work, for an unknown experiment or scale, a model that can't be loaded or that
            reads something else, corpora that can't be read, a folder in which another run is at work, and in several
            processes.
    """
    distributed.require_one("reproduce")
    check_choice("experiment", name, EXPERIMENTS)
    check_choice("scale", scale, SCALES)
    experiment = EXPERIMENTS[name]
    chosen = _scale(SCALES[scale], tokens, steps, share)
    chosen_models = models or (_stand_ins(experiment) if offline else experiment.models)
    if isinstance(chosen_models, str | Path) or not isinstance(chosen_models, Sequence):
        chosen_models = [chosen_models]
    options: dict[str, Any] = {"scale": chosen, "out": Path(out), "offline": offline, "progress": progress}
    options |= {"spare_sinks": spare_sinks}
    with locked(out):
        if image_format != "html":  # that figures can be drawn is found out first
            write_figure(go.Figure(), Path(out) / f".can-draw.{image_format}")
            (Path(out) / f".can-draw.{image_format}").unlink()
        done = _of_each(experiment, chosen_models, options, image_format)
        write_page(out, Path(out) / PAGE)
    return done


def _of_each(
    experiment: Experiment, models: Sequence[Any], options: Mapping[str, Any], image_format: str
) -> list[Reproduction]:
    """The experiment on each of the models, or where it compares them, on all together."""
    done: list[Reproduction] = []
    parts: list[Found] = []
    labels: list[str] = []
    largest, started, setting = 0, time.monotonic(), None
    for one in models:
        model = load_model(one) if isinstance(one, str | Path) else one
        _check_reads(experiment, model)
        setting = Setting(experiment, model, **options)
        largest = max(largest, parameters_of(model))
        labels.append(model_name(model))
        if experiment.kind == "sizes":
            parts.append(one_size(setting))
            continue
        found, size = KINDS[experiment.kind](setting), parameters_of(model)
        done.append(
            _written(setting, found, model=labels[-1], parameters=size, started=started, image_format=image_format)
        )
        started = time.monotonic()
    if setting and parts:
        found, name_of_all = compare_sizes(parts), " + ".join(labels)
        done.append(
            _written(setting, found, model=name_of_all, parameters=largest, started=started, image_format=image_format)
        )
    return done


def _written(
    setting: Setting,
    found: Found,
    *,
    model: str,
    parameters: int,
    started: float,
    image_format: str,
) -> Reproduction:
    """The result on disk: figures and their data first, so that what names them comes last."""
    folder, files = setting.out / setting.experiment.name / (setting.name if model == setting.name else "models"), []
    for name, figure in found.figures.items():
        write_figure(figure, folder / f"{name}.{image_format}")
        write_bytes(folder / f"{name}.csv", found.data[name].to_csv(index=False, float_format="%.6g").encode())
        files += [f"{name}.{image_format}", f"{name}.csv"]
    result = Reproduction(
        experiment=setting.experiment.name,
        model=model,
        parameters=parameters,
        scale={"offline": setting.offline, "spare_sinks": setting.spare_sinks, **setting.scale._asdict()},
        corpora=found.corpora,
        findings=found.findings,
        table=found.table,
        files=files,
        seconds=round(time.monotonic() - started, 1),
        versions=versions(),
    )
    result.save(folder / RESULT)
    return result


def _scale(scale: Scale, tokens: int | None, steps: int | None, share: float | None) -> Scale:
    for option, value in (("tokens", tokens), ("steps", steps)):
        if value is not None and value < 1:
            raise SpLensError(f"{option}={value}: expected 1 or more, or nothing for the scale's.")
    if share is not None and not 0 < share <= 1:
        raise SpLensError(f"share={share}: expected a share of the neurons above 0, at most 1, such as 0.1.")
    return scale._replace(tokens=tokens or scale.tokens, steps=steps or scale.steps, share=share or scale.share)


def _stand_ins(experiment: Experiment) -> tuple[str, ...]:
    return ("demo-vision",) if experiment.images else ("demo",)


def _check_reads(experiment: Experiment, model: Any) -> None:
    """Refuse a model of the other kind."""
    if reads_images(model) != experiment.images:
        wanted = "a classifier of images" if experiment.images else "a language model"
        raise SpLensError(f"{experiment.name} is of {wanted}, and {model_name(model)!r} is none: name another.")
    if experiment.kind == "toxicity" and task_of(model) != "causal":
        raise SpLensError(f"{experiment.name} writes text, and {model_name(model)!r} can't: name a causal model.")
