"""Measure the authors' library, `taker` 1.2.3, on the same model and text.

It needs an older version of transformers. The Python of a separate environment therefore runs this file as a script,
which prints the speed relative to a bare forward pass in the same process:

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
    """Return the tokens per second at which taker collects, relative to the bare forward pass with LM head."""
    with tempfile.TemporaryDirectory() as work:
        file = Path(work) / "texts.json"
        file.write_text(json.dumps(texts))
        model = _copy_for_older_transformers(folder, Path(work) / "model")
        command = [python, __file__, model, str(file), str(row_tokens)]
        result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=work)
    return json.loads(result.stdout.splitlines()[-1])["ratio"]


def _copy_for_older_transformers(folder: str, out: Path) -> str:
    """Copy the model and change the class name of its tokenizer to one that older versions of transformers know."""
    shutil.copytree(folder, out)
    file = out / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "tokenizer_class": "PreTrainedTokenizerFast"}))
    return str(out)


def _measure(folder: str, file: str, row_tokens: int) -> None:
    """Measure both speeds and print their ratio. This runs in the Python of the other environment."""
    import torch
    from datasets import Dataset, DatasetDict
    from taker import Model  # pyright: ignore[reportMissingImports]
    from taker.activations import get_midlayer_data  # pyright: ignore[reportMissingImports]
    from taker.data_classes import EvalConfig  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForCausalLM

    rows = Dataset.from_dict({"text": json.loads(Path(file).read_text())})
    taker_model = Model(folder, dtype="fp32", limit=row_tokens)
    tokens = sum(taker_model.get_ids(text).numel() for text in rows["text"])
    plain = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
    batch = torch.cat([ids for text in rows["text"] if (ids := taker_model.get_ids(text)).shape[1] == row_tokens])

    def collect() -> None:
        config = EvalConfig("rows", dataset_custom_load_fn=lambda: DatasetDict({"train": rows}), is_train_mode=True)
        get_midlayer_data(taker_model, eval_config=config, sample_size=10**9)

    @torch.no_grad()
    def bare_forward() -> None:
        for rows_of_batch in batch.split(4):
            plain(rows_of_batch, use_cache=False)

    speeds: dict[str, list[float]] = {"taker": [], "bare": []}
    for repeat in range(REPEATS + 1):
        for name, run, count in (("taker", collect, tokens), ("bare", bare_forward, batch.numel())):
            started = time.perf_counter()
            run()
            if repeat:
                speeds[name].append(count / (time.perf_counter() - started))
    print(json.dumps({"ratio": statistics.median(speeds["taker"]) / statistics.median(speeds["bare"])}))


if __name__ == "__main__":
    _measure(sys.argv[1], sys.argv[2], int(sys.argv[3]))
