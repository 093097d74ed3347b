"""Convert a corpus of images into pixels and classes, as `sp_lens.data.rows` converts text into tokens."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from sp_lens.errors import SpLensError
from sp_lens.models.task import reads_images

GREY_OR_COLOUR = {1: "L", 3: "RGB"}  # mode of Pillow for each number of channels


class Picture(NamedTuple):
    """Pixels of an image as the model reads them, and the index of its class."""

    pixels: Float[torch.Tensor, "channel height width"]
    label: int

    @property
    def content(self) -> bytes:
        """The pixels as bytes, to compare images with each other."""
        return self.pixels.numpy().tobytes()

    @property
    def is_boilerplate(self) -> bool:
        """Always false: unlike a short row of text, an image that recurs is a copy."""
        return False


def processor_of(model: Any) -> Any:
    """Return the image processor of the model, which resizes and normalizes images.

    Raises:
        SpLensError: If the model has no image processor.
    """
    if getattr(model, "processor", None) is None:
        raise SpLensError(
            "the model has no image processor, so it cannot read images: install it with pip install "
            "'sp_lens[vision]', set model.processor = transformers.AutoImageProcessor.from_pretrained(...), or pass "
            "pixel_values and labels."
        )
    return model.processor


def pictures(model: Any, corpus: Any) -> Iterator[Picture]:
    """Yield the images of a corpus.

    Args:
        model: A bridge around an image classifier. It defines the classes and the size of an image.
        corpus: A dataset with the columns `image` and `label`, as `load_images` returns it, or an iterable of mappings
            with `pixel_values` [channel height width] and `labels`, each of one image or of a batch of images.

    Raises:
        SpLensError: If the model reads text, if the corpus is empty or of another type, or if an image has another size
            or class than the model expects.
    """
    if not reads_images(model):
        raise SpLensError("the model reads tokens, but the corpus has images: use load_corpus(source, model).")
    if isinstance(corpus, str):
        raise SpLensError(
            f"expected images as the corpus, got the string {corpus[:40]!r}: use load_images({corpus[:40]!r}, model)."
        )
    config = model.original_model.config
    expected = (config.num_channels, config.image_size, config.image_size)
    if isinstance(corpus, Mapping):
        corpus = [corpus]  # a single image or batch
    if not isinstance(corpus, Iterable):
        raise SpLensError(f"expected images and their classes as the corpus, got {type(corpus).__name__}.")
    index = -1
    items = _decoded(corpus) if hasattr(corpus, "column_names") else corpus
    images = (image for item_index, item in enumerate(items) for image in _images_of(model, item, item_index))
    for index, (pixels, label) in enumerate(images):
        if tuple(pixels.shape) != expected:
            raise SpLensError(
                f"image {index} has the shape {tuple(pixels.shape)}, but the model expects {expected} (channel, "
                "height, width): resize it with load_images(source, model)."
            )
        if not 0 <= label < config.num_labels:
            raise SpLensError(
                f"image {index} has class {label}, but the classes of the model are 0 to {config.num_labels - 1}: use "
                "a dataset with the classes of the model."
            )
        yield Picture(pixels, label)
    if index < 0:
        raise SpLensError("the corpus is empty: expected at least one image.")


def _decoded(corpus: Iterable[Any]) -> Iterator[Any]:
    """Yield the items of a dataset, which decodes an image when it is accessed."""
    items, index = iter(corpus), 0
    while True:
        try:
            with _without_ghostscript():
                item = next(items)
        except StopIteration:
            return
        except SpLensError:
            raise
        except Exception as error:  # Pillow raises many kinds of exceptions for files that are not valid images
            raise SpLensError(
                f"cannot read image {index} of the corpus ({type(error).__name__}: {str(error)[:80]}): the file may be "
                "truncated, in another format than its name says, or too large. Remove it."
            ) from error
        yield item
        index += 1


@contextmanager
def _without_ghostscript() -> Iterator[None]:
    """Context manager that prevents Pillow from running Ghostscript.

    Pillow passes any file that contains PostScript to Ghostscript, whatever its name, and PostScript is a program.
    """
    try:
        from PIL import EpsImagePlugin
    except ImportError:  # without Pillow no image is decoded
        yield
        return
    before, EpsImagePlugin.gs_binary = EpsImagePlugin.gs_binary, False
    try:
        yield
    finally:
        EpsImagePlugin.gs_binary = before


def _images_of(model: Any, item: Any, index: int) -> list[tuple[torch.Tensor, int]]:
    """Return pixels and class of each image in one item of a corpus, which is an image or a batch of images."""
    keys = set(item) if isinstance(item, Mapping) else set()
    try:
        if {"image", "label"} <= keys:
            return [(_pixels(model, item["image"]), int(item["label"]))]
        if {"pixel_values", "labels"} <= keys:
            pixels, labels = torch.as_tensor(item["pixel_values"]), torch.as_tensor(item["labels"])
            if not pixels.is_floating_point():
                raise ValueError(f"expected pixel_values as normalized floats, got {pixels.dtype}")
            pixels = pixels if pixels.ndim == 4 else pixels[None]
            return list(zip(pixels.float(), labels.reshape(len(pixels)).tolist(), strict=True))
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise SpLensError(f"cannot read item {index} of the corpus as an image and its class: {error}.") from error
    raise SpLensError(
        f"item {index} of the corpus is not an image with a class: got {type(item).__name__} with "
        f"{sorted(keys) or 'no keys'}, expected image and label, as load_images(source, model) returns them."
    )


def _pixels(model: Any, image: Any) -> torch.Tensor:
    """Apply the image processor of the model to an image of Pillow."""
    channels = model.original_model.config.num_channels
    if channels not in GREY_OR_COLOUR:
        raise SpLensError(
            f"the model reads {channels} channels, but images have one or three: pass pixel_values and labels."
        )
    array = np.asarray(image.convert(GREY_OR_COLOUR[channels]))
    processed = processor_of(model)(
        array.reshape(*array.shape[:2], channels), return_tensors="pt", input_data_format="channels_last"
    )
    return processed.pixel_values[0]
