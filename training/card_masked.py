"""Measure the bundled masked language model and write its card.

python -m training.card_masked --out sp_lens/assets/demo-masked
"""

from collections import Counter
from typing import Any

from sp_lens.data.text import load_corpus
from sp_lens.data.tokenization import rows
from sp_lens.evaluation.evaluate import evaluate
from sp_lens.models.loading import load_model
from training.card import PRUNE_TOKENS, TOKENS, arguments_of, facts_of, pruning_lines

CORPORA = ("python", "non_python", "prose", "novels")

_TEXT = """---
license: mit
pipeline_tag: fill-mask
---

# The bundled masked language model of sp_lens

A small RoBERTa ({parameters:.1f}M parameters: 4 layers, d_model 192, 6 heads, 768 neurons a layer; byte-level
BPE of 4098, context 128) that has learned Python, C++, the prose of documentation and novels, so that selective
pruning of a masked language model can be seen at work. It is no use for anything else.

## How it was made

`python -m training.train_masked` (seed {seed}): {steps} steps of {batch} rows of {row} tokens,
{seen:.1f}M tokens, of which {chosen_share:.0%} were asked for; AdamW in float32, stored as float16. It starts
with the word embeddings of the bundled causal model and with waves for positions, and was trained on the same
text: the training split of what `sp_lens.offline` reads, Python sources of installed packages ({packages}), and
22 public-domain books of Project Gutenberg. None of that text is in this repository.

| text | share of the rows | tokens there were |
|---|---|---|
{mixture}

## What it scores

On documents that it was not trained on ({tokens:,} tokens of each, `split="evaluate"`), 15 % of the tokens
asked for. The baseline always says the most common token of that text. Losses in nats a token.

| held-out text | loss | top-1 | top-10 | top-1 of the most common token |
|---|---|---|---|---|
{scores}

## What pruning does to it

Algorithm 1, metric `abs`, MLP neurons, 5 % a step, {prune_tokens:,} tokens to collect and to evaluate from each
corpus. Top-1 on held-out text:

| forget / retain | share pruned | forget top-1 | retain top-1 | random: forget top-1 | random: retain top-1 |
|---|---|---|---|---|---|
{pruning}

Written by `python -m training.card_masked` with {versions}.
"""


def score_line(model: Any, name: str) -> str:
    """The model's loss and accuracy on held-out text, beside the baseline's."""
    corpus = load_corpus(name, model, tokens=TOKENS, split="evaluate", offline=True)
    counts = Counter(token for row in rows(model, corpus) for token in row.tokens[row.counted].tolist())
    ours = evaluate(model, corpus)
    common = max(counts.values()) / counts.total()
    return f"| {name} | {ours.loss:.2f} | {ours.top1:.3f} | {ours.top10:.3f} | {common:.3f} |"


def main() -> None:
    """Measure and write."""
    arguments = arguments_of(__doc__)
    model = load_model(arguments.out, device="cpu")
    text = _TEXT.format(
        **facts_of(arguments.out, model),
        tokens=TOKENS,
        scores="\n".join(score_line(model, name) for name in CORPORA),
        prune_tokens=PRUNE_TOKENS,
        pruning="\n".join(pruning_lines(model, PRUNE_TOKENS)),
    )
    (arguments.out / "README.md").write_text(text)


if __name__ == "__main__":
    main()
