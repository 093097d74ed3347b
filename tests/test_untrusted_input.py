"""Models, text and images from anyone: no code of theirs is run, nothing is waited for, nothing is another error."""

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


def test_no_pickle_anywhere() -> None:
    """Neither the modules nor the functions and options that read one. transformers' own reader is told of below."""
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
                asked = ("False", "trust_remote_code", "options['trust_remote_code']")  # never, or as the caller says
                assert options.get("trust_remote_code", "False") in asked, file
                assert options.get("weights_only") is None, file

    assert inspect.signature(sp.load_model).parameters["trust_remote_code"].default is False


# Models.


class _Evil:
    """A pickle that makes a file when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch '{self.marker}'",)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A file that whatever is run unasked would make."""
    return tmp_path / "marker"


def model_folder(folder: Path, source: Path = DEMO_FOLDER, **changes: dict[str, Any]) -> Path:
    """A copy of a bundled model, with other values in its files of JSON, by the stems of their names."""
    shutil.copytree(source, folder)
    for stem, values in changes.items():
        file = folder / f"{stem}.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    return folder


def code_that_marks(folder: Path, marker: Path) -> None:
    (folder / "evil.py").write_text(
        f"open({str(marker)!r}, 'w').close()\nfrom transformers import OPTConfig, OPTForCausalLM\n"
        "class Config(OPTConfig):\n    model_type = 'evil'\nclass Model(OPTForCausalLM):\n    config_class = Config\n"
    )


AUTO_MAP = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}


@pytest.mark.model
def test_code_that_comes_with_a_model_is_not_run_unless_asked_for(tmp_path: Path, marker: Path) -> None:
    folder = model_folder(tmp_path / "model", config={"model_type": "evil", "auto_map": AUTO_MAP})
    code_that_marks(folder, marker)
    with pytest.raises(sp.SpLensError, match=r"its own Python code, which was not run.*trust_remote_code=True"):
        sp.load_model(folder, device="cpu")
    assert not marker.exists()
    sp.load_model(folder, device="cpu", trust_remote_code=True)
    assert marker.exists()  # so that it would have been seen


@pytest.mark.model
@pytest.mark.parametrize(
    ("source", "changes"),
    [
        (DEMO_FOLDER, {"config": {"auto_map": AUTO_MAP}}),
        (DEMO_FOLDER, {"tokenizer_config": {"auto_map": {"AutoTokenizer": ["evil.Model", None]}}}),
        (VISION_FOLDER, {"preprocessor_config": {"auto_map": {"AutoImageProcessor": "evil.Model"}}}),
    ],
)
def test_where_transformers_knows_the_class_its_own_is_taken(
    source: Path, changes: dict[str, Any], tmp_path: Path, marker: Path
) -> None:
    folder = model_folder(tmp_path / "model", source, **changes)
    code_that_marks(folder, marker)
    assert sp.load_model(folder, device="cpu").cfg.n_layers
    assert not marker.exists()


@pytest.mark.model
def test_of_a_pickle_of_weights_the_weights_alone_are_read(tmp_path: Path, marker: Path) -> None:
    """OPT's and Galactica's weights come as nothing else on the Hub."""
    folder = model_folder(tmp_path / "model")
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    there, expected = (sp.load_model(one, device="cpu") for one in (folder, "demo"))
    tokens = torch.tensor([[1, 5, 9, 300]])
    assert torch.equal(there(tokens), expected(tokens))
    torch.save({**weights, "evil": _Evil(marker)}, folder / "pytorch_model.bin")
    with pytest.raises(sp.SpLensError, match=r"cannot load the model .*UnpicklingError"):
        sp.load_model(folder, device="cpu")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Evil(marker), protocol=2))  # as torch writes
    with pytest.raises(sp.SpLensError, match="cannot load the model"):
        sp.load_model(folder, device="cpu")
    assert not marker.exists()
    pickle.loads(pickle.dumps(_Evil(marker)))
    assert marker.exists()  # so that it would have been seen


@pytest.mark.model
@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
@pytest.mark.parametrize(
    "data", [b"", b"[]", b"null", b"{", b"\xff" * 90, b"[" * 100_000], ids=lambda data: str(data[:4])
)
def test_a_model_with_a_damaged_file(file: str, data: bytes, tmp_path: Path) -> None:
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
def test_a_model_whose_configuration_can_not_be(values: dict[str, Any], tmp_path: Path) -> None:
    with limited(), pytest.raises(sp.SpLensError, match="cannot load the model"):
        sp.load_model(model_folder(tmp_path / "model", config=values), device="cpu")


