"""Measure the bundled causal language model and write its model card.

    python -m training.card --work WORK --out sp_lens/assets/demo

WORK is the folder of `training.train`. The bigram baseline is estimated on its token streams.

Output: `README.md` in the folder --out, which holds the model and its `recipe.json`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from sp_lens.data.corpora import load_corpora
from sp_lens.data.rows import rows
from sp_lens.data.text import load_corpus
from sp_lens.errors import SpLensError
from sp_lens.evaluation.evaluate import Evaluation, evaluate
from sp_lens.models.loading import load_model
from sp_lens.pruning.prune import prune
from sp_lens.storage.serialization import versions
from training.texts import VOCABULARY

TOKENS = 100_000
PRUNE_TOKENS = 20_000
# Held-out corpora, and the training streams on which the bigram baseline of each is estimated.
CORPORA = {
    "python": ("python", "other_python"),
    "non_python": ("non_python",),
    "prose": ("prose",),
    "novels": ("novels",),
}
DIRECTIONS = (("code", "prose"), ("prose", "code"))

_TEXT = """---
license: mit
pipeline_tag: text-generation
---

# The bundled model of sp_lens

A small OPT ({parameters:.1f}M parameters: 4 layers, d_model 192, 6 heads, 768 ReLU neurons per layer; byte-level
BPE with 4096 tokens, context 256) that was trained on Python, C++, documentation prose and novels. Its purpose
is to demonstrate selective pruning on a laptop without a model hub; it is not useful for anything else.

## How it was made

`python -m training.train` (seed {seed}): {steps} steps of {batch} rows of {row} tokens, {seen:.1f}M tokens,
AdamW in float32, stored as float16. The training text is the split "train" of the text that
`sp_lens.data.sources.offline` reads (the standard library without its docstrings, C and C++ headers of torch and
Python, paragraphs of docstrings), Python sources of installed packages ({packages}), and 22 public-domain books of
Project Gutenberg. None of this text is in the repository.

| text | share of the rows | available tokens |
|---|---|---|
{mixture}

## Accuracy

Measured on documents that it was not trained on ({tokens:,} tokens of each corpus, `split="evaluate"`). The baseline
is an interpolated bigram model (Witten-Bell), estimated on the training text of the same kind. Losses are in nats per
token.

| held-out text | loss | bigram loss | top-1 | bigram top-1 | top-10 |
|---|---|---|---|---|---|
{scores}

## Effect of pruning

Algorithm 1 with metric `abs` on MLP neurons, 5 % per step, with {prune_tokens:,} tokens of each corpus to collect and
as many to evaluate. Top-1 accuracy on held-out text:

| forget / retain | share pruned | forget top-1 | retain top-1 | random: forget top-1 | random: retain top-1 |
|---|---|---|---|---|---|
{pruning}

Written by `python -m training.card` with {versions}.
"""


class Bigram:
    """Bigram model p(next | token): bigram frequencies interpolated with unigrams after Witten and Bell (1991)."""

    def __init__(self, tokens: np.ndarray) -> None:
        pairs = tokens[:-1].astype(np.int64) * VOCABULARY + tokens[1:]
        self.counts = np.bincount(pairs, minlength=VOCABULARY**2).reshape(VOCABULARY, VOCABULARY)
        unigrams = np.bincount(tokens, minlength=VOCABULARY) + 1.0
        self.unigram = unigrams / unigrams.sum()
        self.total = self.counts.sum(axis=1)
        self.kinds = (self.counts > 0).sum(axis=1)

    def score(self, before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
        """Return the mean loss in nats and the top-1 accuracy on pairs of adjacent tokens."""
        seen = self.counts[before, after] + self.kinds[before] * self.unigram[after]
        weight = self.total[before] + self.kinds[before]
        probability = np.where(weight > 0, seen / np.maximum(weight, 1), self.unigram[after])
        best = np.where(self.total > 0, self.counts.argmax(axis=1), self.unigram.argmax())
        return float(-np.log(probability).mean()), float((best[before] == after).mean())


def score_lines(model: Any, work: Path) -> list[str]:
    """Return a table row for each corpus with the loss and accuracy of the model and of the bigram baseline."""
    lines = []
    for name, streams in CORPORA.items():
        try:
            corpus = load_corpus(name, model, tokens=TOKENS, split="evaluate", offline=True)
        except SpLensError as error:
            raise SystemExit(f"The model card needs all corpora. {error}") from error
        held_out = [(row.tokens[:-1][row.counted[1:]], row.tokens[1:][row.counted[1:]]) for row in rows(model, corpus)]
        before, after = (np.concatenate([pair[side].numpy() for pair in held_out]) for side in (0, 1))
        bigram = Bigram(np.concatenate([np.load(work / f"{stream}.npy") for stream in streams]))
        bigram_loss, bigram_top1 = bigram.score(before, after)
        result: Evaluation = evaluate(model, corpus)
        lines.append(
            f"| {name} | {result.loss:.2f} | {bigram_loss:.2f} | {result.top1:.3f} | {bigram_top1:.3f} | "
            f"{result.top10:.3f} |"
        )
    return lines


def pruning_lines(model: Any, tokens: int) -> list[str]:
    """Return table rows with the accuracies after pruning in both directions, by score and at random."""
    lines = []
    for forget, retain in DIRECTIONS:
        corpora = load_corpora(forget, retain, model, tokens=tokens, offline=True)
        runs = [prune(model, **corpora, metric=metric, fraction=0.05, steps=6) for metric in ("abs", "random")]
        for step in (0, 1, 2, 4, 6):
            numbers = [f"{run.history[f'{side}_top1'][step]:.3f}" for run in runs for side in ("forget", "retain")]
            lines.append(f"| {forget} / {retain} | {step * 5} % | {' | '.join(numbers)} |")
    return lines


def facts_of(folder: Path, model: Any) -> dict[str, Any]:
    """Return the recipe in the folder of a model, its number of parameters in millions, and the package versions."""
    recipe = json.loads((folder / "recipe.json").read_text())
    facts = recipe | {
        "parameters": sum(parameter.numel() for parameter in model.original_model.parameters()) / 1e6,
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
    }
    if "mixture" in recipe:  # a language model
        facts["seen"] = recipe["steps"] * recipe["batch"] * recipe["row"] / 1e6
        facts["packages"] = ", ".join(recipe["other_python"])
        facts["mixture"] = "\n".join(
            f"| {source} | {share:.0%} | {recipe['training_tokens'][source]:,} |"
            for source, share in recipe["mixture"].items()
        )
    return facts


def arguments_of(doc: str | None, *folders: str) -> argparse.Namespace:
    """Parse the options of a card script: --out and further required folders."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for folder in ("out", *folders):
        description = "folder of the model" if folder == "out" else "folder of the training"
        parser.add_argument(f"--{folder}", type=Path, required=True, help=description)
    return parser.parse_args()


def main() -> None:
    arguments = arguments_of(__doc__, "work")
    model = load_model(arguments.out, device="cpu")
    text = _TEXT.format(
        **facts_of(arguments.out, model),
        tokens=TOKENS,
        scores="\n".join(score_lines(model, arguments.work)),
        prune_tokens=PRUNE_TOKENS,
        pruning="\n".join(pruning_lines(model, PRUNE_TOKENS)),
    )
    (arguments.out / "README.md").write_text(text)


if __name__ == "__main__":
    main()
