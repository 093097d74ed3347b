"""Test that untrusted models, text and images run no code, do not block, and raise only SpLensError."""

import ast
import inspect
import io
import json
import os
import pickle
import shutil
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from factories import DEMO_FOLDER
from fuzzing import limited
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import sp_lens as sp
from sp_lens.models.hooks import model_name

PACKAGE = Path(sp.__file__).parent
VISION_FOLDER = DEMO_FOLDER.with_name("demo-vision")


def test_the_package_reads_no_pickles() -> None:
    """Neither the modules nor the functions and options that read a pickle are used. Weights are tested below."""
    modules = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert not modules & {part for name in names for part in name.split(".")}, file
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert called not in ("torch.load", "torch.save", "eval", "exec", "__import__", "pd.read_pickle"), file
                assert not called.endswith(("read_pickle", "to_pickle")), file
                assert "allow_pickle" not in options, file
                allowed = (
                    "False",
                    "trust_remote_code",
                    "options['trust_remote_code']",
                )
                assert options.get("trust_remote_code", "False") in allowed, file
                assert options.get("weights_only") is None, file

    assert inspect.signature(sp.load_model).parameters["trust_remote_code"].default is False


# Models.


class _Evil:
    """An object whose pickle creates a file when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch '{self.marker}'",)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """Return the path of a file that untrusted code would create."""
    return tmp_path / "marker"


def model_folder(folder: Path, source: Path = DEMO_FOLDER, **changes: dict[str, Any]) -> Path:
    """Copy a bundled model and change values in its JSON files, which are named by their stems."""
    shutil.copytree(source, folder)
    for stem, values in changes.items():
        file = folder / f"{stem}.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    return folder


def add_code(folder: Path, marker: Path) -> None:
    (folder / "evil.py").write_text(
        f"open({str(marker)!r}, 'w').close()\nfrom transformers import OPTConfig, OPTForCausalLM\n"
        "class Config(OPTConfig):\n    model_type = 'evil'\nclass Model(OPTForCausalLM):\n    config_class = Config\n"
    )


AUTO_MAP = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}


@pytest.mark.model
def test_remote_code_runs_only_with_trust_remote_code(tmp_path: Path, marker: Path) -> None:
    folder = model_folder(tmp_path / "model", config={"model_type": "evil", "auto_map": AUTO_MAP})
    add_code(folder, marker)
    with pytest.raises(sp.SpLensError, match=r"its own Python code, which was not run.*trust_remote_code=True"):
        sp.load_model(folder, device="cpu")
    assert not marker.exists()
    sp.load_model(folder, device="cpu", trust_remote_code=True)
    assert marker.exists()  # the test can detect that code runs


@pytest.mark.model
@pytest.mark.parametrize(
    ("source", "changes"),
    [
        (DEMO_FOLDER, {"config": {"auto_map": AUTO_MAP}}),
        (DEMO_FOLDER, {"tokenizer_config": {"auto_map": {"AutoTokenizer": ["evil.Model", None]}}}),
        (VISION_FOLDER, {"preprocessor_config": {"auto_map": {"AutoImageProcessor": "evil.Model"}}}),
    ],
)
def test_remote_code_does_not_replace_a_class_of_transformers(
    source: Path, changes: dict[str, Any], tmp_path: Path, marker: Path
) -> None:
    folder = model_folder(tmp_path / "model", source, **changes)
    add_code(folder, marker)
    assert sp.load_model(folder, device="cpu").cfg.n_layers
    assert not marker.exists()


@pytest.mark.model
def test_only_weights_are_read_from_a_pickle(tmp_path: Path, marker: Path) -> None:
    """On the Hub, the weights of OPT and Galactica exist only as pickles."""
    folder = model_folder(tmp_path / "model")
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    loaded, expected = (sp.load_model(name, device="cpu") for name in (folder, "demo"))
    tokens = torch.tensor([[1, 5, 9, 300]])
    assert torch.equal(loaded(tokens), expected(tokens))
    torch.save({**weights, "evil": _Evil(marker)}, folder / "pytorch_model.bin")
    with pytest.raises(sp.SpLensError, match=r"cannot load the model .*UnpicklingError"):
        sp.load_model(folder, device="cpu")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Evil(marker), protocol=2))  # the protocol that torch uses
    with pytest.raises(sp.SpLensError, match="cannot load the model"):
        sp.load_model(folder, device="cpu")
    assert not marker.exists()
    pickle.loads(pickle.dumps(_Evil(marker)))
    assert marker.exists()  # the test can detect that code runs


@pytest.mark.model
@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
@pytest.mark.parametrize(
    "data", [b"", b"[]", b"null", b"{", b"\xff" * 90, b"[" * 100_000], ids=lambda data: str(data[:4])
)
def test_a_damaged_file_of_a_model_is_rejected(file: str, data: bytes, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    (folder / file).write_bytes(data)
    with limited(), pytest.raises(sp.SpLensError, match="cannot load the model"):
        sp.load_model(folder, device="cpu")


@pytest.mark.model
@pytest.mark.parametrize(
    "values",
    [
        {"hidden_size": -1},
        {"num_hidden_layers": "x"},
        {"num_attention_heads": 0},
        {"vocab_size": 10**18},
        {"ffn_dim": [1]},
    ],
)
def test_an_invalid_configuration_is_rejected(values: dict[str, Any], tmp_path: Path) -> None:
    with limited(), pytest.raises(sp.SpLensError, match="cannot load the model"):
        sp.load_model(model_folder(tmp_path / "model", config=values), device="cpu")


@pytest.mark.model
@pytest.mark.parametrize("data", [b"", b"GGUF", b"GGUF" + b"\xff" * 90, b"GGUF\3\0\0\0" + b"\xff" * 16 + bytes(64)])
def test_a_damaged_gguf_file_is_rejected(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(data)
    with limited(), pytest.raises(sp.SpLensError, match="cannot load the model"):
        sp.load_model(tmp_path / "model.gguf")


def test_pipes_in_models_and_images_are_not_read(tmp_path: Path, vision: Any) -> None:
    folder = model_folder(tmp_path / "model")
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    os.mkfifo(tmp_path / "model.gguf")
    photos = image_folder(tmp_path / "photos", png(32, 32))
    os.mkfifo(photos / "cat" / "c.png")
    with limited(5):
        with pytest.raises(sp.SpLensError, match=r"config\.json is not a regular file"):
            sp.load_model(folder)
        with pytest.raises(sp.SpLensError, match="there is no GGUF file"):
            sp.load_model(tmp_path / "model.gguf")
        with pytest.raises(sp.SpLensError, match=r"c\.png is not a regular file"):
            sp.load_images(photos, vision)


@pytest.mark.parametrize("relative", [".", "..", "../"])
def test_a_model_is_named_after_its_folder(relative: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name becomes part of the paths of results."""
    inside = model_folder(tmp_path / "mine") / "inside"
    inside.mkdir()
    monkeypatch.chdir(tmp_path / "mine" if relative == "." else inside)
    assert model_name(sp.load_model(relative, device="cpu")) == "mine"


