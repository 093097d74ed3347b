"""Run an experiment of the paper and write its results."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from sp_lens import distributed
from sp_lens.errors import SpLensError, check_choice
from sp_lens.experiments.activations import densities, illustration
from sp_lens.experiments.other_methods import other_methods
from sp_lens.experiments.pruning_runs import pruning
from sp_lens.experiments.registry import EXPERIMENTS, SCALES, Experiment, Scale, ScaleName
from sp_lens.experiments.result import RESULT_FILE, Outcome, Reproduction
from sp_lens.experiments.results_page import PAGE, write_page
from sp_lens.experiments.scaling import compare_sizes, data_efficiency, parameters_of, selectivity_of_model
from sp_lens.experiments.setting import Setting
from sp_lens.experiments.toxicity_experiment import toxicity_experiment
from sp_lens.models.hooks import model_name
from sp_lens.models.loading import load_model
from sp_lens.models.task import reads_images, task_of
from sp_lens.plots._files import write_figure
from sp_lens.pruning.checkpoint import locked
from sp_lens.storage.serialization import versions, write_bytes

RUNNERS: dict[str, Callable[[Setting], Outcome]] = {
    "illustration": illustration,
    "pruning": pruning,
    "densities": densities,
    "sizes": selectivity_of_model,
    "data": data_efficiency,
    "methods": other_methods,
    "toxicity": toxicity_experiment,
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
    """Run one experiment of the paper: its pruning runs, figures and data, and a comparison with the paper's claims.

    An estimate of the time is logged at the start. Finished runs are not repeated: the same call resumes after an
    interruption, and experiments share their runs.

    Args:
        name: Name of the experiment in `sp_lens.experiments.registry.EXPERIMENTS`, such as "figure-2".
        models: One model or several, loaded or by name as in `load_model`. The default is the paper's models, or with
            `offline` a bundled model. "model-size" compares them; all other experiments run once for each.
        scale: "smoke" (to test that it runs), "small" (minutes on a laptop) or "paper" (the released settings).
        tokens: Number of tokens of each corpus, instead of the number of the scale.
        steps: Number of pruning steps, instead of the number of the scale. The total share of neurons stays the same.
        share: Share of the neurons that is pruned after the last step, instead of the share of the scale. Some models
            lose all abilities after a small share.
        spare_sinks: Whether to protect the neurons of attention sinks, which all text needs
            (`ActivationStats.sinks`).
        offline: Whether to read the text and images of this machine instead of the Hub's. The result records it.
        out: Folder of runs, results and the page of all results.
        image_format: Format of the figures: "html", or "png", "svg" or "pdf", which need kaleido and Chrome.
        progress: Whether to show progress bars.

    Returns:
        A `Reproduction` for each model, or one for all models together. Each is saved with its figures and their data
        in `out/NAME/MODEL/`. `out/reproduction.md` is the page of all results in `out`.

    Raises:
        SpLensError: Before any long work, if the experiment or scale is unknown, if a model cannot be loaded or is of
            the wrong kind, if a corpus cannot be read, if another process works in the folder, or if several
            distributed processes are running.
    """
    distributed.require_one("reproduce")
    check_choice("experiment", name, EXPERIMENTS)
    check_choice("scale", scale, SCALES)
    experiment = EXPERIMENTS[name]
    settings: dict[str, Any] = {
        "scale": _adjusted(SCALES[scale], tokens, steps, share), "out": Path(out), "offline": offline,
        "spare_sinks": spare_sinks, "progress": progress,
    }  # fmt: skip
    chosen = models or (_bundled(experiment) if offline else experiment.models)
    if isinstance(chosen, str | Path) or not isinstance(chosen, Sequence):
        chosen = [chosen]
    with locked(out):
        if image_format != "html":  # raise errors of the image export before the long work
            test_image = Path(out) / f".can-draw.{image_format}"
            write_figure(go.Figure(), test_image)
            test_image.unlink()
        results = _run(experiment, chosen, settings, image_format)
        write_page(out, Path(out) / PAGE)
    return results


def _run(experiment: Experiment, models: Sequence[Any], settings: Any, image_format: str) -> list[Reproduction]:
    """Run the experiment on each model, and save a result for each, or one result if the experiment compares them."""
    results: list[Reproduction] = []
    outcomes: list[Outcome] = []
    names: list[str] = []
    sizes: list[int] = []
    setting, started = None, time.monotonic()
    for item in models:
        model = load_model(item) if isinstance(item, str | Path) else item
        _check_kind(experiment, model)
        setting = Setting(experiment, model, **settings)
        outcomes.append(RUNNERS[experiment.kind](setting))
        names.append(setting.model_name)
        sizes.append(parameters_of(model))
        if experiment.kind != "sizes":
            results.append(
                _save(setting, outcomes[-1], names[-1], sizes[-1], started=started, image_format=image_format)
            )
            started = time.monotonic()
    if experiment.kind == "sizes" and setting:
        together = compare_sizes(outcomes)
        results.append(
            _save(setting, together, " + ".join(names), max(sizes), started=started, image_format=image_format)
        )
    return results


def _save(
    setting: Setting, outcome: Outcome, model: str, parameters: int, *, started: float, image_format: str
) -> Reproduction:
    """Write the figures and their data, and last the result that names them."""
    folder = setting.out / setting.experiment.name / (model if model == setting.model_name else "models")
    files = []
    for name, figure in outcome.figures.items():
        write_figure(figure, folder / f"{name}.{image_format}")
        write_bytes(folder / f"{name}.csv", outcome.data[name].to_csv(index=False, float_format="%.6g").encode())
        files += [f"{name}.{image_format}", f"{name}.csv"]
    result = Reproduction(
        experiment=setting.experiment.name,
        model=model,
        parameters=parameters,
        scale={"offline": setting.offline, "spare_sinks": setting.spare_sinks, **setting.scale._asdict()},
        corpora=outcome.corpora,
        findings=outcome.findings,
        table=outcome.table,
        files=files,
        seconds=round(time.monotonic() - started, 1),
        versions=versions(),
    )
    result.save(folder / RESULT_FILE)
    return result


def _adjusted(scale: Scale, tokens: int | None, steps: int | None, share: float | None) -> Scale:
    """Return the scale with the values that were given in place of its own."""
    for option, value in (("tokens", tokens), ("steps", steps)):
        if value is not None and value < 1:
            raise SpLensError(f"{option}={value}: expected 1 or more, or None for the number of the scale.")
    if share is not None and not 0 < share <= 1:
        raise SpLensError(f"share={share}: expected a share of the neurons above 0 and at most 1, such as 0.1.")
    return scale._replace(tokens=tokens or scale.tokens, steps=steps or scale.steps, share=share or scale.share)


def _bundled(experiment: Experiment) -> tuple[str, ...]:
    return ("demo-vision",) if experiment.images else ("demo",)


def _check_kind(experiment: Experiment, model: Any) -> None:
    """Raise SpLensError if the experiment cannot use this kind of model."""
    if reads_images(model) != experiment.images:
        expected = "an image classifier" if experiment.images else "a language model"
        raise SpLensError(
            f"the experiment {experiment.name} needs {expected}, and {model_name(model)!r} is not one: give another "
            "model."
        )
    if experiment.kind == "toxicity" and task_of(model) != "causal":
        raise SpLensError(
            f"the experiment {experiment.name} samples text, which {model_name(model)!r} cannot do: give a causal "
            "language model."
        )
