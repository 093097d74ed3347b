"""Train the bundled causal language model on text of this machine, or a similar model of another size or architecture.

    python -m training.train --work WORK --out sp_lens/assets/demo [--device cuda]
    python -m training.train --work WORK --out models/opt-64 --width 64
    python -m training.train --work WORK --out models/neox-128 --width 128 --architecture neox

A small OPT learns Python, C++, documentation prose and novels (`training.texts`). Its activation function is ReLU,
for which the metric `freq` is informative. Training is seeded, and the same call resumes after an interruption. The
other models show whether larger models separate better, and whether GELU neurons do (`sp-lens reproduce`). They are
not bundled, but see the same text in the same order.

Output: token streams, tokenizer and checkpoints in WORK; the model, its tokenizer and `recipe.json` in the folder
--out. `python -m training.card` then measures the bundled model and writes its model card.
"""

import argparse
import json
from typing import Any

import numpy as np
import torch
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from training.texts import CONTEXT, EOS, MIXTURE, OTHER_PYTHON, PAD, VOCABULARY, prepare, windows
from training.training import SEED, arguments_of, train

BATCH = 32  # rows of `CONTEXT` tokens
STEPS = 2800
PEAK_RATE = 2e-3

WIDTH = 192  # d_model
LAYERS = 4
D_HEAD = 32


def config_of(architecture: str, width: int) -> PretrainedConfig:
    """Return the configuration of an OPT (ReLU, learned positions) or a GPT-NeoX (GELU, rotary, parallel blocks)."""
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": width,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": width // D_HEAD,
        "max_position_embeddings": CONTEXT,
        "attention_dropout": 0.0,
        "pad_token_id": PAD,
        "bos_token_id": EOS,
        "eos_token_id": EOS,
    }
    if architecture == "neox":
        return GPTNeoXConfig(**shape, intermediate_size=4 * width, hidden_dropout=0.0)
    return OPTConfig(**shape, word_embed_proj_dim=width, ffn_dim=4 * width, dropout=0.0)


def _add_shape(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--width", type=int, default=WIDTH, help=f"d_model, a multiple of {D_HEAD} (default: %(default)s)"
    )
    parser.add_argument(
        "--architecture", choices=("opt", "neox"), default="opt", help="OPT or GPT-NeoX (default: %(default)s)"
    )


def main() -> None:
    arguments = arguments_of(__doc__, steps=STEPS, add=_add_shape)
    streams = prepare(arguments.work)

    def loss_at(model: Any, step: int) -> torch.Tensor:
        rows = windows(np.random.default_rng((SEED, step)), streams, rows=BATCH, tokens=CONTEXT - 1)
        tokens = torch.tensor(np.pad(rows, ((0, 0), (1, 0)), constant_values=EOS)).to(model.device)
        return model(input_ids=tokens, labels=tokens).loss

    torch.manual_seed(SEED)
    kind = {"opt": OPTForCausalLM, "neox": GPTNeoXForCausalLM}[arguments.architecture]
    model: Any = kind(config_of(arguments.architecture, arguments.width))
    model.config.architectures = [kind.__name__]
    checkpoints = arguments.work / f"{arguments.architecture}-{arguments.width}"
    train(model, loss_at, checkpoints, steps=arguments.steps, peak_rate=PEAK_RATE, device=arguments.device)
    model.half().save_pretrained(arguments.out)
    PreTrainedTokenizerFast.from_pretrained(arguments.work / "tokenizer").save_pretrained(arguments.out)
    recipe = {
        "architecture": arguments.architecture, "width": arguments.width,
        "seed": SEED, "steps": arguments.steps, "batch": BATCH, "row": CONTEXT, "mixture": MIXTURE,
        "other_python": OTHER_PYTHON,
        "training_tokens": {source: len(stream) for source, stream in streams.items()},
    }  # fmt: skip
    (arguments.out / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n")


if __name__ == "__main__":
    main()
