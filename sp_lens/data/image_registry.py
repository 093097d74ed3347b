"""Named sets of images: those on this machine, and those of the Hugging Face Hub, streamed until there are enough."""

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, load_dataset
from jaxtyping import Bool

from sp_lens.data.local_tables import data_folder
from sp_lens.data.offline import split_of
from sp_lens.data.registry import reading, stream
from sp_lens.errors import SpLensError, check_choice
from sp_lens.typing import SPLITS, Split

# Of each class of a set, whether it is taken.
Chosen = Callable[[ClassLabel], Bool[np.ndarray, " class"]]

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# The birds among ImageNet's thousand classes: cock to great grey owl, black grouse to black swan, white stork to
# albatross.
BIRDS = (*range(7, 25), *range(80, 101), *range(127, 147))


class HubImages(NamedTuple):
    """Images on the Hugging Face Hub. "train" is the Hub's; "collect" and "evaluate" are halves of what is held out.

    Attributes:
        repository: the dataset.
        held_out: the Hub's split that is halved.
        stand_in: the classes of CIFAR-10 that stand in for the set offline.
        classes: its classes, by number; by default all that the dataset has.
        image_column: where the images are.
        label_column: where their classes are.
        large: too large for all of it to be read.
    """

    repository: str
    held_out: str
    stand_in: tuple[str, ...] = CIFAR10
    classes: tuple[int, ...] | None = None
    image_column: str = "image"
    label_column: str = "label"
    large: bool = False


class LocalImages(NamedTuple):
    """Images that are on this machine: how they are read, and what they are, for the record."""

    read: Callable[[Split], Dataset]
    origin: str


def _digits(split: Split) -> Dataset:
    """8 x 8 pixels, 1797 digits by 43 writers (Alpaydin & Kaynak 1998), inside scikit-learn."""
    try:
        from PIL.Image import fromarray
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise SpLensError(f"the digits need more packages: pip install 'sp-lens[vision]' ({error}).") from error
    pixels, labels = load_digits(return_X_y=True)
    there = [number for number in range(len(labels)) if split_of(f"digits/{number}") == split]
    images = [fromarray(np.round(pixels[number].reshape(8, 8) * (255 / 16)).astype(np.uint8)) for number in there]
    names = [str(digit) for digit in range(10)]
    return Dataset.from_dict(
        {"image": images, "label": labels[there].tolist()},
        features=Features({"image": Image(), "label": ClassLabel(names=names)}),
    )


def _cifar10(split: Split) -> Dataset:
    """CIFAR-10's 50,000 training images; its 10,000 test images are halved into collecting and evaluating."""
    file = data_folder() / f"cifar10-{'train' if split == 'train' else 'test'}.parquet"
    if not file.is_file():
        raise SpLensError(
            f"there is no {file.name} in the folder that SP_LENS_DATA names. For your own copy of CIFAR-10, "
            "give the dataset: load_images(datasets.load_dataset('cifar10', split='test'), model, image_column='img')."
        )
    dataset = cast(Dataset, load_dataset("parquet", data_files=str(file), split="train"))
    dataset = dataset.cast_column("image", Image()).class_encode_column("label")
    if split == "train":
        return dataset
    return dataset.select([number for number in range(len(dataset)) if _half("cifar10", number) == split])


_IMAGENET = HubImages("ILSVRC/imagenet-1k", "validation", large=True)
_NO_BIRDS = tuple(number for number in range(1000) if number not in BIRDS)
HUB: dict[str, HubImages] = {
    "cifar100": HubImages("uoft-cs/cifar100", "test", image_column="img", label_column="fine_label"),
    "imagenet_birds": _IMAGENET._replace(classes=BIRDS, stand_in=("bird",)),
    "imagenet_birdless": _IMAGENET._replace(
        classes=_NO_BIRDS, stand_in=tuple(name for name in CIFAR10 if name != "bird")
    ),
}
LOCAL: dict[str, LocalImages] = {
    "digits": LocalImages(_digits, "scikit-learn's handwritten digits"),
    "cifar10": LocalImages(_cifar10, "CIFAR-10"),
}
IMAGE_SETS = (*LOCAL, *HUB)


def read_named(
    name: str, split: Split, *, offline: bool = False, images: int | None = None, chosen: Chosen | None = None
) -> tuple[Dataset, dict[str, Any]]:
    """The images of a named set in a split, with columns `image` and `label`, and for the record what they really are.

    Args:
        name: one of `IMAGE_SETS`.
        split: no image is in two of them.
        offline: where the set is the Hub's, read the images of CIFAR-10 that stand in for it.
        images: of a set of the Hub, read no more than so many of those chosen.
        chosen: of a set of the Hub, which classes to read; by default all. What this machine has is read whole.

    Returns:
        The images, and `offline` (whether CIFAR-10 stands in for the Hub's set) and `origin`.

    Raises:
        SpLensError: where they are not on this machine, or the Hub can't be reached, and for a set of ImageNet without
            a number of images.
    """
    check_choice("set of images", name, IMAGE_SETS)
    check_choice("split", split, SPLITS)
    if name in LOCAL:
        return LOCAL[name].read(split), {"offline": False, "origin": LOCAL[name].origin}
    if offline:
        return _stand_in(HUB[name], split), {"offline": True, "origin": _in_its_place(HUB[name])}
    there = "train" if split == "train" else HUB[name].held_out
    read = _of_hub(name, split, there, images=images, chosen=chosen)
    return read, {"offline": False, "origin": f"{HUB[name].repository}, {there}"}


def _stand_in(hub: HubImages, split: Split) -> Dataset:
    dataset = _cifar10(split)
    names, labels = dataset.features["label"].names, dataset["label"][:]
    return dataset.select([place for place, label in enumerate(labels) if names[label] in hub.stand_in])


def _in_its_place(hub: HubImages) -> str:
    return "CIFAR-10" if hub.stand_in == CIFAR10 else f"CIFAR-10: {', '.join(hub.stand_in)}"


def _of_hub(name: str, split: Split, there: str, *, images: int | None, chosen: Chosen | None) -> Dataset:
    """The first images of the chosen classes that come; on the Hub the classes are mixed."""
    hub = HUB[name]
    if hub.large and images is None:
        raise SpLensError(f"{name!r} is too large to read all of it: say how many, images=1000 or --images 1000.")
    instead = (
        f"For what this machine has in its place, {_in_its_place(hub)}, say load_images({name!r}, model, offline=True) "
        "or --offline."
    )
    found: dict[str, list[Any]] = {"image": [], "label": []}
    with reading(hub.repository, instead):
        examples = stream(hub.repository, there)
        feature = cast(Features, examples.features)[hub.label_column]
        numbers = np.arange(len(feature.names))
        wanted = np.isin(numbers, hub.classes or numbers)
        if chosen is not None:
            wanted &= chosen(feature)
        if not wanted.any():
            raise SpLensError(f"{name!r} has none of these classes: ask for other classes, or for another set.")
        for number, example in enumerate(examples.cast_column(hub.image_column, Image(decode=False))):
            if wanted[example[hub.label_column]] and (split == "train" or _half(hub.repository, number) == split):
                found["image"].append(example[hub.image_column])
                found["label"].append(example[hub.label_column])
                if len(found["label"]) == images:
                    break
    return Dataset.from_dict(found, features=Features({"image": Image(), "label": feature}))


def _half(name: str, number: int) -> Split:
    """Whether a held-out image is one to collect from or to evaluate on, by a hash of its number."""
    digest = hashlib.sha256(f"{name}/{number}".encode()).digest()
    return "collect" if digest[-1] % 2 == 0 else "evaluate"
