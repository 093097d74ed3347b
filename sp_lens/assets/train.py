"""Train the bundled model from text that is on this machine.

    python -m sp_lens.assets.train --work WORK --out sp_lens/assets/demo [--device cuda]

A small OPT (ReLU, so that `freq` means something) learns Python, C++, the prose of documentation and
novels (`sp_lens.assets.texts`). Seeded and resumable: the same call after a kill goes on from the last checkpoint in
WORK. Then `python -m sp_lens.assets.card` measures it.
"""

import json
from typing import Any

import numpy as np
import torch
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from sp_lens.assets.texts import CONTEXT, EOS, MIXTURE, OTHER_PYTHON, PAD, VOCABULARY, prepare, windows
from sp_lens.assets.training import SEED, arguments_of, train

BATCH = 32  # rows, each as long as the model's context
STEPS = 2800
PEAK_RATE = 2e-3

CONFIG = OPTConfig(
    vocab_size=VOCABULARY,
    hidden_size=192,
    word_embed_proj_dim=192,
    num_hidden_layers=4,
    num_attention_heads=6,
    ffn_dim=768,
    max_position_embeddings=CONTEXT,
    dropout=0.0,
    attention_dropout=0.0,
    pad_token_id=PAD,
    bos_token_id=EOS,
    eos_token_id=EOS,
    architectures=["OPTForCausalLM"],
)


def main() -> None:
    arguments = arguments_of(__doc__, steps=STEPS)
    streams = prepare(arguments.work)

    def loss_at(model: Any, step: int) -> torch.Tensor:
        rows = windows(np.random.default_rng((SEED, step)), streams, rows=BATCH, tokens=CONTEXT - 1)
        tokens = torch.tensor(np.pad(rows, ((0, 0), (1, 0)), constant_values=EOS)).to(model.device)
        return model(input_ids=tokens, labels=tokens).loss

    torch.manual_seed(SEED)
    model: Any = OPTForCausalLM(CONFIG)
    train(model, loss_at, arguments.work, steps=arguments.steps, peak_rate=PEAK_RATE, device=arguments.device)
    model.half().save_pretrained(arguments.out)
    PreTrainedTokenizerFast.from_pretrained(arguments.work / "tokenizer").save_pretrained(arguments.out)
    recipe = {
        "seed": SEED, "steps": arguments.steps, "batch": BATCH, "row": CONTEXT, "mixture": MIXTURE,
        "other_python": OTHER_PYTHON,
        "training_tokens": {source: len(stream) for source, stream in streams.items()},
    }  # fmt: skip
    (arguments.out / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n")


if __name__ == "__main__":
    main()
