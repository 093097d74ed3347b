"""Images -> a `datasets.Dataset` of pixels and classes: named sets, folders of class folders, datasets."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, load_dataset
from jaxtyping import Bool, Int

from sp_lens.data.image_registry import IMAGE_SETS, Chosen, read_named
from sp_lens.data.pixels import processor_of
from sp_lens.errors import SpLensError, check_choice
from sp_lens.models.hooks import blocks_of
from sp_lens.models.task import reads_images
from sp_lens.storage.serialization import require_files, versions
from sp_lens.typing import SPLITS, Split

Classes = Sequence[str | int]


def load_images(
    source: str | Path | Dataset,
    model: Any,
    *,
    classes: Classes | None = None,
    without: Classes | None = None,
    images: int | None = None,
    split: Split = "collect",
    offline: bool = False,
    image_column: str = "image",
    label_column: str = "label",
) -> Dataset:
    """Images of chosen classes, as a classifier reads them: `forget` with `classes=`, `retain` with `without=`.

    Args:
        source: "digits" (scikit-learn's 1797 handwritten digits), "cifar10" (from the folder of `SP_LENS_DATA`), of the
            Hugging Face Hub "cifar100", "imagenet_birds" (ImageNet's 59 classes of birds) and "imagenet_birdless" (its
            other classes); a folder of class folders, or a `datasets.Dataset` with an image and a label column.
        model: an image classifier; its image processor makes pixels, its configuration knows the classes.
        classes: take these alone, by name or number.
        without: take all but these.
        images: how many to take, the classes in turn, or of a set of the Hub the first that come (the released
            experiments take 1000); None takes all there are, and is refused for ImageNet.
        split: "collect" or "evaluate" (or "train") of a named set, by a hash of an image's number; of all but "digits",
            both are halves of the images that the set holds out of training. Datasets and folders of your own are not
            split.
        offline: read the images of CIFAR-10 that stand in for a set of the Hub: the class bird for "imagenet_birds",
            the other nine for "imagenet_birdless", all ten for "cifar100". Nothing is swapped silently.
        image_column: where a dataset of yours has its images.
        label_column: where it has their classes, as `ClassLabel`, numbers, or names.

    Returns:
        Columns `image` and `label` (the model's number of the class). What was read stands as JSON in
        `.info.description`: source, split, images, versions, and of a named set `origin`, what it really is, and
        `offline`, whether CIFAR-10 stands in for it.

    Raises:
        SpLensError: for a model that reads no images or has no image processor, an unknown name, column or class, a
            class that the model does not know, fewer images than asked for, and a Hub that can't be reached.

    Example:
        >>> import PIL.Image
        >>> import sp_lens as sp
        >>> model = sp.load_model("demo-vision")
        >>> photos = {"image": [PIL.Image.new("RGB", (40, 30))] * 3, "label": ["cat", "ship", "cat"]}
        >>> sp.load_images(Dataset.from_dict(photos), model, classes=["cat"])["label"][:]
        [3, 3]
    """
    check_choice("split", split, SPLITS)
    blocks_of(model)
    if not reads_images(model):
        raise SpLensError("the model reads tokens, and images were asked for: load text, load_corpus(source, model).")
    if images is not None and images < 1:
        raise SpLensError(f"images={images}: expected how many images to take, or None for all.")
    if classes is not None and without is not None:
        raise SpLensError("give the classes to take, classes=, or those to leave out, without=, not both.")
    processor_of(model)  # before any image is read
    listed = without if classes is None else classes

    def chosen(feature: ClassLabel) -> Bool[np.ndarray, " class"]:
        each = Dataset.from_dict({"label": range(len(feature.names))}, features=Features({"label": feature}))
        names, numbers = _labels(each, "label", model)
        return np.isin(numbers, _numbers(names, listed), invert=classes is None)

    dataset, record = _dataset(source, split, offline=offline, images=images, chosen=chosen)
    if missing := [name for name in (image_column, label_column) if name not in dataset.column_names]:
        raise SpLensError(
            f"the dataset has the columns {dataset.column_names} and no {missing[0]!r}: say where the images and their "
            "classes are, image_column=..., label_column=..."
        )
    read = f"{record['origin']} (in the place of {source!r})" if record["offline"] else ""
    names, labels = _labels(dataset, label_column, model, what=read or "the dataset")
    numbers = _numbers(names, listed, where=read and f" in {read}")
    kept = np.flatnonzero(np.isin(labels, numbers, invert=classes is None))
    if len(kept) < (images or 1):
        raise SpLensError(
            f"there are {len(kept)} such images in {read or repr(_name(source))}, and {images or 'some'} were asked "
            "for: ask for fewer, images=..., or for other classes."
        )
    kept = _in_turn(labels, kept)[:images]
    taken = dataset.select(kept.tolist()).select_columns([image_column])  # as they are stored: nothing is decoded
    if image_column != "image":
        taken = taken.rename_column(image_column, "image")
    taken = taken.cast_column("image", Image()).add_column(
        "label", labels[kept].tolist(), feature=ClassLabel(names=_unique(names))
    )
    about = {
        "source": _name(source) + _in_words([names[number] for number in numbers], left_out=classes is None),
        "split": split if "origin" in record else None,
        **record,
        "images": len(kept),
        "versions": versions(),
    }
    taken.info.description = json.dumps(about)
    return taken


def split_classes(name: str) -> tuple[str, dict[str, Any]]:
    """A set of images with classes, written as one word, as `load_images` takes it.

    Raises:
        SpLensError: where some classes are to be taken and others to be left out.

    Example:
        >>> split_classes("digits:3,8")
        ('digits', {'classes': ['3', '8'], 'without': None})
        >>> split_classes("cifar10:-cat")
        ('cifar10', {'classes': None, 'without': ['cat']})
    """
    source, _, listed = (name, "", "") if Path(name).is_dir() else name.partition(":")
    classes = [one.strip() for one in listed.split(",") if one.strip()]
    left_out = [one.removeprefix("-") for one in classes if one.startswith("-")]
    if left_out and len(left_out) < len(classes):
        raise SpLensError(f"{name!r} has classes to take and classes to leave out: give the one or the other.")
    return source, {"classes": classes if classes and not left_out else None, "without": left_out or None}


def _name(source: str | Path | Dataset) -> str:
    return str(source) if isinstance(source, str | Path) else "dataset"


def _in_turn(labels: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """One image of each class before the second of any: in a folder, the first images are all of one class."""
    rank = np.empty(len(kept), dtype=int)
    for label in np.unique(labels[kept]):
        of_class = labels[kept] == label
        rank[of_class] = np.arange(of_class.sum())
    return kept[np.lexsort((kept, rank))]


def _unique(names: Sequence[str]) -> list[str]:
    """The names, told apart where two classes have the same one, as ImageNet's two cranes."""
    return [f"{name} ({number})" if names.count(name) > 1 else name for number, name in enumerate(names)]


def _in_words(classes: list[str], *, left_out: bool) -> str:
    """Which classes of a source were taken, or left out, for figures and records."""
    return f" ({'all but ' if left_out else ''}{', '.join(classes)})" if classes else ""


def _dataset(
    source: Any, split: Split, *, offline: bool, images: int | None, chosen: Chosen
) -> tuple[Dataset, dict[str, Any]]:
    """The images of a source, and what the record says of them."""
    if isinstance(source, str) and source in IMAGE_SETS:
        return read_named(source, split, offline=offline, images=images, chosen=chosen)
    return (source if isinstance(source, Dataset) else _folder(source)), {"offline": False}


def _folder(source: Any) -> Dataset:
    if not isinstance(source, str | Path):
        raise SpLensError(
            f"expected the name of a set of images, a folder, or a datasets.Dataset, got {type(source).__name__}."
        )
    if not Path(source).is_dir():
        check_choice("set of images (or folder of class folders)", source, IMAGE_SETS)
    require_files(source)
    try:
        return cast(Dataset, load_dataset("imagefolder", data_dir=str(source), split="train"))
    except Exception as error:  # the builder has errors of its own for each way in which a folder has no images
        raise SpLensError(
            f"cannot read the folder {source} ({type(error).__name__}: {str(error)[:80]}): expected a folder with a "
            "folder of images for each class."
        ) from error


def _labels(
    dataset: Dataset, column: str, model: Any, *, what: str = "the dataset"
) -> tuple[list[str], Int[np.ndarray, " image"]]:
    """The names of the model's classes, and the number that the model gives to the class of each image.

    Where the model and the dataset both have names, they go by name; where one has none, by number.
    """
    config, feature = model.original_model.config, dataset.features[column]
    known = [config.id2label[number] for number in range(config.num_labels)]
    values = dataset[column][:]
    if any(value is None or (isinstance(value, int) and value < 0) for value in values):
        raise SpLensError(f"the column {column!r} has images without a class: leave them out, dataset.filter(...).")
    theirs, guessed = (feature.names, False) if isinstance(feature, ClassLabel) else (None, True)
    if theirs is None and all(isinstance(value, str) for value in values):
        theirs = sorted(set(values))
        values = [theirs.index(value) for value in values]
    if theirs is None:
        return known, _in_range(values, column, len(known))
    named = not all(name.startswith("LABEL_") for name in known)
    ours, by_name = [name.casefold() for name in known], [name.casefold() for name in theirs]
    if by_name != ours and named and len(set(ours)) == len(ours):
        if unknown := [name for name in theirs if name.casefold() not in ours]:
            raise SpLensError(
                f"{what} has a class {unknown[0]!r}, and the model knows {', '.join(known[:10])}"
                f"{', ...' if len(known) > 10 else ''}: bring a dataset of its classes, or rename them."
            )
        return known, np.array([ours.index(by_name[value]) for value in values])
    if by_name != ours and (guessed or len(theirs) != len(known)):
        raise SpLensError(
            f"{what} has classes by name ({', '.join(theirs[:5])}, ...) and the model has {len(known)} that "
            f"{'are not told apart by name' if named else 'it does not name'}: give numbers, or name them, "
            "model.original_model.config.id2label = {...}."
        )
    return (known if named else theirs), np.array(values)


def _in_range(values: list[Any], column: str, classes: int) -> np.ndarray:
    """Classes that came as numbers."""
    numbers = np.array(values)
    if not np.issubdtype(numbers.dtype, np.integer) or (numbers.size and numbers.max() >= classes):
        raise SpLensError(
            f"the column {column!r} has values such as {values[0]!r}, and the model's classes are 0 to {classes - 1}: "
            "name the column with the classes, label_column=..."
        )
    return numbers


def _numbers(names: Sequence[str], classes: Classes | None, *, where: str = "") -> list[int]:
    """The classes by number."""
    if isinstance(classes, str | int):
        raise SpLensError(f"classes are a list, got {classes!r}: [{classes!r}].")
    numbers = {name.casefold(): number for number, name in enumerate(_unique(names))}
    found = []
    for one in classes or ():
        # A number may come as text, from the shell, where no class is called so.
        number = numbers.get(one.casefold(), int(one) if one.isdecimal() else -1) if isinstance(one, str) else one
        if not 0 <= number < len(names):
            raise SpLensError(f"there is no class {one!r}{where}: choose among {', '.join(_unique(names)[:20])}.")
        found.append(number)
    return found
