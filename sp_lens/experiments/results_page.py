"""All results in a folder as one page of Markdown: each claim, what was measured of it, and on what."""

import os.path
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from sp_lens.errors import SpLensError
from sp_lens.experiments.registry import EXPERIMENTS, Experiment
from sp_lens.experiments.result import RESULT, Finding, Reproduction
from sp_lens.pruning.cost import duration
from sp_lens.storage.serialization import write_bytes

PAGE = "reproduction.md"
IMAGES = (".png", ".svg")
WORDS = {True: "holds", False: "**fails**", None: "open"}

_HEAD = """# The paper, reproduced

Written by `sp-lens reproduce`; each experiment is data in `sp_lens/paper.py`. A claim *holds* where the 95 % confidence
interval is on its side of 0, *fails* where it is on the other, and is *open* where 0 is in it; without an interval, the
sentence says what is compared. Intervals are of a bootstrap over held-out documents (images; in figure-5 over neurons),
at the step that is best on these documents, which flatters every method, random pruning too. Selectivity is the drop in
forget top-1 accuracy less the drop in retain top-1 accuracy, in percentage points.
"""


def write_page(out: str | Path, file: str | Path) -> str:
    """Write the page of all results in `out`.

    Args:
        out: folder that `reproduce` was given.
        file: the page; its links to figures are relative to it.

    Returns:
        What was written.

    Raises:
        SpLensError: when there is no result in `out`.
    """
    found = {path.parent: Reproduction.load(path) for path in sorted(Path(out).glob(f"*/*/{RESULT}"))}
    if not found:
        raise SpLensError(f"there is no result in {out}: run `sp-lens reproduce figure-2 --offline --out {out}` first.")
    by_experiment = {
        experiment: {folder: one for folder, one in found.items() if one.experiment == name}
        for name, experiment in EXPERIMENTS.items()
    }
    parts = [_HEAD, _overview(by_experiment)]
    parts += [_section(experiment, results, Path(file).parent) for experiment, results in by_experiment.items()]
    page = "\n\n".join(part.strip() for part in parts) + "\n"
    write_bytes(file, page.encode())
    return page


def _overview(by_experiment: dict[Experiment, dict[Path, Reproduction]]) -> str:
    """One line for each experiment: its claim, and of its findings how many hold."""
    rows = []
    for experiment, results in by_experiment.items():
        verdicts = [finding.holds for one in results.values() for finding in one.findings]
        counts = ", ".join(
            f"{verdicts.count(verdict)} {word}" for verdict, word in WORDS.items() if verdicts.count(verdict)
        )
        rows.append(
            {
                "experiment": f"[{experiment.name}](#{experiment.name})",
                "the paper's claim": experiment.claim,
                "here": counts or "not run",
            }
        )
    return _table(rows)


def _section(experiment: Experiment, results: dict[Path, Reproduction], beside: Path) -> str:
    lines = [f"## {experiment.name}", f"{experiment.title}. The paper: *{experiment.claim}*"]
    if experiment.choices:
        lines.append(f"Ours: {experiment.choices}")
    lines.append(_models(experiment, results))
    for folder, one in results.items():
        lines += [f"### {experiment.name}: {_plain(one.model)}", _about(experiment, one)]
        lines.append(_table([_finding(finding) for finding in one.findings]))
        lines += [
            f"![{experiment.title}, {_plain(one.model)}]({_relative(folder / name, beside)})"
            for name in one.files
            if name.endswith(IMAGES)
        ]
        lines.append(_table([{_plain(key): _cell(cell) for key, cell in row.items()} for row in one.table]))
    return "\n\n".join(line for line in lines if line)


def _models(experiment: Experiment, results: dict[Path, Reproduction]) -> str:
    """The paper's models, and which of them are not among the results."""
    run = {name for one in results.values() for name in one.model.split(" + ")}
    missing = [name for name in experiment.models if name.rpartition("/")[2] not in run]
    said = f"The paper's models: {', '.join(experiment.models)}."
    if len(missing) == len(experiment.models):
        return f"{said} None of them was run here" + (": what was, is below." if results else ", and no other.")
    return said + (f" Not run here: {', '.join(missing)}." if missing else "")


def _about(experiment: Experiment, one: Reproduction) -> str:
    """On what it was run, and what is not the paper's."""
    scale = one.scale
    read = f"at most {scale['images']} images" if experiment.images else f"{scale['tokens']:,} tokens"
    spared = ", sinks spared" if scale.get("spare_sinks") else ""
    replaced = "; ".join(f"{_code(name)} is {_plain(origin)}" for name, origin in one.corpora.items())
    instead = f" In the place of the Hub's: {replaced}." if replaced else ""
    made_with = ", ".join(f"{name} {_plain(one.versions[name])}" for name in ("sp_lens", "torch"))
    return (
        f"{_code(one.model)}, {one.parameters / 1e6:.1f}M parameters; scale {_plain(scale['name'])}: {read} of each "
        "corpus, "
        f"{scale['steps']} steps to {scale['share']:.0%} of the neurons{spared}; {duration(one.seconds)} without runs "
        f"that were there; {made_with}.{instead}"
    )


def _finding(finding: Finding) -> dict[str, str]:
    return {"claim": _plain(finding.claim), "measured": _plain(finding.measured), "": WORDS[finding.holds]}


def _table(rows: Sequence[object]) -> str:
    """A table of Markdown."""
    if not rows:
        return ""
    frame = pd.DataFrame(rows)
    cells = [[str(name) for name in frame.columns], ["---"] * len(frame.columns)]
    cells += [["" if pd.isna(cell) else str(cell) for cell in row] for row in frame.itertuples(index=False)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells)


def _plain(text: object) -> str:
    """What a result says, which anyone may have written, in Markdown: on one line, with no tag, image or link in it."""
    words = " ".join(str(text).split())
    return words.replace("&", "&amp;").replace("<", "&lt;").replace("](", "]\\(").replace("][", "]\\[")


def _cell(value: object) -> object:
    """A number, or nothing, as it is; anything else in Markdown."""
    return value if value is None or isinstance(value, int | float) else _plain(value)


def _code(text: str) -> str:
    """The same between back-ticks, where Markdown takes all but those as it is."""
    return f"`{' '.join(text.split()).replace('`', chr(39))}`"


def _relative(path: Path, beside: Path) -> str:
    """The path as a link from a page beside it, with forward slashes."""
    return quote(Path(os.path.relpath(path, beside)).as_posix(), safe="/+")