# Text.


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60))
@example(b"")
@example(b"\xef\xbb\xbf")
@example(b"\x00" * 20)
@example(b"caf\xe9 au lait")
@example("two words".encode("utf-16"))
@example(b"\xed\xa0\x80 half of a pair")
def test_any_text_file_is_read_or_rejected(demo: Any, tmp_path: Path, data: bytes) -> None:
    """The tokens decode to the text, without a byte order mark and with normalised line breaks."""
    (tmp_path / "a.txt").write_bytes(data)
    try:
        corpus = sp.load_corpus(tmp_path / "a.txt", demo, tokens=None)
    except sp.SpLensError:
        return
    text = data.decode().removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    assert demo.tokenizer.decode([token for row in corpus["input_ids"] for token in row[1:]]) == text


BAD_FILES = {
    "a.json": [
        b"",
        b"{",
        b"[1]",
        b'{"text": 5}',
        b'{"text": ["a"]}',
        b'{"text": "\\ud800 a b"}',
        b"\xff\xfe",
        b"[" * 10_000,
    ],
    "a.jsonl": [b"", b'{"text": "one two"}\n{"text": null}', b'{"text": "one two"}\n{', b'{"other": 5}'],
    "a.csv": [b"", b"one,two\na b,c d", b'text\n"', b'text\n1 2\n""', b"\x00\x00"],
    "a.parquet": [b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1"],
}


@pytest.mark.parametrize(
    ("name", "data"),
    [(name, data) for name, each in BAD_FILES.items() for data in each],
    ids=lambda value: str(value)[:40],
)
def test_a_damaged_table_of_text_is_rejected(name: str, data: bytes, demo: Any, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with limited(), pytest.raises(sp.SpLensError):
        sp.load_corpus(tmp_path / name, demo, tokens=None)


@pytest.mark.parametrize("name", ["a.txt", "a.json", "a.csv", "a.parquet"])
def test_text_from_a_pipe_or_a_folder_is_rejected(name: str, demo: Any, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    (tmp_path / "folder" / name).mkdir(parents=True)
    for file in (tmp_path / name, tmp_path / "folder" / name):
        with limited(2), pytest.raises(sp.SpLensError, match="there is no file"):
            sp.load_corpus(file, demo)


def test_a_damaged_description_of_a_dataset_is_ignored(demo: Any) -> None:
    corpus = sp.load_corpus(["one two three"], demo, tokens=None)
    corpus.info.description = '{"source": "code", '
    assert sp.collect(demo, corpus, progress=False).about["corpora"] == [{"source": "Dataset"}]


def test_a_lone_surrogate_is_rejected(demo: Any) -> None:
    for read in (lambda texts: sp.load_corpus(texts, demo, tokens=None), lambda texts: sp.collect(demo, texts)):
        with pytest.raises(sp.SpLensError, match=r"'\\ud800 and more' contains a lone surrogate"):
            read(["\ud800 and more"])


@pytest.mark.parametrize("word", ["a", "ab c", "Ω"])
def test_only_the_requested_tokens_of_a_very_long_line_are_read(word: str, demo: Any, tmp_path: Path) -> None:
    """The line has 50 million characters. A tokenizer took 6 s and 200 bytes per character for 4 million."""
    (tmp_path / "a.txt").write_text(word * (50_000_000 // len(word)), "utf-8")
    with limited(60):
        corpus = sp.load_corpus(tmp_path / "a.txt", demo, tokens=1000)
    assert sum(len(row) - 1 for row in corpus["input_ids"]) == 1000


def test_a_long_text_is_tokenized_in_parts(demo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(f"The number {number} is {'odd' if number % 2 else 'even'}.\n" for number in range(500)) + "x" * 5000
    whole = sp.load_corpus([text], demo, tokens=None)["input_ids"][:]
    monkeypatch.setattr("sp_lens.data.tokenization.PART_CHARACTERS", 1000)
    parts = sp.load_corpus([text], demo, tokens=None)["input_ids"][:]
    assert demo.tokenizer.decode([token for row in parts for token in row[1:]]) == text
    assert parts[:20] == whole[:20]  # the same tokens, because parts end before a space or a line break


# Images.


@pytest.fixture(scope="module")
def vision() -> Any:
    return sp.load_model("demo-vision", device="cpu")


def png(width: int, height: int, *, pixels: bool = True) -> bytes:
    """Return a minimal black PNG. Without pixels, its header states a size that it does not contain."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = bytes((1 + 3 * width) * height) if pixels else b""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def image_folder(folder: Path, data: bytes) -> Path:
    """Create a folder with one valid image in each of two classes, and one image with the given content."""
    for name in ("cat", "ship"):
        (folder / name).mkdir(parents=True)
        (folder / name / "a.png").write_bytes(png(32, 32))
    (folder / "cat" / "b.png").write_bytes(data)
    return folder


@pytest.mark.parametrize("data", [png(1, 1), png(1, 3000), png(3000, 1)], ids=["1x1", "1x3000", "3000x1"])
def test_images_of_unusual_sizes_are_read(data: bytes, vision: Any, tmp_path: Path) -> None:
    corpus = sp.load_images(image_folder(tmp_path / "photos", data), vision)
    assert sp.evaluate(vision, corpus, progress=False).tokens == 3


BAD_IMAGES = {
    "empty": b"",
    "text": b"This is not an image.",
    "cut short": png(32, 32)[:60],
    "no pixels": png(32, 32, pixels=False),
    "0x0": png(0, 0, pixels=False),
    "bomb": png(60_000, 60_000, pixels=False),
    "program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EOF\n",
}


@pytest.mark.parametrize("data", BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_a_damaged_image_is_rejected(data: bytes, vision: Any, tmp_path: Path) -> None:
    corpus = sp.load_images(image_folder(tmp_path / "photos", data), vision)
    with limited(), pytest.raises(sp.SpLensError, match=r"cannot read image \d of the corpus .*Remove it"):
        sp.evaluate(vision, corpus, progress=False)


def test_postscript_is_not_run(vision: Any, tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow runs Ghostscript, if it is on the path, on any file that begins like PostScript."""
    eps = pytest.importorskip("PIL.EpsImagePlugin")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gs").write_text(f"#!/bin/sh\ntouch '{marker}'\n")
    (tmp_path / "bin" / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setattr(eps, "gs_binary", None)
    corpus = sp.load_images(image_folder(tmp_path / "photos", BAD_IMAGES["program"]), vision)
    with pytest.raises(sp.SpLensError, match="cannot read image"):
        sp.evaluate(vision, corpus, progress=False)
    assert not marker.exists()
    assert eps.gs_binary is None
    with pytest.raises(OSError, match=r".*"):
        eps.EpsImageFile(io.BytesIO(BAD_IMAGES["program"])).load()
    assert marker.exists()  # the test can detect that code runs


def test_nothing_outside_an_image_folder_is_read_or_written(vision: Any, tmp_path: Path) -> None:
    photos = image_folder(tmp_path / "photos", png(8, 8))
    (tmp_path / "secret.png").write_bytes(png(8, 8))
    with zipfile.ZipFile(photos / "more.zip", "w") as archive:
        archive.writestr("../../written.png", png(8, 8))
    with pytest.raises(sp.SpLensError, match=r"more\.zip is not in the folder of a class"):
        sp.load_images(photos, vision)
    assert not list(tmp_path.rglob("written.png"))
    (photos / "more.zip").unlink()
    sp.load_images(photos, vision)
    (photos / "metadata.jsonl").write_text('{"file_name": "../secret.png", "label": "cat"}\n')
    with pytest.raises(sp.SpLensError):
        sp.load_images(photos, vision)
