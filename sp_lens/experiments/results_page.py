"""Write a Markdown page of all results in a folder: each claim, what was measured about it, and on which model."""

import os.path
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from sp_lens.errors import SpLensError
from sp_lens.experiments.registry import EXPERIMENTS, Experiment
from sp_lens.experiments.result import RESULT_FILE, Finding, Reproduction
from sp_lens.pruning.cost import duration
from sp_lens.storage.serialization import write_bytes

PAGE = "reproduction.md"
IMAGE_SUFFIXES = (".png", ".svg")
VERDICTS = {True: "holds", False: "**fails**", None: "open"}

_HEAD = """# The paper, reproduced

This page is written by `sp-lens reproduce`. The experiments are defined in `sp_lens/experiments/registry.py`. A claim
*holds* if the 95 % confidence interval of the measured difference is above 0, *fails* if the interval is below 0, and
is *open* if the interval contains 0. For claims without an interval, the measurement says what is compared. The
intervals are over held-out documents (over images, or over neurons in figure-5). Selectivity is the drop in forget
top-1 accuracy minus the drop in retain top-1 accuracy, in percentage points, at the best step of a run. The best step
is chosen on one half of the documents and measured on the other half, and the reverse; measured on the documents that
it was chosen on, even random pruning would look selective.
"""


def write_page(out: str | Path, file: str | Path) -> str:
    """Write the page of all results in a folder.

    Args:
        out: Folder that was given to `reproduce`.
        file: Path of the page. Its links to figures are relative to its folder.

    Returns:
        The text of the page.

    Raises:
        SpLensError: If there is no result in `out`.
    """
    results = {path.parent: Reproduction.load(path) for path in sorted(Path(out).glob(f"*/*/{RESULT_FILE}"))}
    if not results:
        raise SpLensError(f"there is no result in {out}: run `sp-lens reproduce figure-2 --offline --out {out}` first.")
    by_experiment = {
        experiment: {folder: result for folder, result in results.items() if result.experiment == name}
        for name, experiment in EXPERIMENTS.items()
    }
    parts = [_HEAD, _overview(by_experiment)]
    parts += [_section(experiment, items, Path(file).parent) for experiment, items in by_experiment.items()]
    page = "\n\n".join(part.strip() for part in parts) + "\n"
    write_bytes(file, page.encode())
    return page


def _overview(by_experiment: Mapping[Experiment, Mapping[Path, Reproduction]]) -> str:
    """Return a table with one row per experiment: its claim, and how many findings hold, fail or are open."""
    rows = []
    for experiment, results in by_experiment.items():
        verdicts = [finding.holds for result in results.values() for finding in result.findings]
        counts = {word: verdicts.count(verdict) for verdict, word in VERDICTS.items()}
        rows.append(
            {
                "experiment": f"[{experiment.name}](#{experiment.name})",
                "the paper's claim": experiment.claim,
                "findings": ", ".join(f"{count} {word}" for word, count in counts.items() if count) or "not run",
            }
        )
    return _table(rows)


def _section(experiment: Experiment, results: Mapping[Path, Reproduction], page_folder: Path) -> str:
    """Return the section of an experiment with all its results."""
    lines = [f"## {experiment.name}", f"{experiment.title}. Claim of the paper: *{experiment.claim}*"]
    if experiment.choices:
        lines.append(f"Our choices: {experiment.choices}")
    lines.append(_models(experiment, results))
    for folder, result in results.items():
        lines += [f"### {experiment.name}: {_escaped(result.model)}", _conditions(experiment, result)]
        lines.append(_table([_finding_row(finding) for finding in result.findings]))
        lines += [
            f"![{experiment.title}, {_escaped(result.model)}]({_relative(folder / name, page_folder)})"
            for name in result.files
            if name.endswith(IMAGE_SUFFIXES)
        ]
        lines.append(_table([{_escaped(key): _cell(value) for key, value in row.items()} for row in result.table]))
    return "\n\n".join(line for line in lines if line)


def _models(experiment: Experiment, results: Mapping[Path, Reproduction]) -> str:
    """Return a sentence that lists the paper's models and those of them that have no result."""
    run = {name for result in results.values() for name in result.model.split(" + ")}
    missing = [name for name in experiment.models if name.rpartition("/")[2] not in run]
    models = f"Models in the paper: {', '.join(experiment.models)}."
    if len(missing) == len(experiment.models):
        instead = "The results below are from other models." if results else "No other model was run either."
        return f"{models} None of them was run here. {instead}"
    return models + (f" Not run here: {', '.join(missing)}." if missing else "")


def _conditions(experiment: Experiment, result: Reproduction) -> str:
    """Return a paragraph on the model, the scale, the versions, and the data that replaced the paper's."""
    scale = result.scale
    size = f"at most {scale['images']} images" if experiment.images else f"{scale['tokens']:,} tokens"
    sinks = ", attention sinks protected" if scale.get("spare_sinks") else ""
    versions = ", ".join(f"{name} {_escaped(result.versions[name])}" for name in ("sp_lens", "torch"))
    text = (
        f"{_code(result.model)}, {result.parameters / 1e6:.1f}M parameters. Scale {_escaped(scale['name'])}: {size} of "
        f"each corpus, {scale['steps']} steps to {scale['share']:.0%} of the neurons{sinks}. Run time "
        f"{duration(result.seconds)}, without runs that existed before; {versions}."
    )
    replaced = "; ".join(f"{_code(name)} is {_escaped(origin)}" for name, origin in result.corpora.items())
    return text + (f" Data of this machine replaces the Hub's: {replaced}." if replaced else "")


def _finding_row(finding: Finding) -> dict[str, str]:
    return {"claim": _escaped(finding.claim), "measured": _escaped(finding.measured), "": VERDICTS[finding.holds]}


def _table(rows: Sequence[object]) -> str:
    """Return a Markdown table."""
    if not rows:
        return ""
    frame = pd.DataFrame(rows)
    cells = [[str(name) for name in frame.columns], ["---"] * len(frame.columns)]
    cells += [["" if pd.isna(cell) else str(cell) for cell in row] for row in frame.itertuples(index=False)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells)


def _escaped(text: object) -> str:
    """Return text of a result file, which may be untrusted, as one line of Markdown without tags, images or links."""
    words = " ".join(str(text).split())
    return words.replace("&", "&amp;").replace("<", "&lt;").replace("](", "]\\(").replace("][", "]\\[")


def _cell(value: object) -> object:
    """Return numbers and None unchanged, and everything else as escaped text."""
    return value if value is None or isinstance(value, int | float) else _escaped(value)


def _code(text: str) -> str:
    """Return the text as inline code, in which Markdown interprets nothing but back-ticks."""
    return f"`{' '.join(text.split()).replace('`', chr(39))}`"


def _relative(path: Path, folder: Path) -> str:
    """Return a link to a path relative to a folder, with forward slashes."""
    return quote(Path(os.path.relpath(path, folder)).as_posix(), safe="/+")
