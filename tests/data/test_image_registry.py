"""Named sets of images: small datasets that are laid out as the Hub's are, and CIFAR-10 in their place."""

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
from sp_lens.data.image_registry import BIRDS, CIFAR10, HUB
from sp_lens.typing import SPLITS, Split

pytestmark = pytest.mark.model

CIFAR100 = [{52: "mushroom", 69: "rocket"}.get(number, f"class {number}") for number in range(100)]
# Two classes of ImageNet are cranes; the Hub tells them apart, the models do not.
IMAGENET = [{134: "crane", 517: "crane2"}.get(number, f"thing {number}") for number in range(1000)]


def classifier(names: list[str]) -> Any:
    """A tiny ViT that knows these classes."""
    options = {**FAMILIES["vit"][2], "num_labels": len(names), "id2label": dict(enumerate(names))}
    config = transformers.ViTConfig(**options, architectures=["ViTForImageClassification"])
    return bridge_of(transformers.ViTForImageClassification(config).eval(), "tiny-vit")


@pytest.fixture(scope="module")
def of_cifar100() -> Any:
    return classifier(CIFAR100)


@pytest.fixture(scope="module")
def of_imagenet() -> Any:
    return classifier([name.removesuffix("2") if "crane" in name else name for name in IMAGENET])


