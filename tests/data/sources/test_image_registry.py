"""Named image datasets, read from small folders with the layout of the Hub, and CIFAR-10 as their offline images."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from datasets import ClassLabel, Dataset, Features, Image
from factories import bridge_of
from families.architectures import FAMILIES
from PIL import Image as PIL

import sp_lens as sp
from sp_lens.cli.__main__ import main
from sp_lens.data.sources.image_registry import BIRDS, CIFAR10, HUB
from sp_lens.typing import SPLITS, Split

pytestmark = pytest.mark.model

CIFAR100 = [{52: "mushroom", 69: "rocket"}.get(number, f"class {number}") for number in range(100)]
# Two classes of ImageNet are cranes. The names of the Hub differ, those of the models do not.
IMAGENET = [{134: "crane", 517: "crane2"}.get(number, f"thing {number}") for number in range(1000)]


def classifier(names: list[str]) -> Any:
    """Return a tiny ViT with these classes."""
    options = {**FAMILIES["vit"][2], "num_labels": len(names), "id2label": dict(enumerate(names))}
    config = transformers.ViTConfig(**options, architectures=["ViTForImageClassification"])
    return bridge_of(transformers.ViTForImageClassification(config).eval(), "tiny-vit")


@pytest.fixture(scope="module")
def cifar100_model() -> Any:
    return classifier(CIFAR100)


@pytest.fixture(scope="module")
def imagenet_model() -> Any:
    return classifier([name.removesuffix("2") if "crane" in name else name for name in IMAGENET])


@pytest.fixture(scope="module")
def cifar10_model() -> Any:
    return classifier(list(CIFAR10))


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the same relative path in every run: the split of an image depends on it."""
    monkeypatch.chdir(tmp_path)
    return Path("repository")


