"""Measure the bundled masked language model and write its model card.

    python -m training.card_masked --out sp_lens/assets/demo-masked

Output: `README.md` in the folder --out, which holds the model and its `recipe.json`.
"""

from collections import Counter
from typing import Any

from sp_lens.data.rows import rows
from sp_lens.data.text import load_corpus
from sp_lens.evaluation.evaluate import evaluate
from sp_lens.models.loading import load_model
from training.card import PRUNE_TOKENS, TOKENS, arguments_of, facts_of, pruning_lines

CORPORA = ("python", "non_python", "prose", "novels")

_TEXT = """---
license: mit
pipeline_tag: fill-mask
---

# The bundled masked language model of sp_lens

A small RoBERTa ({parameters:.1f}M parameters: 4 layers, d_model 192, 6 heads, 768 neurons per layer;
byte-level BPE with 4098 tokens, context 128) that was trained on Python, C++, documentation prose and novels. Its
purpose is to demonstrate selective pruning of a masked language model; it is not useful for anything else.

## How it was made

`python -m training.train_masked` (seed {seed}): {steps} steps of {batch} rows of {row} tokens,
{seen:.1f}M tokens, of which {chosen_share:.0%} were predicted; AdamW in float32, stored as float16. Training
started from the word embeddings of the bundled causal model and from sinusoidal position embeddings, and used the same
text: the split "train" of the text that `sp_lens.data.sources.offline` reads, Python sources of installed packages
({packages}), and 22 public-domain books of Project Gutenberg. None of this text is in the repository.

| text | share of the rows | available tokens |
|---|---|---|
{mixture}

## Accuracy

Measured on documents that it was not trained on ({tokens:,} tokens of each corpus, `split="evaluate"`), with 15 % of
the tokens predicted. The baseline always predicts the most common token of the text. Losses are in nats per token.

| held-out text | loss | top-1 | top-10 | top-1 of the most common token |
|---|---|---|---|---|
{scores}

## Effect of pruning

Algorithm 1 with metric `abs` on MLP neurons, 5 % per step, with {prune_tokens:,} tokens of each corpus to collect and
as many to evaluate. Top-1 accuracy on held-out text:

| forget / retain | share pruned | forget top-1 | retain top-1 | random: forget top-1 | random: retain top-1 |
|---|---|---|---|---|---|
{pruning}

Written by `python -m training.card_masked` with {versions}.
"""


def score_line(model: Any, name: str) -> str:
    """Return the table row of a corpus with the loss and accuracies of the model and the accuracy of the baseline."""
    corpus = load_corpus(name, model, tokens=TOKENS, split="evaluate", offline=True)
    counts = Counter(token for row in rows(model, corpus) for token in row.tokens[row.counted].tolist())
    result = evaluate(model, corpus)
    common = max(counts.values()) / counts.total()
    return f"| {name} | {result.loss:.2f} | {result.top1:.3f} | {result.top10:.3f} | {common:.3f} |"


def main() -> None:
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
