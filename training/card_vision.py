"""Measure the bundled classifier of images and write its card; needs CIFAR-10 in the folder of `SP_LENS_DATA`.

python -m training.card_vision --out sp_lens/assets/demo-vision
"""

from typing import Any

from sp_lens.data.images import load_images
from sp_lens.evaluation.evaluate import evaluate
from sp_lens.models.loading import load_model
from sp_lens.pruning.prune import prune
from training.card import arguments_of, facts_of

FORGOTTEN = ("ship", "cat")
IMAGES = 1000  # of a corpus, or as many as there are of a class

_TEXT = """---
license: mit
pipeline_tag: image-classification
---

# The bundled classifier of images of sp_lens

A small ViT ({parameters:.1f}M parameters: 6 layers, d_model 128, 4 heads, 256 neurons a layer; 32 x 32 pixels
in 64 patches) that has learned the ten classes of CIFAR-10, so that a class can be seen to be forgotten. It is
no use for anything else.

## How it was made

`python -m training.train_vision` (seed {seed}): {steps} steps of {batch} images, {epochs:.0f} times the
50,000 training images of CIFAR-10 (Krizhevsky 2009), shifted and mirrored; AdamW in float32, stored as float16.
None of the images is in this repository.

## What it scores

Top-1 on all 10,000 test images: {top1:.3f}, loss {loss:.2f} nats (by chance: .100, 2.30).

## What pruning does to it

Algorithm 1, metric `abs`, 3 % a step. One half of the test images is collected from, the other evaluated on:
{images:,} images of the classes that are kept, and all of the class that is forgotten. Top-1:

| forgotten | site | share pruned | forgotten class | other classes | random: forgotten class | random: other classes |
|---|---|---|---|---|---|---|
{pruning}

Written by `python -m training.card_vision` with {versions}.
"""


def pruning_lines(model: Any) -> list[str]:
    """What forgetting a class does at either site, beside random pruning."""
    lines = []
    for name in FORGOTTEN:
        forget, eval_forget = (
            load_images("cifar10", model, classes=[name], images=None, split=split) for split in ("collect", "evaluate")
        )
        retain, eval_retain = (
            load_images("cifar10", model, without=[name], images=IMAGES, split=split)
            for split in ("collect", "evaluate")
        )
        for site in ("mlp", "attn"):
            runs = [
                prune(
                    model, forget, retain, eval_forget=eval_forget, eval_retain=eval_retain, site=site, metric=metric,
                    fraction=0.03, steps=8,
                )
                for metric in ("abs", "random")
            ]  # fmt: skip
            for step in (0, 2, 4, 8):
                numbers = [f"{run.history[f'{side}_top1'][step]:.3f}" for run in runs for side in ("forget", "retain")]
                share = runs[0].history["share"][step]
                lines.append(f"| {name} | {site} | {share:.0%} | {' | '.join(numbers)} |")
    return lines


def main() -> None:
    """Measure and write."""
    arguments = arguments_of(__doc__)
    model = load_model(arguments.out, device="cpu")
    facts = facts_of(arguments.out, model)
    halves = [
        evaluate(model, load_images("cifar10", model, images=None, split=split)) for split in ("collect", "evaluate")
    ]
    total = sum(half.tokens for half in halves)
    text = _TEXT.format(
        **facts | {"images": IMAGES},
        epochs=facts["steps"] * facts["batch"] / facts["images"],
        top1=sum(half.top1 * half.tokens for half in halves) / total,
        loss=sum(half.loss * half.tokens for half in halves) / total,
        pruning="\n".join(pruning_lines(model)),
    )
    (arguments.out / "README.md").write_text(text)


if __name__ == "__main__":
    main()
