"""A dataset of images -> pixels as a model reads them, each with its class: what `rows` is for text."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from sp_lens.errors import SpLensError
from sp_lens.tasks import reads_images

GREY_OR_COLOUR = {1: "L", 3: "RGB"}  # by channels, as PIL calls them


class Picture(NamedTuple):
    """An image as the model reads it, and its class."""

    pixels: Float[torch.Tensor, "channel height width"]
    label: int

    @property
    def content(self) -> bytes:
        """What the model reads, to tell one image from another."""
        return self.pixels.numpy().tobytes()

    @property
    def is_boilerplate(self) -> bool:
        """Never: an image that recurs is a copy."""
        return False


def processor_of(model: Any) -> Any:
    """What makes pixels of an image for this model: its size, its mean and its spread.

    Raises:
        SpLensError: when it has none.
    """
    if getattr(model, "processor", None) is None:
        raise SpLensError(
            "the model has no image processor, so it can't read images: set model.processor = "
            "transformers.AutoImageProcessor.from_pretrained(...), or give pixel_values and labels."
        )
    return model.processor


def pictures(model: Any, corpus: Any) -> Iterator[Picture]:
    """The images of a corpus.

    Args:
        model: a bridge around a classifier of images; says how many classes there are and what an image's size is.
        corpus: what `load_images` returns: a dataset with `image` and `label`; or an iterable of mappings with
            `pixel_values` (channel height width) and `labels`.

    Raises:
        SpLensError: for a model of text, for anything else as a corpus, and for images of another size or class.
    """
    if not reads_images(model):
        raise SpLensError("the model reads tokens, and images were given: bring text, load_corpus(source, model).")
    if isinstance(corpus, str):
        raise SpLensError(f"a corpus is images, got the string {corpus[:40]!r}: load_images({corpus[:40]!r}, model).")
    config = model.original_model.config
    expected = (config.num_channels, config.image_size, config.image_size)
    number = -1
    for number, item in enumerate(corpus):
        pixels, label = _read(model, item, number)
        if tuple(pixels.shape) != expected:
            raise SpLensError(
                f"image {number} has the shape {tuple(pixels.shape)}, and the model reads {expected} (channel, height, "
                "width): load_images(source, model) resizes."
            )
        if not 0 <= label < config.num_labels:
            raise SpLensError(
                f"image {number} is of class {label}, and the model knows 0 to {config.num_labels - 1}: was it trained "
                "on another dataset?"
            )
        yield Picture(pixels, label)
    if number < 0:
        raise SpLensError("the corpus is empty: expected at least one image.")


def _read(model: Any, item: Any, number: int) -> tuple[torch.Tensor, int]:
    """The pixels and the class of one item of a corpus."""
    keys = set(item) if isinstance(item, Mapping) else set()
    if {"image", "label"} <= keys:
        channels = model.original_model.config.num_channels
        image = np.asarray(item["image"].convert(GREY_OR_COLOUR[channels]))
        read = processor_of(model)(
            image.reshape(*image.shape[:2], channels), return_tensors="pt", input_data_format="channels_last"
        )
        return read.pixel_values[0], int(item["label"])
    if {"pixel_values", "labels"} <= keys:
        return torch.as_tensor(item["pixel_values"]).float(), int(item["labels"])
    raise SpLensError(
        f"item {number} of the corpus is no image of a class: got {type(item).__name__} with "
        f"{sorted(keys) or 'no keys'}, expected image and label, as load_images(source, model) makes them."
    )
