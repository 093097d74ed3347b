"""Train the bundled model from text that is on this machine.

    python -m sp_lens.assets.train --work WORK --out sp_lens/assets/demo [--device cuda]

A small OPT (ReLU, so that `freq` means something) learns Python, C++, the prose of documentation and
novels. It reads the training split of the offline text (`sp_lens.offline`), novels from the folder that
`SP_LENS_DATA` names, and the Python sources of installed packages. Seeded and resumable: the same call
after a kill goes on from the last checkpoint in WORK. Then `python -m sp_lens.assets.card` measures it.
"""

import argparse
import importlib.util
import json
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm.auto import tqdm
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from sp_lens.offline import Document, read_offline, split_of, without_docstrings

logger = logging.getLogger(__name__)

SEED = 0
VOCABULARY = 4096
ROW = 256  # tokens, the model's whole context
BATCH = 32  # rows
STEPS = 2800
PEAK_RATE, LAST_RATE, WARM_UP = 2e-3, 1e-4, 100
CHECKPOINT_EVERY = 100

# What share of the rows comes from which text.
MIXTURE = {"python": 0.16, "other_python": 0.19, "non_python": 0.20, "prose": 0.20, "novels": 0.25}
# Python sources beside the standard library. None of them carries a copy of it.
OTHER_PYTHON = ("torch", "transformers", "numpy", "pandas", "sympy", "networkx")

CONFIG = OPTConfig(
    vocab_size=VOCABULARY,
    hidden_size=192,
    word_embed_proj_dim=192,
    num_hidden_layers=4,
    num_attention_heads=6,
    ffn_dim=768,
    max_position_embeddings=ROW,
    dropout=0.0,
    attention_dropout=0.0,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=1,
    architectures=["OPTForCausalLM"],
)


def training_documents(source: str) -> Iterator[str]:
    """Texts of one part of the mixture; prose leaves out what held-out documents say word for word."""
    if source == "other_python":
        yield from _other_python()
    elif source == "prose":
        held_out = {
            p for split in ("collect", "evaluate") for d in read_offline("prose", split) for p in _paragraphs(d)
        }
        for document in read_offline("prose", "train"):
            yield "\n\n".join(p for p in _paragraphs(document) if p not in held_out)
    else:
        yield from (document.text for document in read_offline(source, "train"))


def _paragraphs(document: Document) -> list[str]:
    return document.text.split("\n\n")


def _other_python() -> Iterator[str]:
    for package in OTHER_PYTHON:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            continue
        root = Path(spec.submodule_search_locations[0])
        for path in sorted(root.rglob("*.py")):
            name = f"other_python/{package}/{path.relative_to(root).as_posix()}"
            if "tests" not in path.parts and split_of(name) == "train":
                yield without_docstrings(path.read_text("utf-8", errors="ignore"))


def train_tokenizer(texts: dict[str, list[str]]) -> PreTrainedTokenizerFast:
    """Byte-level BPE on a sample of every text, with OPT's habit of one `</s>` in front."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sample = (text for source in MIXTURE for text in texts[source][:: max(1, len(texts[source]) // 1500)])
    tokenizer.train_from_iterator(sample, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="</s>", eos_token="</s>", pad_token="<pad>", model_max_length=ROW
    )


def prepare(work: Path) -> dict[str, np.ndarray]:
    """The token stream of each source, read once and kept in `work` as uint16 arrays."""
    files = {source: work / f"{source}.npy" for source in MIXTURE}
    if not all(file.exists() for file in files.values()):
        texts = {source: list(training_documents(source)) for source in tqdm(MIXTURE, desc="reading")}
        tokenizer = train_tokenizer(texts)
        tokenizer.save_pretrained(work / "tokenizer")
        for source, file in files.items():
            rows = tokenizer(texts[source], add_special_tokens=False, verbose=False)["input_ids"]
            stream = np.concatenate([np.array([*row, CONFIG.eos_token_id], dtype=np.uint16) for row in rows])
            np.save(file, stream)
            logger.info("%s: %d documents, %d tokens", source, len(rows), len(stream))
    return {source: np.load(file, mmap_mode="r") for source, file in files.items()}


def batch_at(step: int, streams: dict[str, np.ndarray]) -> torch.Tensor:
    """The rows of one step; a function of the step alone, so that a resumed run sees the same text."""
    generator = np.random.default_rng((SEED, step))
    sources = generator.choice(list(MIXTURE), size=BATCH, p=list(MIXTURE.values()))
    starts = [generator.integers(0, len(streams[source]) - ROW) for source in sources]
    rows = [streams[source][start : start + ROW - 1] for source, start in zip(sources, starts, strict=True)]
    return torch.tensor(np.array([[CONFIG.bos_token_id, *row] for row in rows], dtype=np.int64))


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to the last rate."""
    if step < WARM_UP:
        return PEAK_RATE * (step + 1) / WARM_UP
    progress = (step - WARM_UP) / max(1, steps - WARM_UP)
    return LAST_RATE + (PEAK_RATE - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * progress))


def train(streams: dict[str, np.ndarray], work: Path, *, steps: int, device: str) -> OPTForCausalLM:
    """AdamW in float32 (on a GPU: bfloat16 autocast) from the last checkpoint in `work` to `steps`."""
    torch.manual_seed(SEED)
    model: Any = OPTForCausalLM(CONFIG).train()
    model.to(device)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.95))
    first = _resume(model, optimizer, work / "checkpoint")
    bar = tqdm(range(first, steps), initial=first, total=steps, desc="training")
    started = time.monotonic()
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        tokens = batch_at(step, streams).to(device)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device != "cpu"):
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == steps:
            _checkpoint(model, optimizer, work / "checkpoint", step + 1)
            logger.info("step %d: loss %.3f, %.0f s", step + 1, loss.item(), time.monotonic() - started)
        bar.set_postfix(loss=f"{loss.item():.3f}")
    return model.eval()


def _checkpoint(model: OPTForCausalLM, optimizer: torch.optim.AdamW, folder: Path, step: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    state = {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        for key in ("exp_avg", "exp_avg_sq", "step"):
            state[f"{key}.{name}"] = optimizer.state[parameter][key]
    temporary = folder / "state.tmp"
    save_file(state, temporary, metadata={"step": str(step)})
    temporary.replace(folder / "state.safetensors")


def _resume(model: OPTForCausalLM, optimizer: torch.optim.AdamW, folder: Path) -> int:
    file = folder / "state.safetensors"
    if not file.exists():
        return 0
    state = load_file(file, device=str(model.device))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(state[f"model.{name}"])
            optimizer.state[parameter] = {key: state[f"{key}.{name}"] for key in ("exp_avg", "exp_avg_sq", "step")}
    return int(next(iter(optimizer.state.values()))["step"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the token streams and checkpoints")
    parser.add_argument("--out", type=Path, required=True, help="folder for the trained model")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments.work.mkdir(parents=True, exist_ok=True)

    streams = prepare(arguments.work)
    model = train(streams, arguments.work, steps=arguments.steps, device=arguments.device)
    model.half().save_pretrained(arguments.out)
    PreTrainedTokenizerFast.from_pretrained(arguments.work / "tokenizer").save_pretrained(arguments.out)
    recipe = {
        "seed": SEED, "steps": arguments.steps, "batch": BATCH, "row": ROW, "mixture": MIXTURE,
        "other_python": OTHER_PYTHON,
        "training_tokens": {source: len(stream) for source, stream in streams.items()},
    }  # fmt: skip
    (arguments.out / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n")


if __name__ == "__main__":
    main()
