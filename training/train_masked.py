"""Train the bundled masked language model on the same text as the bundled causal model.

    python -m training.train_masked --work WORK --out sp_lens/assets/demo-masked [--device cuda]

The model is a small RoBERTa with the tokenizer of `training.train`, to which <s> and <mask> are added. WORK may be the
folder of that training, whose token streams are then used again. Its tokenizer must be the one of the bundled causal
model. Training is seeded, and the same call resumes after an interruption.

Output: token streams, tokenizer and checkpoints in WORK; the model, its tokenizer and `recipe.json` in the folder
--out. `python -m training.card_masked` then measures the model and writes its model card.
"""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers.processors import TemplateProcessing
from torch.nn.functional import cross_entropy
from transformers import OPTForCausalLM, PreTrainedTokenizerFast, RobertaConfig, RobertaForMaskedLM

from training.texts import EOS, MIXTURE, OTHER_PYTHON, PAD, VOCABULARY, prepare, windows
from training.training import SEED, arguments_of, train

BATCH, CONTEXT = 64, 128  # rows, tokens
STEPS = 2400
PEAK_RATE = 1e-3
# More than the 15 % of an evaluation, so that the model learns more from each row (Wettig et al. 2023, "Should you mask
# 15% in masked language modeling?").
CHOSEN_SHARE = 0.3
BOS, MASK = VOCABULARY, VOCABULARY + 1
DEMO = Path(str(files("sp_lens.assets") / "demo"))  # the bundled causal model

CONFIG = RobertaConfig(
    vocab_size=VOCABULARY + 2,
    hidden_size=192,
    num_hidden_layers=4,
    num_attention_heads=6,
    intermediate_size=768,
    max_position_embeddings=CONTEXT + PAD + 1,  # RoBERTa counts positions from PAD + 1
    type_vocab_size=1,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    pad_token_id=PAD,
    bos_token_id=BOS,
    eos_token_id=EOS,
    architectures=["RobertaForMaskedLM"],
)


def with_mask(folder: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer in `folder` with the tokens <s> and <mask>, which encodes a text as <s> text </s>."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.add_special_tokens(
        {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "mask_token": "<mask>"}
    )
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    tokenizer.model_max_length = CONTEXT
    return tokenizer


def untrained() -> Any:
    """Return a RoBERTa with the word embeddings of the bundled causal model and sinusoidal position embeddings.

    A run with random embeddings and twice the learning rate had a loss of 5.9 nats after 290 steps, little better than
    unigram frequencies, and was stopped. This initialisation had 5.4 nats after as many steps.
    """
    torch.manual_seed(SEED)
    model = RobertaForMaskedLM(CONFIG)
    words = OPTForCausalLM.from_pretrained(DEMO, dtype=torch.float32).get_input_embeddings().weight
    embeddings = model.roberta.embeddings
    angles = torch.arange(CONTEXT)[:, None] * 10_000 ** -torch.linspace(0, 1, CONFIG.hidden_size // 2)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1) * 2**0.5  # (Vaswani et al. 2017, section 3.5)
    with torch.no_grad():
        embeddings.word_embeddings.weight[:VOCABULARY] = words
        embeddings.position_embeddings.weight[PAD + 1 :] = waves * words.std()
    return model


def loss_of(model: Any, rows: np.ndarray, generator: np.random.Generator) -> torch.Tensor:
    """Return the cross-entropy of the chosen tokens: 80 % are masked, 10 % replaced at random, 10 % unchanged."""
    chosen = (generator.random(rows.shape) < CHOSEN_SHARE) & (rows != EOS)
    dice = generator.random(rows.shape)
    seen = np.where(chosen & (dice < 0.8), MASK, rows)
    seen = np.where(chosen & (dice >= 0.9), generator.integers(2, VOCABULARY, rows.shape), seen)
    seen = np.pad(np.pad(seen, ((0, 0), (1, 0)), constant_values=BOS), ((0, 0), (0, 1)), constant_values=EOS)
    hidden = model.roberta(torch.tensor(seen).to(model.device)).last_hidden_state[:, 1:-1]
    # The output head is a third of the cost, so it runs on the chosen tokens only.
    target = torch.tensor(chosen).to(model.device)
    return cross_entropy(model.lm_head(hidden[target]), torch.tensor(rows).to(model.device)[target])


def main() -> None:
    arguments = arguments_of(__doc__, steps=STEPS)
    streams = prepare(arguments.work)
    bundled, prepared = (
        PreTrainedTokenizerFast.from_pretrained(folder).get_vocab() for folder in (DEMO, arguments.work / "tokenizer")
    )
    if bundled != prepared:
        raise SystemExit(
            f"The tokenizer in {arguments.work} differs from that of {DEMO}, whose word embeddings initialise this "
            "model: use the WORK folder of that model, or an empty folder with the same versions of all packages."
        )

    def loss_at(model: Any, step: int) -> torch.Tensor:
        generator = np.random.default_rng((SEED, step))
        return loss_of(model, windows(generator, streams, rows=BATCH, tokens=CONTEXT - 2), generator)

    model = untrained()
    work = arguments.work / "masked"
    train(model, loss_at, work, steps=arguments.steps, peak_rate=PEAK_RATE, device=arguments.device)
    model.half().save_pretrained(arguments.out)
    with_mask(arguments.work / "tokenizer").save_pretrained(arguments.out)
    recipe = {
        "seed": SEED, "steps": arguments.steps, "batch": BATCH, "row": CONTEXT, "mixture": MIXTURE,
        "chosen_share": CHOSEN_SHARE, "other_python": OTHER_PYTHON,
        "training_tokens": {source: len(stream) for source, stream in streams.items()},
    }  # fmt: skip
    (arguments.out / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n")


if __name__ == "__main__":
    main()
