"""Measure the startup time: imports and the help text of the command line."""

import subprocess
import sys

from benchmarks.timing import Row, Target, medians

IMPORT = "import sp_lens; sp_lens.collect"  # public names are imported on first access
HELP = "from sp_lens.cli.__main__ import main; main(['--help'])"


def starting(*, repeats: int) -> list[Row]:
    """Measure the startup times in seconds, each in a new process."""
    python = {
        "nothing": "",
        "transformer_lens": "import transformer_lens",
        "both": f"import transformer_lens; {IMPORT}",
        "sp_lens": "import sp_lens",
        "help": HELP,
    }
    seconds = medians({name: lambda code=code: _run(code) for name, code in python.items()}, repeats=repeats)
    additional = seconds["both"] - seconds["transformer_lens"]
    note = f"transformer_lens alone {seconds['transformer_lens']:.2f} s, Python alone {seconds['nothing']:.2f} s"
    return [
        Row("-", "`import sp_lens; sp_lens.collect`", "seconds in addition to `import transformer_lens`", additional,
            Target("at most", 0.5), note),
        Row("-", "`import sp_lens` alone", "seconds", seconds["sp_lens"]),
        Row("-", "`sp-lens --help`", "seconds", seconds["help"], Target("at most", 0.5)),
    ]  # fmt: skip


def _run(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
