"""Train the bundled masked language model, on the text that the causal one has learned.

    python -m training.train_masked --work WORK --out sp_lens/assets/demo-masked [--device cuda]

A small RoBERTa with the tokenizer of `training.train`, to which <s> and <mask> are added. WORK may be the
folder of that training, whose token streams are then read again; its tokenizer must be the
bundled one. Seeded and resumable.
"""

import json
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
# More than the 15 % of an evaluation: each row teaches more (Wettig et al. 2023, "Should you mask 15%").
CHOSEN_SHARE = 0.3
BOS, MASK = VOCABULARY, VOCABULARY + 1
DEMO = Path(__file__).with_name("demo")

CONFIG = RobertaConfig(
    vocab_size=VOCABULARY + 2,
    hidden_size=192,
    num_hidden_layers=4,
    num_attention_heads=6,
    intermediate_size=768,
    max_position_embeddings=CONTEXT + PAD + 1,  # positions are counted from after the padding's
    type_vocab_size=1,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    pad_token_id=PAD,
    bos_token_id=BOS,
    eos_token_id=EOS,
    architectures=["RobertaForMaskedLM"],
)


def with_mask(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer in `folder` with <s> and <mask>, and RoBERTa's habit of <s> before a text and </s> after it."""
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
    """A RoBERTa that knows the words of the bundled causal model, and waves for positions.

    A run from random ones, at twice the rate, was at 5.9 nats after 290 steps, little better than how often words are,
    and was stopped; this one was at 5.4 then.
    """
    torch.manual_seed(SEED)
    model = RobertaForMaskedLM(CONFIG)
    words = OPTForCausalLM.from_pretrained(DEMO, dtype=torch.float32).get_input_embeddings().weight
    embeddings = model.roberta.embeddings
    place = torch.arange(CONTEXT)[:, None] * 10_000 ** -torch.linspace(0, 1, CONFIG.hidden_size // 2)
    waves = torch.cat([place.sin(), place.cos()], dim=1) * 2**0.5  # (Vaswani et al. 2017, section 3.5)
    with torch.no_grad():
        embeddings.word_embeddings.weight[:VOCABULARY] = words
        embeddings.position_embeddings.weight[PAD + 1 :] = waves * words.std()
    return model


def loss_of(model: Any, rows: np.ndarray, generator: np.random.Generator) -> torch.Tensor:
    """Cross-entropy of the chosen tokens, of which 80 % are masked, 10 % random and 10 % as they were."""
    chosen = (generator.random(rows.shape) < CHOSEN_SHARE) & (rows != EOS)
    dice = generator.random(rows.shape)
    seen = np.where(chosen & (dice < 0.8), MASK, rows)
    seen = np.where(chosen & (dice >= 0.9), generator.integers(2, VOCABULARY, rows.shape), seen)
    seen = np.pad(np.pad(seen, ((0, 0), (1, 0)), constant_values=BOS), ((0, 0), (0, 1)), constant_values=EOS)
    hidden = model.roberta(torch.tensor(seen).to(model.device)).last_hidden_state[:, 1:-1]
    target = torch.tensor(chosen).to(model.device)  # the head is a third of the work: only where it is asked
    return cross_entropy(model.lm_head(hidden[target]), torch.tensor(rows).to(model.device)[target])


def main() -> None:
    arguments = arguments_of(__doc__, steps=STEPS)
    streams = prepare(arguments.work)
    words, ours = (
        PreTrainedTokenizerFast.from_pretrained(folder).get_vocab() for folder in (DEMO, arguments.work / "tokenizer")
    )
    if words != ours:
        raise SystemExit(
            f"{arguments.work} has another tokenizer than {DEMO}, whose word embeddings this one starts with"
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
