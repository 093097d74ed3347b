"""How long it takes until anything happens: imports, and the help of the command."""

import subprocess
import sys

from benchmarks.timing import Row, Target, medians

IMPORT = "import sp_lens; sp_lens.collect"  # the names are there when they are asked for
HELP = "from sp_lens.cli.__main__ import main; main(['--help'])"


def starting(*, repeats: int) -> list[Row]:
    """Seconds, each in a process of its own."""
    python = {
        "nothing": "",
        "transformer_lens": "import transformer_lens",
        "both": f"import transformer_lens; {IMPORT}",
        "sp_lens": "import sp_lens",
        "help": HELP,
    }
    seconds = medians({name: lambda code=code: _run(code) for name, code in python.items()}, repeats=repeats)
    beyond = seconds["both"] - seconds["transformer_lens"]
    note = f"transformer_lens alone {seconds['transformer_lens']:.2f} s, python alone {seconds['nothing']:.2f} s"
    return [
        Row("-", "`import sp_lens`, then `sp_lens.collect`", "seconds beyond `import transformer_lens`", beyond,
            Target("at most", 0.5), note),
        Row("-", "`import sp_lens` alone", "seconds", seconds["sp_lens"]),
        Row("-", "`sp-lens --help`", "seconds", seconds["help"], Target("at most", 0.5)),
    ]  # fmt: skip


def _run(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
