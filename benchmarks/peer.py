"""The authors' library, `taker` 1.2.3, on the same model and text, in an environment of its own.

It needs an older transformers, so another Python runs this file as a script, and says how it compares with the bare
forward pass there:

    python -m venv taker-venv && taker-venv/bin/pip install torch "transformers<5" "setuptools<80" taker==1.2.3
    python -m benchmarks --taker taker-venv/bin/python
"""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPEATS = 3


def peer_ratio(python: str, folder: str, texts: list[str], *, row_tokens: int) -> float:
    """The tokens per second that it collects, as a share of those of the bare forward pass with LM head."""
    with tempfile.TemporaryDirectory() as work:
        file = Path(work) / "texts.json"
        file.write_text(json.dumps(texts))
        command = [python, __file__, _for_older(folder, Path(work) / "model"), str(file), str(row_tokens)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=work)
    return json.loads(done.stdout.splitlines()[-1])["ratio"]


def _for_older(folder: str, out: Path) -> str:
    """The model as an older transformers reads it, whose tokenizers have another name."""
    shutil.copytree(folder, out)
    file = out / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "tokenizer_class": "PreTrainedTokenizerFast"}))
    return str(out)


def _measure(folder: str, file: str, row_tokens: int) -> None:
    """What the other Python runs."""
    import torch
    from datasets import Dataset, DatasetDict
    from taker import Model  # pyright: ignore[reportMissingImports]
    from taker.activations import get_midlayer_data  # pyright: ignore[reportMissingImports]
    from taker.data_classes import EvalConfig  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForCausalLM

    rows = Dataset.from_dict({"text": json.loads(Path(file).read_text())})
    theirs = Model(folder, dtype="fp32", limit=row_tokens)
    tokens = sum(theirs.get_ids(text).numel() for text in rows["text"])
    plain = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
    batch = torch.cat([ids for text in rows["text"] if (ids := theirs.get_ids(text)).shape[1] == row_tokens])

    def collected() -> None:
        config = EvalConfig("rows", dataset_custom_load_fn=lambda: DatasetDict({"train": rows}), is_train_mode=True)
        get_midlayer_data(theirs, eval_config=config, sample_size=10**9)

    @torch.no_grad()
    def bare() -> None:
        for four in batch.split(4):
            plain(four, use_cache=False)

    speeds: dict[str, list[float]] = {"theirs": [], "bare": []}
    for repeat in range(REPEATS + 1):
        for name, run, count in (("theirs", collected, tokens), ("bare", bare, batch.numel())):
            started = time.perf_counter()
            run()
            if repeat:
                speeds[name].append(count / (time.perf_counter() - started))
    theirs_speed, bare_speed = (statistics.median(each) for each in speeds.values())
    print(json.dumps({"ratio": theirs_speed / bare_speed}))


if __name__ == "__main__":
    _measure(sys.argv[1], sys.argv[2], int(sys.argv[3]))