@pytest.fixture(scope="module")
def of_cifar10() -> Any:
    return classifier(list(CIFAR10))


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the same name in every run: whether an image is collected or evaluated hangs on it."""
    monkeypatch.chdir(tmp_path)
    return Path("repository")


def png(number: int, split: str) -> dict[str, Any]:
    """An image that is no other's."""
    buffer = io.BytesIO()
    PIL.fromarray(np.full((2, 2, 3), (number % 256, number // 256, len(split)), dtype=np.uint8)).save(buffer, "png")
    return {"bytes": buffer.getvalue(), "path": None}


def pixel(image: PIL.Image) -> tuple[int, str]:
    """Which of the images above it is."""
    low, high, letters = np.asarray(image)[0, 0].tolist()
    return 256 * high + low, {5: "train", 4: "test", 10: "validation"}[letters]


def lay_out(folder: Path, name: str, held_out: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dataset of `count` images in each split, its classes mixed: that of image n is 37 n."""
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


def half(folder: Path, number: int) -> Split:
    """Where a held-out image belongs, computed anew: by the last bit of a hash of its number."""
    return "evaluate" if int(hashlib.sha256(f"{folder}/{number}".encode()).hexdigest(), 16) % 2 else "collect"


def read(images: Dataset) -> list[tuple[tuple[int, str], int]]:
    return [(pixel(image), label) for image, label in zip(images["image"], images["label"], strict=True)]


def test_cifar100_is_split_and_chosen_from_by_class(
    of_cifar100: Any, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_out(repository, "cifar100", "test", 400, monkeypatch)
    for split in SPLITS:
        there = [
            ((number, "train" if split == "train" else "test"), 37 * number % 100)
            for number in range(400)
            if split in ("train", half(repository, number))
        ]
        images = sp.load_images("cifar100", of_cifar100, split=split)
        assert sorted(read(images)) == there  # all of them, none in two splits
        rocket = sp.load_images("cifar100", of_cifar100, classes=["rocket"], split=split)
        assert sorted(read(rocket)) == [one for one in there if one[1] == 69] != []
        others = sp.load_images("cifar100", of_cifar100, without=["rocket", "mushroom"], images=30, split=split)
        assert sorted(read(others)) == [one for one in there if one[1] not in (52, 69)][:30]  # the first that come
        about = json.loads(rocket.info.description)
        assert {key: about[key] for key in ("source", "split", "offline", "origin", "images")} == {
            "source": "cifar100 (rocket)",
            "split": split,
            "offline": False,
            "origin": f"{repository}, {'train' if split == 'train' else 'test'}",
            "images": len(rocket),
        }


def test_the_birds_of_imagenet_are_taken_or_left_out(
    of_imagenet: Any, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("imagenet_birds", "imagenet_birdless"):
        lay_out(repository, name, "validation", 1000, monkeypatch)
    labels = [37 * number % 1000 for number in range(1000)]
    birds = [7 <= label <= 24 or 80 <= label <= 100 or 127 <= label <= 146 for label in labels]
    assert sum(birds) == len(BIRDS) == 59
    for split in SPLITS:
        there = [number for number in range(1000) if split in ("train", half(repository, number))]
        letters = "train" if split == "train" else "validation"
        for name, wanted in (("imagenet_birds", True), ("imagenet_birdless", False)):
            expected = [((n, letters), labels[n]) for n in there if birds[n] == wanted][:20]
            assert sorted(read(sp.load_images(name, of_imagenet, images=20, split=split))) == expected
    crane = sp.load_images("imagenet_birds", of_imagenet, classes=[134], images=1, split="train")
    assert crane["label"][:] == [134]  # by number, as the model has two classes of that name


def test_no_more_is_read_than_is_needed(of_imagenet: Any, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(repository, "imagenet_birdless", "validation", 100, monkeypatch)
    first = repository / "data" / "validation-00000-of-00001.parquet"
    first.rename(repository / "data" / "validation-00000-of-00002.parquet")
    (repository / "data" / "validation-00001-of-00002.parquet").write_bytes(b"PAR1 not there yet")
    assert len(sp.load_images("imagenet_birdless", of_imagenet, images=10)) == 10
    with pytest.raises(sp.SpLensError, match=f"cannot read {repository} from the Hugging Face Hub"):
        sp.load_images("imagenet_birdless", of_imagenet, images=500)


def test_what_the_hub_has_not_is_refused(of_imagenet: Any, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(repository, "imagenet_birds", "validation", 100, monkeypatch)
    with pytest.raises(sp.SpLensError, match="'imagenet_birds' has none of these classes"):
        sp.load_images("imagenet_birds", of_imagenet, classes=["thing 0"], images=1)
    with pytest.raises(sp.SpLensError, match="there is no class 'rocket': choose among thing 0"):
        sp.load_images("imagenet_birds", of_imagenet, classes=["rocket"], images=1)
    with pytest.raises(sp.SpLensError, match=r"there are \d such images in 'imagenet_birds', and 50 were asked for"):
        sp.load_images("imagenet_birds", of_imagenet, images=50)


@pytest.mark.parametrize("name", HUB)
def test_nothing_stands_in_silently(name: str, of_imagenet: Any) -> None:
    """Where the Hub can't be reached, as here."""
    offered = rf"in its place, CIFAR-10.*, say load_images\('{name}', model, offline=True\) or --offline"
    with pytest.raises(sp.SpLensError, match=f"cannot read {HUB[name].repository} from the Hugging Face Hub") as error:
        sp.load_images(name, of_imagenet, images=10)
    assert error.match(offered)
    if name != "cifar100":
        with pytest.raises(sp.SpLensError, match=f"'{name}' is too large to read all of it: say how many"):
            sp.load_images(name, of_imagenet)


@pytest.fixture
def cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 images of CIFAR-10's classes to train on, 200 held out."""
    for split in ("train", "test"):
        rows = [{"image": png(number, split), "label": CIFAR10[number % 10]} for number in range(200)]
        Dataset.from_list(rows).to_parquet(tmp_path / f"cifar10-{split}.parquet")
    monkeypatch.setenv("SP_LENS_DATA", str(tmp_path))


@pytest.mark.usefixtures("cifar10")
@pytest.mark.parametrize(
    ("name", "classes"),
    [("imagenet_birds", {2}), ("imagenet_birdless", {0, 1, 3, 4, 5, 6, 7, 8, 9}), ("cifar100", set(range(10)))],
)
def test_cifar10_stands_in_offline_and_the_record_says_so(name: str, classes: set[int], of_cifar10: Any) -> None:
    found: dict[Split, list[Any]] = {}
    for split in SPLITS:
        images = sp.load_images(name, of_cifar10, split=split, offline=True)
        found[split] = read(images)
        about = json.loads(images.info.description)
        assert (about["source"], about["split"], about["offline"]) == (name, split, True)
        names = ", ".join(CIFAR10[number] for number in sorted(classes))
        assert about["origin"] == ("CIFAR-10" if len(classes) == 10 else f"CIFAR-10: {names}")
    assert sorted(found["train"]) == [((n, "train"), n % 10) for n in range(200) if n % 10 in classes]
    held_out = [((n, "test"), n % 10) for n in range(200) if n % 10 in classes]
    assert sorted(found["collect"] + found["evaluate"]) == held_out
    assert 0.2 < len(found["collect"]) / len(held_out) < 0.8


@pytest.mark.usefixtures("cifar10")
def test_the_stand_in_says_which_classes_it_has(of_cifar10: Any, of_imagenet: Any) -> None:
    with pytest.raises(
        sp.SpLensError,
        match=r"no class 'rocket' in CIFAR-10 \(in the place of 'cifar100'\): choose among airplane, aut",
    ):
        sp.load_images("cifar100", of_cifar10, classes=["rocket"], offline=True)
    with pytest.raises(sp.SpLensError, match=r"0 such images in CIFAR-10: bird \(in the place of 'imagenet_birds'\)"):
        sp.load_images("imagenet_birds", of_cifar10, classes=["cat"], offline=True)
    with pytest.raises(sp.SpLensError, match=r"^CIFAR-10: bird \(in the place .* and the model has 1000 that"):
        sp.load_images("imagenet_birds", of_imagenet, offline=True)


@pytest.mark.usefixtures("cifar10")
def test_what_is_on_this_machine_anyway_stands_in_for_nothing(of_cifar10: Any) -> None:
    for offline in (False, True):
        about = json.loads(sp.load_images("cifar10", of_cifar10, offline=offline).info.description)
        assert (about["offline"], about["origin"]) == (False, "CIFAR-10")


@pytest.mark.usefixtures("cifar10")
def test_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["evaluate", "--model", "demo-vision", "--corpus", "imagenet_birds", "--images", "5"]
    assert main([*ask, "--offline"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == 5
    assert main(ask) == 2
    assert "offline=True) or --offline" in capsys.readouterr().err
