"""Measure the bundled image classifier and write its model card.

    python -m training.card_vision --out sp_lens/assets/demo-vision

CIFAR-10 is read from the folder that `SP_LENS_DATA` names.

Output: `README.md` in the folder --out, which holds the model and its `recipe.json`.
"""

from typing import Any

from sp_lens.data.images import load_images
from sp_lens.evaluation.evaluate import evaluate
from sp_lens.models.loading import load_model
from sp_lens.pruning.prune import prune
from training.card import arguments_of, facts_of

FORGOTTEN = ("ship", "cat")
IMAGES = 1000  # maximum number of images of a corpus

_TEXT = """---
license: mit
pipeline_tag: image-classification
---

# The bundled image classifier of sp_lens

A small ViT ({parameters:.1f}M parameters: 6 layers, d_model 128, 4 heads, 256 neurons per layer; 32 x 32
pixels in 64 patches) that was trained on the ten classes of CIFAR-10. It shows how one class is forgotten, and is not
useful for anything else.

## How it was made

`python -m training.train_vision` (seed {seed}): {steps} steps of {batch} images, {epochs:.0f} epochs over
the 50,000 training images of CIFAR-10 (Krizhevsky 2009), shifted and mirrored; AdamW in float32, stored as float16.
None of the images is in the repository.

## Accuracy

Top-1 accuracy on all 10,000 test images: {top1:.3f}, loss {loss:.2f} nats (chance: 0.100 and 2.30).

## Effect of pruning

Algorithm 1 with metric `abs`, 3 % per step. One half of the test images is used to collect and the other half to
evaluate: {images:,} images of the retained classes, and all images of the forgotten class. Top-1 accuracy:

| forgotten | site | share pruned | forgotten class | other classes | random: forgotten class | random: other classes |
|---|---|---|---|---|---|---|
{pruning}

Written by `python -m training.card_vision` with {versions}.
"""


def pruning_lines(model: Any) -> list[str]:
    """Return table rows with the accuracies after forgetting a class at either site, by score and at random."""
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
    arguments = arguments_of(__doc__)
    model = load_model(arguments.out, device="cpu")
    facts = facts_of(arguments.out, model)
    results = [
        evaluate(model, load_images("cifar10", model, images=None, split=split)) for split in ("collect", "evaluate")
    ]
    total = sum(result.tokens for result in results)
    text = _TEXT.format(
        **facts | {"images": IMAGES},
        epochs=facts["steps"] * facts["batch"] / facts["images"],
        top1=sum(result.top1 * result.tokens for result in results) / total,
        loss=sum(result.loss * result.tokens for result in results) / total,
        pruning="\n".join(pruning_lines(model)),
    )
    (arguments.out / "README.md").write_text(text)


if __name__ == "__main__":
    main()
