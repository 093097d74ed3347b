"""A dataset of images -> pixels as a model reads them, each with its class: what `rows` is for text."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from sp_lens.errors import SpLensError
from sp_lens.models.task import reads_images

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
            "the model has no image processor (it needs pip install 'sp-lens[vision]'), so it can't read images: set "
            "model.processor = transformers.AutoImageProcessor.from_pretrained(...), or give pixel_values and labels."
        )
    return model.processor


def pictures(model: Any, corpus: Any) -> Iterator[Picture]:
    """The images of a corpus.

    Args:
        model: a bridge around a classifier of images; says how many classes there are and what an image's size is.
        corpus: what `load_images` returns: a dataset with `image` and `label`; or an iterable of mappings with
            `pixel_values` (channel height width) and `labels`, one image or a batch of them each.

    Raises:
        SpLensError: for a model of text, for anything else as a corpus, and for images of another size or class.
    """
    if not reads_images(model):
        raise SpLensError("the model reads tokens, and images were given: bring text, load_corpus(source, model).")
    if isinstance(corpus, str):
        raise SpLensError(f"a corpus is images, got the string {corpus[:40]!r}: load_images({corpus[:40]!r}, model).")
    config = model.original_model.config
    expected = (config.num_channels, config.image_size, config.image_size)
    if isinstance(corpus, Mapping):
        corpus = [corpus]  # one image, or one batch
    if not isinstance(corpus, Iterable):
        raise SpLensError(f"a corpus is images and their classes, got {type(corpus).__name__}.")
    number = -1
    items = _decoded(corpus) if hasattr(corpus, "column_names") else corpus
    images = (image for place, item in enumerate(items) for image in _read(model, item, place))
    for number, (pixels, label) in enumerate(images):
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


def _decoded(corpus: Iterable[Any]) -> Iterator[Any]:
    """The items of a dataset, which decodes an image when it is asked for it."""
    items, number = iter(corpus), 0
    while True:
        try:
            with _without_ghostscript():
                item = next(items)
        except StopIteration:
            return
        except SpLensError:
            raise
        except Exception as error:  # PIL has errors of its own for each way in which a file is no image
            raise SpLensError(
                f"image {number} of the corpus can't be read ({type(error).__name__}: {str(error)[:80]}): is it cut "
                "short, of another kind than it is called, or far too large? Take it out."
            ) from error
        yield item
        number += 1


@contextmanager
def _without_ghostscript() -> Iterator[None]:
    """Pillow hands a picture that is PostScript, whatever its name, to Ghostscript, and PostScript is a program."""
    try:
        from PIL import EpsImagePlugin
    except ImportError:  # then no picture is decoded
        yield
        return
    before, EpsImagePlugin.gs_binary = EpsImagePlugin.gs_binary, False
    try:
        yield
    finally:
        EpsImagePlugin.gs_binary = before


def _read(model: Any, item: Any, number: int) -> list[tuple[torch.Tensor, int]]:
    """The pixels and the class of the image that an item of a corpus is, or of each in the batch that it is."""
    keys = set(item) if isinstance(item, Mapping) else set()
    try:
        if {"image", "label"} <= keys:
            return [(_pixels(model, item["image"]), int(item["label"]))]
        if {"pixel_values", "labels"} <= keys:
            pixels, labels = torch.as_tensor(item["pixel_values"]), torch.as_tensor(item["labels"])
            if not pixels.is_floating_point():
                raise ValueError(f"pixel_values are normalised floats, got {pixels.dtype}")
            pixels = pixels if pixels.ndim == 4 else pixels[None]
            return list(zip(pixels.float(), labels.reshape(len(pixels)).tolist(), strict=True))
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise SpLensError(f"item {number} of the corpus can't be read as an image and its class: {error}.") from error
    raise SpLensError(
        f"item {number} of the corpus is no image of a class: got {type(item).__name__} with "
        f"{sorted(keys) or 'no keys'}, expected image and label, as load_images(source, model) makes them."
    )


def _pixels(model: Any, image: Any) -> torch.Tensor:
    """What the model's image processor makes of an image of PIL's."""
    channels = model.original_model.config.num_channels
    if channels not in GREY_OR_COLOUR:
        raise SpLensError(f"the model reads {channels} channels, and images have one or three: give pixel_values.")
    array = np.asarray(image.convert(GREY_OR_COLOUR[channels]))
    read = processor_of(model)(
        array.reshape(*array.shape[:2], channels), return_tensors="pt", input_data_format="channels_last"
    )
    return read.pixel_values[0]
