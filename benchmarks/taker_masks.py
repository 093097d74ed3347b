"""Record the neurons that the released code, `taker` 1.0.1, prunes from the bundled model.

It needs older packages. The Python of a separate environment therefore runs this file as a script, from the root of the
repository. `taker` itself tokenizes, collects, scores and chooses; the script only passes it the model and the text:

    python -m venv taker-venv
    taker-venv/bin/pip install torch==2.13.0 "transformers<5" "setuptools<80" "pyarrow<17" taker==1.0.1
    taker-venv/bin/pip install --no-deps bitsandbytes==0.45.5
    taker-venv/bin/python benchmarks/taker_masks.py tests/scoring/taker_masks.json

The text is this repository's own: Python source to forget, and documentation to retain. The record contains its token
ids, so a later change of the text does not change what the test compares.
"""

import hashlib
import json
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "sp_lens" / "assets" / "demo"
TEXTS = {
    "forget": ("sp_lens/neurons/layout.py",),
    "retain": ("docs/pages/faults.md", "docs/pages/limitations.md"),
}
DOCUMENT_CHARACTERS = 400  # at least, in a document; documents end at blank lines
ROW_TOKENS = 200  # longer documents are cut, as in the released scripts
FRACTION = 0.02
HEAD_FRACTION = 0.2
METRICS = ("abs", "freq", "rms", "std")


def main(out: Path) -> None:
    import torch
    from datasets import Dataset, DatasetDict
    from taker import Model  # pyright: ignore[reportMissingImports]
    from taker.activations import choose_attn_heads_by, get_midlayer_data  # pyright: ignore[reportMissingImports]
    from taker.data_classes import EvalConfig, PruningConfig  # pyright: ignore[reportMissingImports]
    from taker.prune import score_and_prune  # pyright: ignore[reportMissingImports]

    def collect(texts: list[str]) -> Any:
        rows = DatasetDict({"train": Dataset.from_dict({"text": texts})})
        config = EvalConfig("rows", dataset_custom_load_fn=lambda: rows, is_train_mode=True)
        return get_midlayer_data(model, eval_config=config, sample_size=10**9)

    with tempfile.TemporaryDirectory() as work:
        model: Any = Model(
            _copy_for_older_packages(Path(work)), dtype="fp32", limit=ROW_TOKENS, model_device="cpu", compile=False
        )
    texts = {side: _documents(files) for side, files in TEXTS.items()}
    rows = {side: [model.get_ids(text)[0].tolist() for text in documents] for side, documents in texts.items()}
    forget, retain = collect(texts["forget"]), collect(texts["retain"])
    neurons, heads = {}, {}
    for metric in METRICS:
        config = PruningConfig("demo", ff_frac=FRACTION, attn_frac=FRACTION, ff_scoring=metric, attn_scoring=metric)
        raw = score_and_prune(model, retain, forget, config).raw
        neurons[metric] = {
            name.format(layer): chosen.reshape(-1).nonzero()[0].tolist()
            for key, name in (("ff", "blocks.{}.mlp.hook_post"), ("attn", "blocks.{}.attn.hook_z"))
            for layer, chosen in enumerate(raw[f"{key}_criteria"])
        }
        heads[metric] = {}
        for mode in ("mean", "median"):  # `score_and_prune` calls a method for heads that 1.0.1 does not have
            chosen, _ = choose_attn_heads_by(mode)(model, torch.from_numpy(raw["attn_scores"]), HEAD_FRACTION)
            heads[metric][mode] = chosen.nonzero().tolist()
    record = {
        "made_by": "benchmarks/taker_masks.py",
        "versions": {name: version(name) for name in ("taker", "torch", "transformers")},
        "weights_sha256": hashlib.sha256((MODEL / "model.safetensors").read_bytes()).hexdigest(),
        "fraction": FRACTION,
        "neurons": neurons,
        "head_fraction": HEAD_FRACTION,
        "heads": heads,
        "rows": rows,
    }
    out.write_text(_one_line_per_list(record) + "\n", "utf-8")


def _documents(files: tuple[str, ...]) -> list[str]:
    """Split files at blank lines into documents."""
    documents = [""]
    for file in files:
        for paragraph in (ROOT / file).read_text("utf-8").split("\n\n"):
            documents[-1] += paragraph + "\n\n"
            if len(documents[-1]) >= DOCUMENT_CHARACTERS:
                documents.append("")
    return [document for document in documents if document.strip()]


def _copy_for_older_packages(folder: Path) -> str:
    """Copy the model, and write its tokenizer in the format that the older packages read."""
    copy = Path(shutil.copytree(MODEL, folder / "model"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        settings = json.loads((copy / name).read_text("utf-8"))
        if name == "tokenizer.json":
            settings["model"]["merges"] = [" ".join(pair) for pair in settings["model"]["merges"]]
        (copy / name).write_text(json.dumps(settings), "utf-8")
    return str(copy)


def _one_line_per_list(value: Any, indent: str = "") -> str:
    """Write JSON with one line for every list of numbers or of pairs."""
    deeper = indent + "  "
    if isinstance(value, dict):
        lines = [f"{deeper}{json.dumps(key)}: {_one_line_per_list(item, deeper)}" for key, item in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    if isinstance(value, list) and value and isinstance(value[0], list) and len(value[0]) > 2:
        return "[\n" + ",\n".join(deeper + json.dumps(item) for item in value) + f"\n{indent}]"
    return json.dumps(value)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
