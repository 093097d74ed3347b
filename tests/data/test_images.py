"""Image classifiers: a small ViT is trained on the digits of scikit-learn and forgets some of them."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from datasets import ClassLabel, Dataset, Features, Image, Value
from factories import little_memory, same
from PIL import Image as PIL

import sp_lens as sp
from sp_lens.cli.__main__ import main
from sp_lens.data.sources.image_registry import read_named
from sp_lens.typing import SPLITS
from training.train_vision import digits_classifier

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a ViT trained on the digits."""
    work = tmp_path_factory.mktemp("digits")
    return digits_classifier(work, work / "model")


@pytest.fixture(scope="module")
def digits(folder: Path) -> Any:
    return sp.load_model(folder, device="cpu")


def test_the_classifier_is_evaluated_as_in_transformers(digits: Any, folder: Path) -> None:
    held_out = sp.load_images("digits", digits, images=None, split="evaluate")
    result = sp.evaluate(digits, held_out, progress=False)
    assert result.top1 > 0.85
    assert result.top10 == 1  # of ten classes
    assert result.tokens == len(held_out) > 300

    # The same images through transformers and its image processor give the same numbers.
    model = transformers.ViTForImageClassification.from_pretrained(folder, dtype=torch.float32).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    pixels = processor([np.asarray(image)[..., None] for image in held_out["image"]], return_tensors="pt")
    with torch.no_grad():
        logits = model(pixels.pixel_values).logits
    labels = torch.tensor(held_out["label"][:])
    assert result.top1 == pytest.approx(float((logits.argmax(-1) == labels).double().mean()))
    assert result.loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), abs=1e-5)


def test_splits_share_no_image() -> None:
    splits = [read_named("digits", split)[0] for split in SPLITS]
    images = [{image.tobytes() for image in split["image"]} for split in splits]
    assert sum(map(len, splits)) == 1797
    assert not images[0] & images[1]
    assert not images[0] & images[2]
    assert not images[1] & images[2]


def corpora(model: Any, *classes: int) -> dict[str, Any]:
    def read(split: Any, **which: Any) -> Dataset:
        return sp.load_images("digits", model, images=None, split=split, **which)

    return {
        "forget": read("collect", classes=classes),
        "retain": read("collect", without=classes),
        "eval_forget": read("evaluate", classes=classes),
        "eval_retain": read("evaluate", without=classes),
    }


def test_pruning_forgets_two_digits_and_keeps_the_others(digits: Any) -> None:
    run = sp.prune(digits, **corpora(digits, 3, 8), site="attn", fraction=0.05, steps=3, progress=False)
    drops = run.history.iloc[-1]
    assert drops["forget_drop"] > 0.3
    assert drops["retain_drop"] < drops["forget_drop"] / 2


def test_activations_are_collected_on_patches(digits: Any) -> None:
    images = sp.load_images("digits", digits, images=10)
    assert sp.collect(digits, images, progress=False).count == 10 * 16  # without the class token


@pytest.mark.parametrize("batch_tokens", [1, 40, 4096])
def test_statistics_do_not_depend_on_the_batch_size(digits: Any, batch_tokens: int) -> None:
    images = sp.load_images("digits", digits, images=30)
    small = sp.collect(digits, images, batch_tokens=batch_tokens, progress=False).importance("abs")
    default = sp.collect(digits, images, progress=False).importance("abs")
    for name in small:
        torch.testing.assert_close(small[name], default[name], rtol=1e-5, atol=1e-7)


def test_classes_are_given_by_name_or_index(digits: Any) -> None:
    by_name = sp.load_images("digits", digits, classes=["3"], images=None)
    by_index = sp.load_images("digits", digits, classes=[3], images=None)
    others = sp.load_images("digits", digits, without=[3], images=None)
    assert by_name["label"][:] == by_index["label"][:] == [3] * len(by_name)
    assert 3 not in others["label"][:]
    assert len(by_name) + len(others) == len(read_named("digits", "collect")[0])
    about = json.loads(by_name.info.description)
    assert (about["source"], about["split"], about["images"]) == ("digits (3)", "collect", len(by_name))
    assert json.loads(others.info.description)["source"] == "digits (all but 3)"


def some_images(count: int = 4) -> list[PIL.Image]:
    return [PIL.fromarray(np.full((8, 8), 20 * n, dtype=np.uint8)) for n in range(count)]


def test_a_folder_with_one_folder_per_class_is_a_corpus(digits: Any, tmp_path: Path) -> None:
    for number, image in enumerate(some_images()):
        class_folder = tmp_path / "images" / str(number % 2 + 4)
        class_folder.mkdir(parents=True, exist_ok=True)
        image.save(class_folder / f"{number}.png")
    dataset = sp.load_images(tmp_path / "images", digits, images=None)
    assert sorted(dataset["label"][:]) == [4, 4, 5, 5]  # the indices of these names in the model
    assert sp.collect(digits, dataset, progress=False).count == 4 * 16


