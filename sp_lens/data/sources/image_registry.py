"""Read named image datasets: two that are on this machine, and datasets that are streamed from the Hugging Face Hub.

| name                | default                                           | `offline=True`                          |
|---------------------|---------------------------------------------------|-----------------------------------------|
| `digits`            | handwritten digits, part of scikit-learn          | the same                                |
| `cifar10`           | CIFAR-10 (*)                                      | the same                                |
| `cifar100`          | `uoft-cs/cifar100` on the Hub                     | CIFAR-10, all ten classes (*)           |
| `imagenet_birds`    | `ILSVRC/imagenet-1k` on the Hub, 59 bird classes  | CIFAR-10, class bird (*)                |
| `imagenet_birdless` | `ILSVRC/imagenet-1k` on the Hub, 941 others       | CIFAR-10, the nine other classes (*)    |

CIFAR-10, marked (*), is read from the folder in the environment variable SP_LENS_DATA (`cifar10-train.parquet` and
`cifar10-test.parquet`). It replaces a dataset of the Hub on request only, and results record it.

The splits collect and evaluate are two halves of the images that a dataset holds out of training. The digits have no
published splits: 60 % are assigned to train, 20 % to collect and 20 % to evaluate. No image is in two splits.
"""

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow.parquet
from datasets import ClassLabel, Dataset, Features, Image
from jaxtyping import Bool

from sp_lens.data.sources.local_tables import data_folder
from sp_lens.data.sources.offline import split_of
from sp_lens.data.sources.registry import reading, stream
from sp_lens.errors import SpLensError, check_choice
from sp_lens.typing import SPLITS, Split

# Function of the class names of a dataset that returns which of the classes are selected.
Selection = Callable[[ClassLabel], Bool[np.ndarray, " class"]]

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# The bird classes of ImageNet: cock to great grey owl, black grouse to black swan, and white stork to albatross.
BIRDS = (*range(7, 25), *range(80, 101), *range(127, 147))


class HubImages(NamedTuple):
    """An image dataset on the Hugging Face Hub.

    Our split "train" is the Hub's; "collect" and "evaluate" are halves of the split `held_out`.

    Attributes:
        repository: Name of the dataset.
        held_out: Split of the Hub that is divided into "collect" and "evaluate".
        offline_classes: Classes of CIFAR-10 that are read instead with `offline=True`.
        classes: Indices of the classes to read. None reads all classes of the dataset.
        image_column: Name of the column of images.
        label_column: Name of the column of class indices.
        large: Whether the dataset is too large to read all of it.
    """

    repository: str
    held_out: str
    offline_classes: tuple[str, ...] = CIFAR10
    classes: tuple[int, ...] | None = None
    image_column: str = "image"
    label_column: str = "label"
    large: bool = False

    @property
    def offline_origin(self) -> str:
        """Description of the images that are read with `offline=True`."""
        return "CIFAR-10" if self.offline_classes == CIFAR10 else f"CIFAR-10: {', '.join(self.offline_classes)}"


class LocalImages(NamedTuple):
    """An image dataset on this machine: a function that reads a split, and a description that results record."""

    read: Callable[[Split], Dataset]
    origin: str


def _digits(split: Split) -> Dataset:
    """Read a split of the 1797 digits of scikit-learn, 8 x 8 pixels, by 43 writers (Alpaydin & Kaynak 1998)."""
    try:
        from PIL.Image import fromarray
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise SpLensError(f"the digits need more packages: pip install 'sp_lens[vision]' ({error}).") from error
    pixels, labels = load_digits(return_X_y=True)
    indices = [index for index in range(len(labels)) if split_of(f"digits/{index}") == split]
    images = [fromarray(np.round(pixels[index].reshape(8, 8) * (255 / 16)).astype(np.uint8)) for index in indices]
    names = [str(digit) for digit in range(10)]
    return Dataset.from_dict(
        {"image": images, "label": labels[indices].tolist()},
        features=Features({"image": Image(), "label": ClassLabel(names=names)}),
    )


def _cifar10(split: Split) -> Dataset:
    """Read the 50,000 training images of CIFAR-10, or half of its 10,000 test images."""
    file = data_folder() / f"cifar10-{'train' if split == 'train' else 'test'}.parquet"
    if not file.is_file():
        raise SpLensError(
            f"there is no file {file.name} in the folder SP_LENS_DATA. To use another copy of CIFAR-10, pass the "
            "dataset: load_images(datasets.load_dataset('cifar10', split='test'), model, image_column='img')."
        )
    dataset = Dataset(pyarrow.parquet.read_table(file))
    dataset = dataset.cast_column("image", Image()).class_encode_column("label")
    if split == "train":
        return dataset
    return dataset.select([index for index in range(len(dataset)) if _held_out_split("cifar10", index) == split])