def png(number: int, split: str) -> dict[str, Any]:
    """Encode an image whose pixels identify its number and split."""
    buffer = io.BytesIO()
    PIL.fromarray(np.full((2, 2, 3), (number % 256, number // 256, len(split)), dtype=np.uint8)).save(buffer, "png")
    return {"bytes": buffer.getvalue(), "path": None}


def pixel(image: PIL.Image) -> tuple[int, str]:
    """Return the number and split of an image that `png` made."""
    low, high, letters = np.asarray(image)[0, 0].tolist()
    return 256 * high + low, {5: "train", 4: "test", 10: "validation"}[letters]


def lay_out(folder: Path, name: str, held_out: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a dataset with `count` images in each split. The class of image n is 37 n, modulo the number of classes."""
    classes = IMAGENET if name.startswith("imagenet") else CIFAR100
    image, label = HUB[name].image_column, HUB[name].label_column
    features = {image: Image(), label: ClassLabel(names=classes)}
    if name == "cifar100":
        features["coarse_label"] = ClassLabel(20)
    for split in ("train", held_out):
        labels = [37 * number % len(classes) for number in range(count)]
        columns = {image: [png(number, split) for number in range(count)], label: labels}
        if name == "cifar100":
            columns["coarse_label"] = [number % 20 for number in labels]
        dataset = Dataset.from_dict(columns, features=Features(features))
        dataset.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    monkeypatch.setitem(HUB, name, HUB[name]._replace(repository=str(folder)))


def held_out_split(folder: Path, number: int) -> Split:
    """Return the split of a held-out image, computed independently: the last bit of a hash of its number."""
    return "evaluate" if int(hashlib.sha256(f"{folder}/{number}".encode()).hexdigest(), 16) % 2 else "collect"


def read(images: Dataset) -> list[tuple[tuple[int, str], int]]:
    return [(pixel(image), label) for image, label in zip(images["image"], images["label"], strict=True)]


def test_splits_and_classes_of_cifar100(cifar100_model: Any, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(repository, "cifar100", "test", 400, monkeypatch)
    for split in SPLITS:
        expected = [
            ((number, "train" if split == "train" else "test"), 37 * number % 100)
            for number in range(400)
            if split in ("train", held_out_split(repository, number))
        ]
        images = sp.load_images("cifar100", cifar100_model, split=split)
        assert sorted(read(images)) == expected  # every image is in one split
        rocket = sp.load_images("cifar100", cifar100_model, classes=["rocket"], split=split)
        assert sorted(read(rocket)) == [image for image in expected if image[1] == 69] != []
        others = sp.load_images("cifar100", cifar100_model, without=["rocket", "mushroom"], images=30, split=split)
        assert sorted(read(others)) == [image for image in expected if image[1] not in (52, 69)][:30]
        about = json.loads(rocket.info.description)
        assert {key: about[key] for key in ("source", "split", "offline", "origin", "images")} == {
            "source": "cifar100 (rocket)",
            "split": split,
            "offline": False,
            "origin": f"{repository}, {'train' if split == 'train' else 'test'}",
            "images": len(rocket),
        }


def test_imagenet_birds_and_birdless_divide_the_classes(
    imagenet_model: Any, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("imagenet_birds", "imagenet_birdless"):
        lay_out(repository, name, "validation", 1000, monkeypatch)
    labels = [37 * number % 1000 for number in range(1000)]
    birds = [7 <= label <= 24 or 80 <= label <= 100 or 127 <= label <= 146 for label in labels]
    assert sum(birds) == len(BIRDS) == 59
    for split in SPLITS:
        numbers = [number for number in range(1000) if split in ("train", held_out_split(repository, number))]
        hub_split = "train" if split == "train" else "validation"
        for name, is_bird in (("imagenet_birds", True), ("imagenet_birdless", False)):
            expected = [((n, hub_split), labels[n]) for n in numbers if birds[n] == is_bird][:20]
            assert sorted(read(sp.load_images(name, imagenet_model, images=20, split=split))) == expected
    crane = sp.load_images("imagenet_birds", imagenet_model, classes=[134], images=1, split="train")
    assert crane["label"][:] == [134]  # an index, because the model has two classes with this name


def test_a_stream_is_read_only_as_far_as_needed(
    imagenet_model: Any, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_out(repository, "imagenet_birdless", "validation", 100, monkeypatch)
    first = repository / "data" / "validation-00000-of-00001.parquet"
    first.rename(repository / "data" / "validation-00000-of-00002.parquet")
    (repository / "data" / "validation-00001-of-00002.parquet").write_bytes(b"PAR1 not there yet")
    assert len(sp.load_images("imagenet_birdless", imagenet_model, images=10)) == 10
    with pytest.raises(sp.SpLensError, match=f"cannot read {repository} from the Hugging Face Hub"):
        sp.load_images("imagenet_birdless", imagenet_model, images=500)


def test_images_that_the_hub_does_not_have_raise_an_error(
    imagenet_model: Any, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_out(repository, "imagenet_birds", "validation", 100, monkeypatch)
    with pytest.raises(sp.SpLensError, match="'imagenet_birds' has none of the requested classes"):
        sp.load_images("imagenet_birds", imagenet_model, classes=["thing 0"], images=1)
    with pytest.raises(sp.SpLensError, match="there is no class 'rocket': choose among thing 0"):
        sp.load_images("imagenet_birds", imagenet_model, classes=["rocket"], images=1)
    with pytest.raises(sp.SpLensError, match=r"'imagenet_birds' has \d images of .*, expected at least 50"):
        sp.load_images("imagenet_birds", imagenet_model, images=50)


@pytest.mark.parametrize("name", HUB)
def test_offline_images_are_never_substituted_silently(name: str, imagenet_model: Any) -> None:
    """The Hub is unreachable in tests."""
    advice = rf"instead \(CIFAR-10.*\), use load_images\('{name}', model, offline=True\) or --offline"
    with pytest.raises(sp.SpLensError, match=f"cannot read {HUB[name].repository} from the Hugging Face Hub") as error:
        sp.load_images(name, imagenet_model, images=10)
    assert error.match(advice)
    if name != "cifar100":
        with pytest.raises(sp.SpLensError, match=f"'{name}' is too large to read completely: pass a number"):
            sp.load_images(name, imagenet_model)


@pytest.fixture
def cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files with 200 training images and 200 test images of the classes of CIFAR-10."""
    for split in ("train", "test"):
        rows = [{"image": png(number, split), "label": CIFAR10[number % 10]} for number in range(200)]
        Dataset.from_list(rows).to_parquet(tmp_path / f"cifar10-{split}.parquet")
    monkeypatch.setenv("SP_LENS_DATA", str(tmp_path))


@pytest.mark.usefixtures("cifar10")
@pytest.mark.parametrize(
    ("name", "classes"),
    [("imagenet_birds", {2}), ("imagenet_birdless", {0, 1, 3, 4, 5, 6, 7, 8, 9}), ("cifar100", set(range(10)))],
)
def test_cifar10_is_read_offline_and_recorded(name: str, classes: set[int], cifar10_model: Any) -> None:
    images_of: dict[Split, list[Any]] = {}
    for split in SPLITS:
        images = sp.load_images(name, cifar10_model, split=split, offline=True)
        images_of[split] = read(images)
        about = json.loads(images.info.description)
        assert (about["source"], about["split"], about["offline"]) == (name, split, True)
        names = ", ".join(CIFAR10[number] for number in sorted(classes))
        assert about["origin"] == ("CIFAR-10" if len(classes) == 10 else f"CIFAR-10: {names}")
    assert sorted(images_of["train"]) == [((n, "train"), n % 10) for n in range(200) if n % 10 in classes]
    held_out = [((n, "test"), n % 10) for n in range(200) if n % 10 in classes]
    assert sorted(images_of["collect"] + images_of["evaluate"]) == held_out
    assert 0.2 < len(images_of["collect"]) / len(held_out) < 0.8


@pytest.mark.usefixtures("cifar10")
def test_errors_name_the_offline_images(cifar10_model: Any, imagenet_model: Any) -> None:
    with pytest.raises(
        sp.SpLensError,
        match=r"no class 'rocket' in CIFAR-10 \(the offline images for 'cifar100'\): choose among airplane, aut",
    ):
        sp.load_images("cifar100", cifar10_model, classes=["rocket"], offline=True)
    with pytest.raises(sp.SpLensError, match=r"CIFAR-10: bird \(the offline .* 'imagenet_birds'\) has 0 images"):
        sp.load_images("imagenet_birds", cifar10_model, classes=["cat"], offline=True)
    with pytest.raises(sp.SpLensError, match=r"^CIFAR-10: bird \(the offline .* but the 1000 classes of the model"):
        sp.load_images("imagenet_birds", imagenet_model, offline=True)


@pytest.mark.usefixtures("cifar10")
def test_a_local_dataset_is_not_recorded_as_offline(cifar10_model: Any) -> None:
    for offline in (False, True):
        about = json.loads(sp.load_images("cifar10", cifar10_model, offline=offline).info.description)
        assert (about["offline"], about["origin"]) == (False, "CIFAR-10")


@pytest.mark.usefixtures("cifar10")
def test_evaluate_images_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", "--model", "demo-vision", "--corpus", "imagenet_birds", "--images", "5"]
    assert main([*command, "--offline"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == 5
    assert main(command) == 2
    assert "offline=True) or --offline" in capsys.readouterr().err