def test_the_classes_of_a_folder_take_turns(digits: Any, tmp_path: Path) -> None:
    for number, image in enumerate(some_images(8)):
        class_folder = tmp_path / str(number // 4)
        class_folder.mkdir(exist_ok=True)
        image.save(class_folder / f"{number}.png")
    assert sp.load_images(tmp_path, digits, images=4)["label"][:] == [0, 1, 0, 1]


def test_an_image_folder_is_read_as_it_is(digits: Any, tmp_path: Path) -> None:
    """Names are not patterns, "train" is no split, and a replaced file is read again even if its time is the same."""
    for folder, shade in ("run[1]", 10), ("run1", 99), ("train", 50):
        file = tmp_path / folder / "3" / "a.PNG"
        file.parent.mkdir(parents=True)
        PIL.new("L", (8, 8), shade).save(file)

    def pixel() -> list[Any]:
        return [image.getpixel((0, 0)) for image in sp.load_images(tmp_path / "run[1]", digits)["image"]]

    assert pixel() == [10]
    file = tmp_path / "run[1]" / "3" / "a.PNG"
    time = file.stat().st_mtime_ns
    PIL.new("L", (8, 8), 20).save(file)
    os.utime(file, ns=(time, time))
    assert pixel() == [20]
    (tmp_path / "run[1]" / "3" / ".DS_Store").write_bytes(b"x")
    assert pixel() == [20]
    (tmp_path / "run[1]" / "3" / "notes.txt").write_bytes(b"x")
    with pytest.raises(sp.SpLensError, match=r"notes\.txt is no image"):
        pixel()
    (tmp_path / "run[1]" / "3" / "notes.txt").rename(tmp_path / "run[1]" / "b.png")
    with pytest.raises(sp.SpLensError, match=r"b\.png is not in the folder of a class"):
        pixel()
    with pytest.raises(sp.SpLensError, match="unknown set of images"):
        sp.load_images(tmp_path / "run*", digits)


def test_images_are_not_encoded_again(digits: Any, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8, 8)).astype(np.uint8)
    PIL.fromarray(noise).save(tmp_path / "noise.jpg", quality=30)
    stored = {"bytes": (tmp_path / "noise.jpg").read_bytes(), "path": None}
    dataset = Dataset.from_dict(
        {"image": [stored], "label": [3]}, features=Features({"image": Image(), "label": ClassLabel(10)})
    )
    taken = sp.load_images(dataset, digits, images=None)
    assert np.array_equal(np.asarray(taken[0]["image"]), np.asarray(PIL.open(tmp_path / "noise.jpg")))


def nameless(model: Any) -> Any:
    """Remove the class names of a classifier."""
    model.original_model.config.id2label = {number: f"LABEL_{number}" for number in range(10)}
    return model


def test_classes_are_not_guessed(folder: Path) -> None:
    images, model = some_images(2), sp.load_model(folder, device="cpu")
    unlabelled = Dataset.from_dict(
        {"image": images, "label": [-1, 3]}, features=Features({"image": Image(), "label": ClassLabel(10)})
    )
    with pytest.raises(sp.SpLensError, match="images without a class"):
        sp.load_images(unlabelled, model)
    by_name = Dataset.from_dict(
        {"image": images, "label": ["10", "9"]}, features=Features({"image": Image(), "label": Value("string")})
    )
    with pytest.raises(sp.SpLensError, match="classes of the model have no names"):
        sp.load_images(by_name, nameless(model), images=None)
    named = Features({"image": Image(), "label": ClassLabel(names=list("abcdefghij"))})
    dataset = Dataset.from_dict({"image": images, "label": [1, 2]}, features=named)
    assert sp.load_images(dataset, nameless(model), images=None, classes=["c"])["label"][:] == [2]


def test_classes_with_the_same_name_are_given_by_index(folder: Path) -> None:
    model: Any = sp.load_model(folder, device="cpu")
    cranes = dict(enumerate(["crane", "b", "c", "d", "e", "crane", "g", "h", "i", "j"]))
    model.original_model.config.id2label = cranes
    named = Features({"image": Image(), "label": Value("int64")})
    dataset = Dataset.from_dict({"image": some_images(3), "label": [0, 5, 5]}, features=named)
    assert sp.load_images(dataset, model, images=None, classes=[5])["label"][:] == [5, 5]
    assert sp.load_images(dataset, model, images=None).features["label"].names[0] == "crane (0)"


def test_images_of_another_size_and_mode_are_converted(digits: Any) -> None:
    images = [image.resize((20, 30)).convert("RGB") for image in some_images()]
    dataset = Dataset.from_dict(
        {"img": images, "fine": [1, 2, 3, 1]}, features=Features({"img": Image(), "fine": ClassLabel(10)})
    )
    taken = sp.load_images(dataset, digits, images=None, image_column="img", label_column="fine", classes=[1])
    assert sp.evaluate(digits, taken, progress=False).tokens == 2


