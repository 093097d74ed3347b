"""An exported model is loaded in the dtype that it had, and a failed export leaves nothing behind."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from factories import bridge_of, random_mask, tiny_bridge, tiny_hf

import sp_lens as sp
from sp_lens.interventions import export as export_module
from sp_lens.models.hooks import hook_point
from sp_lens.models.loading import DTYPES

pytestmark = pytest.mark.model

FAMILIES = {
    "opt": transformers.AutoModelForCausalLM,
    "gemma3": transformers.AutoModelForCausalLM,
    "bert": transformers.AutoModelForMaskedLM,
    "vit": transformers.AutoModelForImageClassification,
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_export_is_loaded_in_the_dtype_of_the_model(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = bridge_of(tiny_hf(family).to(dtype), f"tiny-{family}")
    folder = sp.export(model, random_mask(model, 0.2), tmp_path / "pruned")
    assert json.loads((folder / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    loaded = FAMILIES[family].from_pretrained(folder, dtype="auto")
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    assert type(loaded) is type(model.original_model)


@pytest.fixture
def model() -> Any:
    return tiny_bridge("opt")


def export(model: Any, folder: str | Path, **options: Any) -> Path:
    return sp.export(model, random_mask(model, 0.2), folder, **options)


def test_folders_that_can_be_created_are(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "used")
    monkeypatch.chdir(tmp_path)
    options = {"empty": {}, "missing/parents/new": {}, "link": {"overwrite": True}}
    for folder, overwrite in options.items():
        assert export(model, folder, **overwrite) == Path(folder)
        assert Path(folder, "config.json").is_file()
    assert not Path("used", "file").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "missing", "link", "used"}


BAD: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "used": ("already exists and is not empty: choose another folder, or set overwrite", lambda f: f),
    "used/file": ("used/file is a file: pass the path of a new folder", lambda f: f),
    "used/file/below": ("cannot create the folder .*used/file/below .*Not a directory", lambda f: f),
    ".": ("'.' is the current folder or contains it", lambda f: "."),
    "..": ("'..' is the current folder or contains it", lambda f: ".."),
    "": ("'' is the current folder or contains it", lambda f: ""),
    "/": ("'/' is the current folder or contains it", lambda f: "/"),
}


@pytest.mark.parametrize("folder", BAD)
def test_other_folders_raise_an_error_before_any_work(
    model: Any, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message, path = BAD[folder]
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(export_module, "_export", lambda *_, **__: pytest.fail("the work started"))
    overwrite = folder in (".", "..", "", "/")
    with pytest.raises(sp.SpLensError, match=message):
        export(model, path(tmp_path / folder), overwrite=overwrite)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, sp.SpLensError, OSError])
def test_a_failed_export_leaves_nothing_behind(
    model: Any, error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise error("while verifying")

    existing = tmp_path / "existing"
    existing.mkdir()
    (existing / "file").write_text("content")
    monkeypatch.setattr(export_module, "_verify", fail)
    for folder in (tmp_path / "new", existing):
        with pytest.raises(error, match="while verifying"):
            export(model, folder, overwrite=True)
    assert os.listdir(tmp_path) == ["existing"]
    assert (existing / "file").read_text() == "content"


def test_an_export_that_differs_is_not_saved(model: Any, tmp_path: Path) -> None:
    hook_point(model, sp.layout_of(model).group("blocks.0.mlp.hook_post")).add_hook(
        lambda activation, hook: activation * 2, is_permanent=True
    )
    with pytest.raises(
        sp.SpLensError, match=r"differs from the model ablated by hooks by .* nats, so it was not saved"
    ):
        export(model, tmp_path / "new")
    assert not list(tmp_path.iterdir())