_IMAGENET = HubImages("ILSVRC/imagenet-1k", "validation", large=True)
_NOT_BIRDS = tuple(index for index in range(1000) if index not in BIRDS)
HUB: dict[str, HubImages] = {
    "cifar100": HubImages("uoft-cs/cifar100", "test", image_column="img", label_column="fine_label"),
    "imagenet_birds": _IMAGENET._replace(classes=BIRDS, offline_classes=("bird",)),
    "imagenet_birdless": _IMAGENET._replace(
        classes=_NOT_BIRDS, offline_classes=tuple(name for name in CIFAR10 if name != "bird")
    ),
}
LOCAL: dict[str, LocalImages] = {
    "digits": LocalImages(_digits, "scikit-learn's handwritten digits"),
    "cifar10": LocalImages(_cifar10, "CIFAR-10"),
}
IMAGE_SETS = (*LOCAL, *HUB)


def read_named(
    name: str, split: Split, *, offline: bool = False, images: int | None = None, selection: Selection | None = None
) -> tuple[Dataset, dict[str, Any]]:
    """Return the images of a named dataset in a split, and a record of their origin.

    Args:
        name: Name of the dataset, one of `IMAGE_SETS`.
        split: Dataset split. No image is in two splits.
        offline: Whether to read images of CIFAR-10 instead of a dataset of the Hub.
        images: Maximum number of images to read from the Hub. Datasets on this machine are read completely.
        selection: Classes to read from the Hub, all of them by default. Datasets on this machine are read completely.

    Returns:
        A dataset with the columns `image` and `label`, and a record with `offline` (whether CIFAR-10 was read instead
        of a dataset of the Hub) and `origin` (a description of the images).

    Raises:
        SpLensError: If the images are not on this machine, the Hub is unreachable, or `images` is missing for ImageNet.
    """
    check_choice("set of images", name, IMAGE_SETS)
    check_choice("split", split, SPLITS)
    if name in LOCAL:
        return LOCAL[name].read(split), {"offline": False, "origin": LOCAL[name].origin}
    hub = HUB[name]
    if offline:
        return _offline_images(hub, split), {"offline": True, "origin": hub.offline_origin}
    hub_split = "train" if split == "train" else hub.held_out
    dataset = _read_hub(name, split, hub_split, images=images, selection=selection)
    return dataset, {"offline": False, "origin": f"{hub.repository}, {hub_split}"}


def _offline_images(hub: HubImages, split: Split) -> Dataset:
    dataset = _cifar10(split)
    names, labels = dataset.features["label"].names, dataset["label"][:]
    return dataset.select([index for index, label in enumerate(labels) if names[label] in hub.offline_classes])


def _read_hub(name: str, split: Split, hub_split: str, *, images: int | None, selection: Selection | None) -> Dataset:
    """Stream the first images of the selected classes. The order of the Hub mixes the classes."""
    hub = HUB[name]
    if hub.large and images is None:
        raise SpLensError(f"{name!r} is too large to read completely: pass a number, images=1000 or --images 1000.")
    advice = (
        f"To read offline images instead ({hub.offline_origin}), use load_images({name!r}, model, offline=True) or "
        "--offline."
    )
    columns: dict[str, list[Any]] = {"image": [], "label": []}
    with reading(hub.repository, advice):
        examples = stream(hub.repository, hub_split)
        feature = cast(Features, examples.features)[hub.label_column]
        selected = _selected_classes(name, feature, selection)
        for index, example in enumerate(examples.cast_column(hub.image_column, Image(decode=False))):
            if not selected[example[hub.label_column]]:
                continue
            if split == "train" or _held_out_split(hub.repository, index) == split:
                columns["image"].append(example[hub.image_column])
                columns["label"].append(example[hub.label_column])
                if len(columns["label"]) == images:
                    break
    return Dataset.from_dict(columns, features=Features({"image": Image(), "label": feature}))


def _selected_classes(name: str, feature: ClassLabel, selection: Selection | None) -> Bool[np.ndarray, " class"]:
    """Return which classes of a dataset of the Hub belong to the named dataset and to the selection."""
    indices = np.arange(len(feature.names))
    selected = np.isin(indices, HUB[name].classes or indices)
    if selection is not None:
        selected &= selection(feature)
    if not selected.any():
        raise SpLensError(f"{name!r} has none of the requested classes: choose other classes or another set of images.")
    return selected


def _held_out_split(name: str, index: int) -> Split:
    """Return the split of a held-out image, by a hash of its index."""
    digest = hashlib.sha256(f"{name}/{index}".encode()).digest()
    return "collect" if digest[-1] % 2 == 0 else "evaluate"