@pytest.mark.model
@pytest.mark.parametrize("data", [b"", b"GGUF", b"GGUF" + b"\xff" * 90, b"GGUF\3\0\0\0" + b"\xff" * 16 + bytes(64)])
def test_a_gguf_file_that_is_damaged(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(data)
    with limited(), pytest.raises(sp.SpLensError, match="cannot load the model"):
        sp.load_model(tmp_path / "model.gguf")


def test_a_model_or_a_picture_that_is_a_pipe_is_not_waited_for(tmp_path: Path, vision: Any) -> None:
    folder = model_folder(tmp_path / "model")
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    os.mkfifo(tmp_path / "model.gguf")
    photos = picture_folder(tmp_path / "photos", png(32, 32))
    os.mkfifo(photos / "cat" / "c.png")
    with limited(5):
        with pytest.raises(sp.SpLensError, match=r"config\.json is not a regular file"):
            sp.load_model(folder)
        with pytest.raises(sp.SpLensError, match="there is no GGUF file"):
            sp.load_model(tmp_path / "model.gguf")
        with pytest.raises(sp.SpLensError, match=r"c\.png is not a regular file"):
            sp.load_images(photos, vision)


@pytest.mark.parametrize("place", [".", "..", "../"])
def test_a_model_is_called_after_its_folder(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name is part of paths that are written."""
    inside = model_folder(tmp_path / "mine") / "inside"
    inside.mkdir()
    monkeypatch.chdir(tmp_path / "mine" if place == "." else inside)
    assert model_name(sp.load_model(place, device="cpu")) == "mine"


# Text.


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60))
@example(b"")
@example(b"\xef\xbb\xbf")
@example(b"\x00" * 20)
@example(b"caf\xe9 au lait")
@example("two words".encode("utf-16"))
@example(b"\xed\xa0\x80 half of a pair")
def test_whatever_bytes_a_file_of_text_has(demo: Any, tmp_path: Path, data: bytes) -> None:
    """Its text comes back, without the mark of its encoding, and with line breaks as Python has them."""
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
    "a.jsonl": [b"", b'{"text": "one two"}\n{"text": null}', b'{"text": "one two"}\n{', b'{"other": "a b c"}'],
    "a.csv": [b"", b"other\na b c", b'text\n"', b"text\n1\n2", b"\x00\x00"],
    "a.parquet": [b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1"],
}


@pytest.mark.parametrize(("name", "data"), [(name, data) for name, each in BAD_FILES.items() for data in each], ids=str)
def test_a_table_of_text_that_can_not_be_read(name: str, data: bytes, demo: Any, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with limited(), pytest.raises(sp.SpLensError):
        sp.load_corpus(tmp_path / name, demo, tokens=None)


@pytest.mark.parametrize("name", ["a.txt", "a.json", "a.csv", "a.parquet"])
def test_text_out_of_a_pipe_or_a_folder(name: str, demo: Any, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    (tmp_path / "folder" / name).mkdir(parents=True)
    for file in (tmp_path / name, tmp_path / "folder" / name):
        with limited(2), pytest.raises(sp.SpLensError, match="there is no file"):
            sp.load_corpus(file, demo)


def test_a_dataset_that_is_described_like_ours(demo: Any) -> None:
    corpus = sp.load_corpus(["one two three"], demo, tokens=None)
    corpus.info.description = '{"source": "code", '
    assert sp.collect(demo, corpus, progress=False).about["corpora"] == [{"source": "Dataset"}]


def test_half_of_a_character_is_told(demo: Any) -> None:
    for read in (lambda texts: sp.load_corpus(texts, demo, tokens=None), lambda texts: sp.collect(demo, texts)):
        with pytest.raises(sp.SpLensError, match=r"'\\ud800 and more' contains a lone surrogate"):
            read(["\ud800 and more"])


@pytest.mark.parametrize("word", ["a", "ab c", "Ω"])
def test_of_a_line_of_many_megabytes_what_is_asked_for_is_read(word: str, demo: Any, tmp_path: Path) -> None:
    """50 million characters in one line. Of 4 million, a tokenizer took 6 s, and 200 bytes for each."""
    (tmp_path / "a.txt").write_text(word * (50_000_000 // len(word)), "utf-8")
    with limited(60):
        corpus = sp.load_corpus(tmp_path / "a.txt", demo, tokens=1000)
    assert sum(len(row) - 1 for row in corpus["input_ids"]) == 1000


def test_a_long_text_in_parts_is_the_text(demo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(f"The number {number} is {'odd' if number % 2 else 'even'}.\n" for number in range(500)) + "x" * 5000
    whole = sp.load_corpus([text], demo, tokens=None)["input_ids"][:]
    monkeypatch.setattr("sp_lens.data.tokenization.PART_CHARACTERS", 1000)
    parts = sp.load_corpus([text], demo, tokens=None)["input_ids"][:]
    assert demo.tokenizer.decode([token for row in parts for token in row[1:]]) == text
    assert parts[:20] == whole[:20]  # the sentences come to the same tokens: parts end before a space or a line break


# Images.


@pytest.fixture(scope="module")
def vision() -> Any:
    return sp.load_model("demo-vision", device="cpu")


def png(width: int, height: int, *, pixels: bool = True) -> bytes:
    """A PNG of the standard alone, in black: it can say that it is larger than what it holds."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = bytes((1 + 3 * width) * height) if pixels else b""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def picture_folder(folder: Path, data: bytes) -> Path:
    """A good picture in each of two classes, and another one."""
    for name in ("cat", "ship"):
        (folder / name).mkdir(parents=True)
        (folder / name / "a.png").write_bytes(png(32, 32))
    (folder / "cat" / "b.png").write_bytes(data)
    return folder


@pytest.mark.parametrize("data", [png(1, 1), png(1, 3000), png(3000, 1)], ids=["1x1", "1x3000", "3000x1"])
def test_pictures_of_odd_sizes_are_read(data: bytes, vision: Any, tmp_path: Path) -> None:
    corpus = sp.load_images(picture_folder(tmp_path / "photos", data), vision)
    assert sp.evaluate(vision, corpus, progress=False).tokens == 3


BAD_PICTURES = {
    "empty": b"",
    "text": b"I am no picture, whatever I am called.",
    "cut short": png(32, 32)[:60],
    "no pixels": png(32, 32, pixels=False),
    "0x0": png(0, 0, pixels=False),
    "bomb": png(60_000, 60_000, pixels=False),
    "program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EOF\n",
}


@pytest.mark.parametrize("data", BAD_PICTURES.values(), ids=BAD_PICTURES)
def test_a_picture_that_is_none(data: bytes, vision: Any, tmp_path: Path) -> None:
    corpus = sp.load_images(picture_folder(tmp_path / "photos", data), vision)
    with limited(), pytest.raises(sp.SpLensError, match=r"cannot read image \d of the corpus .*Remove it"):
        sp.evaluate(vision, corpus, progress=False)


def test_postscript_is_not_run(vision: Any, tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow looks for Ghostscript on the path, and hands it what begins as PostScript does, whatever its name."""
    eps = pytest.importorskip("PIL.EpsImagePlugin")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gs").write_text(f"#!/bin/sh\ntouch '{marker}'\n")
    (tmp_path / "bin" / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setattr(eps, "gs_binary", None)
    corpus = sp.load_images(picture_folder(tmp_path / "photos", BAD_PICTURES["program"]), vision)
    with pytest.raises(sp.SpLensError, match="cannot read image"):
        sp.evaluate(vision, corpus, progress=False)
    assert not marker.exists()
    assert eps.gs_binary is None
    with pytest.raises(OSError, match=r".*"):
        eps.EpsImageFile(io.BytesIO(BAD_PICTURES["program"])).load()
    assert marker.exists()  # so that it would have been seen


def test_nothing_outside_a_folder_of_pictures_is_read_or_written(vision: Any, tmp_path: Path) -> None:
    photos = picture_folder(tmp_path / "photos", png(8, 8))
    (tmp_path / "secret.png").write_bytes(png(8, 8))
    with zipfile.ZipFile(photos / "more.zip", "w") as archive:
        archive.writestr("../../written.png", png(8, 8))
    sp.load_images(photos, vision)
    assert not list(tmp_path.rglob("written.png"))
    (photos / "metadata.jsonl").write_text('{"file_name": "../secret.png", "label": "cat"}\n')
    with pytest.raises(sp.SpLensError):
        sp.load_images(photos, vision)