def test_invalid_arguments_raise_an_error(digits: Any, tmp_path: Path) -> None:
    dataset = Dataset.from_dict({"image": some_images(), "label": ["3", "cat", "3", "4"]}, features=None)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"source": "mnist"}, "unknown set of images .*'mnist'.*digits"),
        ({"source": "digits", "classes": ["ten"]}, "there is no class 'ten': choose among 0, 1"),
        ({"source": "digits", "classes": "38"}, "expected a list of classes, got '38'"),
        ({"source": "digits", "classes": [10]}, "there is no class 10"),
        ({"source": "digits", "classes": [1], "without": [2]}, "got both classes and without"),
        (
            {"source": "digits", "images": 5000},
            "'digits' has 325 images of the requested classes, expected at least 5000",
        ),
        ({"source": "digits", "images": 0}, "images is 0"),
        ({"source": "digits", "split": "test"}, "unknown split 'test'"),
        ({"source": dataset}, "a class 'cat', but the classes of the model are 0, 1"),
        ({"source": dataset, "label_column": "fine"}, r"columns \['image', 'label'\] and no 'fine'"),
        ({"source": tmp_path}, "has no images: expected one folder of images per class"),
        ({"source": 7}, "expected the name of a set of images, a folder, or a datasets.Dataset, got int"),
    ]
    for arguments, message in cases:
        source = arguments.pop("source")
        with pytest.raises(sp.SpLensError, match=message):
            sp.load_images(source, digits, **arguments)


def test_cifar10_is_read_from_sp_lens_data(digits: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SP_LENS_DATA", str(tmp_path))
    with pytest.raises(sp.SpLensError, match=r"there is no file cifar10-test\.parquet in the folder"):
        sp.load_images("cifar10", digits)


def test_held_out_images_that_were_collected_raise_an_error(digits: Any) -> None:
    mixed = corpora(digits, 3)
    mixed["eval_retain"] = mixed["retain"]
    with pytest.raises(sp.SpLensError, match=r"eval_retain has \d+ rows that are in retain too.*load_images"):
        sp.prune(digits, **mixed, fraction=0.1, steps=1, progress=False)


def test_batches_of_images_are_halved_when_memory_runs_out(digits: Any) -> None:
    images = sp.load_images("digits", digits, images=20)
    collected, evaluated = (
        sp.collect(digits, images, folds=5, progress=False),
        sp.evaluate(digits, images, progress=False),
    )
    with little_memory(digits, 3):
        halved = sp.collect(digits, images, folds=5, progress=False)
        assert sp.evaluate(digits, images, progress=False).loss == pytest.approx(evaluated.loss, rel=1e-6)
    for actual, expected in zip((halved, *halved.folds), (collected, *collected.folds), strict=True):
        same(actual, expected)


def test_the_command_line_prunes_plots_exports_and_evaluates_image_models(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, model = tmp_path / "run", ["--model", str(folder)]
    sides = ["--forget", "digits:3,8", "--retain", "digits:-3,-8"]
    steps = ["--site", "attn", "--fraction", "0.05", "--steps", "2", "--out", str(run)]
    assert main(["prune", *model, *sides, *steps]) == 0
    assert main(["plot", "tradeoff", str(run), "--out", str(tmp_path / "tradeoff.html")]) == 0
    mask = ["--mask", str(run / "mask.safetensors")]
    assert main(["export", "--model", str(folder), *mask, "--out", str(tmp_path / "pruned")]) == 0
    capsys.readouterr()
    corpus = ["--corpus", "digits:3,8", "--split", "evaluate", "--images", "50"]
    assert main(["evaluate", "--model", str(folder), *mask, *corpus]) == 0
    with_hooks = json.loads(capsys.readouterr().out)
    assert main(["evaluate", "--model", str(tmp_path / "pruned"), *corpus]) == 0
    assert json.loads(capsys.readouterr().out)["top1"] == with_hooks["top1"]
    assert main(["evaluate", "--model", str(folder), *corpus, "--tokens", "100"]) == 2
    assert "--tokens applies to text" in capsys.readouterr().err
    assert main(["evaluate", "--model", "demo", "--corpus", "code", "--images", "5"]) == 2
    assert "--images applies to image classifiers, and demo reads text" in capsys.readouterr().err
    assert main(["evaluate", "--model", str(folder), "--corpus", "digits:3,-8"]) == 2
    assert "give only one of the two" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["amnesiac", "bad_teacher", "gradient_ascent", "magnitude", "selective_synaptic_dampening", "unsir"]
)
def test_unlearning_methods_forget_a_class(digits: Any, name: str) -> None:
    before = [parameter.detach().clone() for parameter in digits.parameters()]
    run = getattr(sp.unlearning, name)(digits, **corpora(digits, 3), steps=2, progress=False)
    assert run.history["forget_loss"].iloc[-1] > run.history["forget_loss"].iloc[0]
    assert all(torch.equal(*pair) for pair in zip(digits.parameters(), before, strict=True))
