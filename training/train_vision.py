"""Train the bundled image classifier on CIFAR-10.

    python -m training.train_vision --work WORK --out sp_lens/assets/demo-vision [--device cuda]

The model is a small ViT that reads images of 32 x 32 pixels in 64 patches. CIFAR-10 is read from the folder that
`SP_LENS_DATA` names, and training images are shifted and mirrored. Training is seeded, and the same call resumes after
an interruption. The tests train a smaller model on scikit-learn's digits (`digits_classifier`) in half a minute.

Output: checkpoints in WORK; the model, its image processor and `recipe.json` in the folder --out. `python -m
training.card_vision` then measures the model and writes its model card.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from sp_lens.data.pixels import GREY_OR_COLOUR
from sp_lens.data.sources.image_registry import read_named
from training.training import SEED, arguments_of, train

BATCH = 128  # images
STEPS = 4000
PEAK_RATE = 1e-3
WEIGHT_DECAY = 0.05

CIFAR = ViTConfig(
    image_size=32, patch_size=4, num_channels=3, hidden_size=128, num_hidden_layers=6, num_attention_heads=4,
    intermediate_size=256, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    architectures=["ViTForImageClassification"],
)  # fmt: skip
DIGITS = ViTConfig(
    image_size=8, patch_size=2, num_channels=1, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
    intermediate_size=96, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    architectures=["ViTForImageClassification"],
)  # fmt: skip


def classifier(
    name: str, config: Any, work: Path, out: Path, *, steps: int, batch: int, peak_rate: float, shift: int,
    mirror: bool, device: str = "cpu",
) -> Path:  # fmt: skip
    """Train on the split "train" of a named image dataset, and save the model with its image processor.

    Args:
        name: Name of the dataset, as in `sp_lens.load_images`.
        config: Configuration of the model. The names of the classes are added to it.
        work: Folder for checkpoints.
        out: Folder for the trained model.
        steps: Total number of steps.
        batch: Number of images in a step.
        peak_rate: Learning rate after the warm-up.
        shift: Maximum shift of an image in pixels, in each direction.
        mirror: Whether to mirror half of the images.
        device: Device to train on.

    Returns:
        The folder `out`.
    """
    dataset = read_named(name, "train")[0]
    names = dataset.features["label"].names
    config.id2label, config.label2id = dict(enumerate(names)), {label: index for index, label in enumerate(names)}
    size = config.image_size
    arrays = [np.asarray(image.convert(GREY_OR_COLOUR[config.num_channels])) for image in dataset["image"]]
    images = np.stack(arrays).reshape(len(arrays), size, size, config.num_channels)
    labels = torch.tensor(dataset["label"][:])
    pixels = torch.tensor(images).permute(0, 3, 1, 2)

    def loss_at(model: Any, step: int) -> torch.Tensor:
        generator = np.random.default_rng((SEED, step))
        chosen = generator.integers(0, len(pixels), batch)
        seen = _augmented(pixels[chosen], generator, shift, mirror).to(model.device)
        return model(pixel_values=seen / 127.5 - 1, labels=labels[chosen].to(model.device)).loss

    torch.manual_seed(SEED)
    model: Any = ViTForImageClassification(config)
    train(model, loss_at, work, steps=steps, peak_rate=peak_rate, weight_decay=WEIGHT_DECAY, device=device)
    model.half().save_pretrained(out)
    half = [0.5] * config.num_channels
    ViTImageProcessorPil(size={"height": size, "width": size}, image_mean=half, image_std=half).save_pretrained(out)
    return out


def _augmented(pixels: torch.Tensor, generator: np.random.Generator, shift: int, mirror: bool) -> torch.Tensor:
    """Return the images shifted, with black pixels at the edge, and if `mirror` is set half of them mirrored."""
    side = pixels.shape[-1]
    padded = torch.nn.functional.pad(pixels, (shift,) * 4)
    down, right = generator.integers(0, 2 * shift + 1, (2, len(pixels)))
    flip = generator.random(len(pixels)) < 0.5
    shifted = [p[:, y : y + side, x : x + side] for p, y, x in zip(padded, down, right, strict=True)]
    return torch.stack([p.flip(-1) if mirror and f else p for p, f in zip(shifted, flip, strict=True)])


def digits_classifier(work: Path, out: Path) -> Path:
    """Train a tiny ViT on handwritten digits in half a minute, and return its folder."""
    return classifier("digits", DIGITS, work, out, steps=2500, batch=64, peak_rate=3e-3, shift=1, mirror=False)


def main() -> None:
    arguments = arguments_of(__doc__, steps=STEPS)
    classifier(
        "cifar10", CIFAR, arguments.work / "vision", arguments.out, steps=arguments.steps, batch=BATCH,
        peak_rate=PEAK_RATE, shift=4, mirror=True, device=arguments.device,
    )  # fmt: skip
    recipe = {"seed": SEED, "steps": arguments.steps, "batch": BATCH, "images": 50_000}
    (arguments.out / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n")


if __name__ == "__main__":
    main()
