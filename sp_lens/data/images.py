"""Read images into a `datasets.Dataset` of images and classes: named datasets, class folders, or a dataset."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
from jaxtyping import Bool, Int

from sp_lens.data.pixels import processor_of
from sp_lens.data.sources.image_registry import IMAGE_SETS, Selection, read_named
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
    """Read images of selected classes for a classifier: `forget` with `classes=`, and `retain` with `without=`.

    Args:
        source: Named dataset, a folder with one folder of images per class, or a `datasets.Dataset` with a column of
            images and a column of classes. The named datasets are "digits" (the 1797 handwritten digits of
            scikit-learn), "cifar10" (from the folder `SP_LENS_DATA`), and from the Hugging Face Hub "cifar100",
            "imagenet_birds" (the 59 bird classes of ImageNet) and "imagenet_birdless" (its other classes).
        model: Image classifier. Its configuration defines the classes, and it must have an image processor.
        classes: Names or indices of the classes to read. None reads all classes.
        without: Names or indices of the classes to leave out. Only one of `classes` and `without` can be given.
        images: Number of images to read (1000 in the released experiments). The classes take turns; of a dataset of the
            Hub the first images are read. None reads all images, which is not possible for ImageNet.
        split: Dataset split of a named dataset: "train", "collect" or "evaluate". The last two are halves of the images
            held out of training, except for "digits", where all three are drawn by a hash of the index of an image.
            Folders and datasets of your own are not split.
        offline: Whether to read images of CIFAR-10 instead of a dataset of the Hub: the class bird for
            "imagenet_birds", the other nine classes for "imagenet_birdless", and all ten for "cifar100". They are
            never substituted silently.
        image_column: Name of the column of images in a dataset of your own.
        label_column: Name of the column of classes in a dataset of your own: `ClassLabel`, class indices, or names.

    Returns:
        Dataset with the columns `image` and `label` (the class index of the model). Its `.info.description` is a JSON
        record of what was read: source, split, number of images, versions, and `offline`, which is true if CIFAR-10 was
        read instead of a dataset of the Hub; for a named dataset also `origin`, a description of the images.

    Raises:
        SpLensError: If the model does not read images or has no image processor, if a name, column or class is unknown,
            if the model does not have one of the classes, if there are fewer images than requested, or if the Hub is
            unreachable.

    Example:
        >>> import PIL.Image
        >>> import sp_lens as sp
        >>> model = sp.load_model("demo-vision")
        >>> photos = {"image": [PIL.Image.new("RGB", (40, 30))] * 3, "label": ["cat", "ship", "cat"]}
        >>> sp.load_images(Dataset.from_dict(photos), model, classes=["cat"])["label"][:]
        [3, 3]
    """
    check_choice("split", split, SPLITS)
    _check_arguments(model, images, classes, without)
    listed = without if classes is None else classes

    def selection(feature: ClassLabel) -> Bool[np.ndarray, " class"]:
        one_per_class = Dataset.from_dict({"label": range(len(feature.names))}, features=Features({"label": feature}))
        names, indices = _labels(one_per_class, "label", model)
        return np.isin(indices, _class_indices(names, listed), invert=classes is None)

    dataset, record = _read(source, split, offline=offline, images=images, selection=selection)
    if missing := [name for name in (image_column, label_column) if name not in dataset.column_names]:
        raise SpLensError(
            f"the dataset has the columns {dataset.column_names} and no {missing[0]!r}: pass image_column=... and "
            "label_column=..."
        )
    substitute = f"{record['origin']} (the offline images for {source!r})" if record["offline"] else ""
    names, labels = _labels(dataset, label_column, model, what=substitute or "the dataset")
    indices = _class_indices(names, listed, where=substitute and f" in {substitute}")
    selected = np.flatnonzero(np.isin(labels, indices, invert=classes is None))
    if len(selected) < (images or 1):
        raise SpLensError(
            f"{substitute or repr(_name(source))} has {len(selected)} images of the requested classes, expected "
            f"at least {images or 1}: pass a smaller images=... or other classes."
        )
    selected = _in_turn(labels, selected)[:images]
    result = dataset.select(selected.tolist()).select_columns([image_column])  # images stay encoded as they are stored
    if image_column != "image":
        result = result.rename_column(image_column, "image")
    result = result.cast_column("image", Image()).add_column(
        "label", labels[selected].tolist(), feature=ClassLabel(names=_unique(names))
    )
    about = {
        "source": _name(source) + _in_parentheses([names[index] for index in indices], left_out=classes is None),
        "split": split if "origin" in record else None,
        **record,
        "images": len(selected),
        "versions": versions(),
    }
    result.info.description = json.dumps(about)
    return result


def split_classes(name: str) -> tuple[str, dict[str, Any]]:
    """Parse an image dataset with classes, as it is written on the command line, into arguments of `load_images`.

    Raises:
        SpLensError: If the name has both classes to read and classes to leave out.

    Example:
        >>> split_classes("digits:3,8")
        ('digits', {'classes': ['3', '8'], 'without': None})
        >>> split_classes("cifar10:-cat")
        ('cifar10', {'classes': None, 'without': ['cat']})
    """
    source, _, listed = (name, "", "") if Path(name).is_dir() else name.partition(":")
    classes = [item.strip() for item in listed.split(",") if item.strip()]
    left_out = [item.removeprefix("-") for item in classes if item.startswith("-")]
    if left_out and len(left_out) < len(classes):
        raise SpLensError(f"{name!r} has both classes to read and classes to leave out: give only one of the two.")
    return source, {"classes": classes if classes and not left_out else None, "without": left_out or None}


def _check_arguments(model: Any, images: int | None, classes: Classes | None, without: Classes | None) -> None:
    blocks_of(model)
    if not reads_images(model):
        raise SpLensError("the model reads tokens, not images: load text with load_corpus(source, model).")
    if images is not None and images < 1:
        raise SpLensError(f"images is {images}: expected the number of images to read, or None for all of them.")
    if classes is not None and without is not None:
        raise SpLensError("got both classes and without: pass only one of them.")
    processor_of(model)  # raises an error if there is none, before any image is read


def _name(source: str | Path | Dataset) -> str:
    return str(source) if isinstance(source, str | Path) else "dataset"


def _in_turn(labels: np.ndarray, selected: np.ndarray) -> np.ndarray:
    """Order images so that the classes take turns: the first images of a folder are all of one class."""
    rank = np.empty(len(selected), dtype=int)
    for label in np.unique(labels[selected]):
        of_class = labels[selected] == label
        rank[of_class] = np.arange(of_class.sum())
    return selected[np.lexsort((selected, rank))]


def _unique(names: Sequence[str]) -> list[str]:
    """Append the class index to names that several classes share, such as the two cranes of ImageNet."""
    return [f"{name} ({index})" if names.count(name) > 1 else name for index, name in enumerate(names)]


def _in_parentheses(classes: list[str], *, left_out: bool) -> str:
    """Return which classes of a source were read or left out, for figures and records."""
    return f" ({'all but ' if left_out else ''}{', '.join(classes)})" if classes else ""


def _read(
    source: Any, split: Split, *, offline: bool, images: int | None, selection: Selection
) -> tuple[Dataset, dict[str, Any]]:
    """Return the images of a source, and what is recorded about their origin."""
    if isinstance(source, str) and source in IMAGE_SETS:
        return read_named(source, split, offline=offline, images=images, selection=selection)
    return (source if isinstance(source, Dataset) else _read_folder(source)), {"offline": False}


def _read_folder(source: Any) -> Dataset:
    if not isinstance(source, str | Path):
        raise SpLensError(
            f"expected the name of a set of images, a folder, or a datasets.Dataset, got {type(source).__name__}."
        )
    if not Path(source).is_dir():
        check_choice("set of images (or folder of class folders)", source, IMAGE_SETS)
    import PIL.Image  # in the extra "vision"

    require_files(source)
    folder = Path(source)
    # Not with the builder "imagefolder" of datasets, which treats names as patterns, takes folders called "train" and
    # "test" for splits, and returns the earlier content of a file that was replaced within the same second.
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    known = PIL.Image.registered_extensions()
    if others := [path for path in files if path.suffix.lower() not in known or path.parent == folder]:
        raise SpLensError(
            f"{others[0]} is {'not in the folder of a class' if others[0].parent == folder else 'no image'}: expected "
            f"one folder of images per class in {folder}. Move the file to another folder."
        )
    names = sorted({path.parent.name for path in files})
    if not names:
        raise SpLensError(f"{folder} has no images: expected one folder of images per class.")
    columns = {"image": [str(path) for path in files], "label": [path.parent.name for path in files]}
    return Dataset.from_dict(columns, features=Features({"image": Image(), "label": ClassLabel(names=names)}))


def _labels(
    dataset: Dataset, column: str, model: Any, *, what: str = "the dataset"
) -> tuple[list[str], Int[np.ndarray, " image"]]:
    """Return the names of the model's classes, and the model's class index of each image.

    Classes are matched by name if both the model and the dataset have names, and by index otherwise.
    """
    config, feature = model.original_model.config, dataset.features[column]
    model_names = [config.id2label[index] for index in range(config.num_labels)]
    values = dataset[column][:]
    if any(value is None or (isinstance(value, int) and value < 0) for value in values):
        raise SpLensError(f"the column {column!r} has images without a class: remove them with dataset.filter(...).")
    if isinstance(feature, ClassLabel):
        return _match_names(model_names, feature.names, values, what=what, has_order=True)
    if all(isinstance(value, str) for value in values):
        names = sorted(set(values))
        return _match_names(model_names, names, [names.index(value) for value in values], what=what, has_order=False)
    return model_names, _check_indices(values, column, len(model_names))


def _match_names(
    model_names: list[str], names: list[str], values: list[int], *, what: str, has_order: bool
) -> tuple[list[str], np.ndarray]:
    """Return the names and class indices of `_labels` for values that index the class names of a dataset.

    Args:
        model_names: Names of the model's classes.
        names: Names of the dataset's classes.
        values: Index in `names` of each image.
        what: Description of the dataset for error messages.
        has_order: Whether the order of `names` is that of the dataset's class indices, instead of alphabetical.
    """
    model_has_names = not all(name.startswith("LABEL_") for name in model_names)
    model_keys, keys = ([name.casefold() for name in group] for group in (model_names, names))
    if keys != model_keys:
        if model_has_names and len(set(model_keys)) == len(model_keys):
            return model_names, _indices_by_name(model_names, names, values, what)
        if not has_order or len(names) != len(model_names):
            raise SpLensError(
                f"{what} has named classes ({', '.join(names[:5])}, ...), but the {len(model_names)} classes of the "
                f"model have {'names that are not unique' if model_has_names else 'no names'}: pass class indices, or "
                "name the classes in model.original_model.config.id2label."
            )
    return (model_names if model_has_names else names), np.array(values)


def _indices_by_name(model_names: list[str], names: list[str], values: list[int], what: str) -> np.ndarray:
    index_of = {name.casefold(): index for index, name in enumerate(model_names)}
    if unknown := [name for name in names if name.casefold() not in index_of]:
        raise SpLensError(
            f"{what} has a class {unknown[0]!r}, but the classes of the model are {', '.join(model_names[:10])}"
            f"{', ...' if len(model_names) > 10 else ''}: use a dataset with the classes of the model, or rename them."
        )
    return np.array([index_of[names[value].casefold()] for value in values])


def _check_indices(values: list[Any], column: str, classes: int) -> np.ndarray:
    """Return class indices as an array, or raise SpLensError if they are not indices of the model's classes."""
    indices = np.array(values)
    if not np.issubdtype(indices.dtype, np.integer) or (indices.size and indices.max() >= classes):
        raise SpLensError(
            f"the column {column!r} has values such as {values[0]!r}, but the classes of the model are 0 to "
            f"{classes - 1}: name the column of classes with label_column=..."
        )
    return indices


def _class_indices(names: Sequence[str], classes: Classes | None, *, where: str = "") -> list[int]:
    """Return the indices of classes that are given by name or index."""
    if isinstance(classes, str | int):
        raise SpLensError(f"expected a list of classes, got {classes!r}: pass [{classes!r}].")
    index_of = {name.casefold(): index for index, name in enumerate(_unique(names))}
    indices = []
    for item in classes or ():
        # On the command line an index is a string. It is read as an index if no class has this name.
        index = index_of.get(item.casefold(), int(item) if item.isdecimal() else -1) if isinstance(item, str) else item
        if not 0 <= index < len(names):
            raise SpLensError(f"there is no class {item!r}{where}: choose among {', '.join(_unique(names)[:20])}.")
        indices.append(index)
    return indices
