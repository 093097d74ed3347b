"""Test that files are written atomically and that every defect of a file raises SpLensError."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from sp_lens import (
    ActivationStats,
    Evaluation,
    HeadValues,
    Layout,
    NeuronGroup,
    NeuronMask,
    NeuronValues,
    PruneRun,
    SpLensError,
    score,
)
from sp_lens.statistics.histogram import Histogram
from sp_lens.statistics.moments import Moments
from sp_lens.storage.serialization import load_tensors, read_json, save_tensors, write_bytes, write_json

pytestmark = pytest.mark.libraries

LAYOUT = Layout((NeuronGroup("attn", 0, 4, heads=2), NeuronGroup("mlp", 0, 6)))
MOMENTS = {group.name: Moments.from_activations(torch.randn(5, group.width)) for group in LAYOUT}
STATS = ActivationStats(LAYOUT, MOMENTS, {"model": "m"})
VALUES = score(STATS, STATS)
RECORD = {"step": 0, "share": 0.0, "forget_top1": 0.5, "retain_top1": 0.25}
RESULTS = [
    STATS,
    VALUES,
    VALUES.heads(),
    VALUES.top(0.5, site="mlp"),
    PruneRun(LAYOUT, {group.name: torch.zeros(group.width, dtype=torch.int32) for group in LAYOUT}, [RECORD], {}),
    Evaluation(0.5, 0.75, 0.25, 1.5, 4.5, 100),
]
each_result = pytest.mark.parametrize("result", RESULTS, ids=lambda result: type(result).__name__)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "result"


def is_alone(path: Path) -> bool:
    """Return whether the folder contains only this file, and no temporary file."""
    return [file.name for file in path.parent.iterdir()] == [path.name]


@contextmanager
def disk_full_after(size: int) -> Iterator[None]:
    """Context manager in which no file can grow beyond `size` bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("old", [b"the old file", None])
def test_a_failed_write_keeps_the_old_file(path: Path, old: bytes | None) -> None:
    if old is not None:
        path.write_bytes(old)
    with disk_full_after(1000), pytest.raises(OSError, match="too large"):
        write_bytes(path, bytes(5000))
    with disk_full_after(1000), pytest.raises(OSError, match="too large"):
        save_tensors(path, "Thing", {"a": torch.zeros(5000)}, {})
    with pytest.raises(TypeError):
        save_tensors(path, "Thing", {}, {"not json": object()})
    with pytest.raises(TypeError):
        write_json(path, {"half": 1, "not json": object()})
    assert [file.read_bytes() for file in path.parent.iterdir()] == ([] if old is None else [old])


def test_a_write_replaces_the_old_file(path: Path) -> None:
    for data in (b"a longer first version", b"second", b""):
        write_bytes(path, data)
        assert path.read_bytes() == data
        assert is_alone(path)


def test_a_folder_is_not_overwritten(path: Path) -> None:
    path.mkdir()
    with pytest.raises(OSError, match="directory"):
        write_bytes(path, b"data")
    assert is_alone(path)


def test_loaded_tensors_equal_the_saved_ones(path: Path) -> None:
    tensors = {
        "bfloat16": torch.randn(3, 4).bfloat16(),
        "float64": torch.randn(5).double(),
        "transposed": torch.randn(3, 4).T,
        "every other": torch.arange(10)[::2],
        "bool": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
        "with gradient": torch.randn(2, requires_grad=True),
    }
    header = {"note": "ünïcode", "number": 1.5, "nothing": None}
    save_tensors(path, "Thing", tensors, header)
    back, read = load_tensors(path, "Thing")
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) and back[name].dtype == tensors[name].dtype for name in tensors)
    versions = {name: version(name) for name in ("sp_lens", "transformer_lens", "transformers", "torch")}
    assert read == {"kind": "Thing", "versions": versions, **header}
    assert is_alone(path)


@each_result
def test_a_truncated_file_is_rejected(result: Any, path: Path) -> None:
    result.save(path)
    assert is_alone(path)
    whole = path.read_bytes()
    assert type(result).load(path) is not None
    for length in range(0, len(whole) - 1, 3):  # JSON without the last newline is still complete
        path.write_bytes(whole[:length])
        with pytest.raises(SpLensError, match=r"result"):
            type(result).load(path)


@pytest.mark.parametrize("bit", [1, 32, 128])
def test_a_flipped_bit_raises_no_other_error(bit: int, path: Path) -> None:
    VALUES.save(path)
    whole = path.read_bytes()
    rejected = 0
    for index in range(8 + int.from_bytes(whole[:8], "little")):
        path.write_bytes(whole[:index] + bytes([whole[index] ^ bit]) + whole[index + 1 :])
        try:
            load_tensors(path, "NeuronValues")
        except SpLensError:
            rejected += 1
    assert rejected > 100


@each_result
@pytest.mark.parametrize("name", ["run[1]", "run*", "a::b", "100%", "{a,b}"])
def test_names_of_files_and_folders_are_not_patterns(result: Any, name: str, tmp_path: Path) -> None:
    (tmp_path / "run1").write_bytes(b"another file")
    with pytest.raises(SpLensError):
        type(result).load(tmp_path / name)
    for path in (tmp_path / name, tmp_path / f"folder {name}" / name):
        result.save(path)
        type(result).load(path)
        assert path.is_file()
    assert (tmp_path / "run1").read_bytes() == b"another file"


@pytest.mark.parametrize("result", RESULTS[:-1], ids=lambda result: type(result).__name__)
def test_a_flipped_bit_is_detected(result: Any, path: Path) -> None:
    result.save(path)
    whole = path.read_bytes()
    for index in range(0, len(whole), 3):
        path.write_bytes(whole[:index] + bytes([whole[index] ^ 1]) + whole[index + 1 :])
        with pytest.raises(SpLensError):
            type(result).load(path)


@each_result
def test_a_file_of_another_kind_is_rejected(result: Any, path: Path) -> None:
    result.save(path)
    for kind in (ActivationStats, NeuronValues, HeadValues, NeuronMask, PruneRun, Evaluation):
        if kind is not type(result):
            with pytest.raises(SpLensError, match=kind.__name__ if isinstance(result, Evaluation) else "result"):
                kind.load(path)


def safetensors_with(metadata: dict[str, str] | None) -> bytes:
    return safetensors.torch.save({"a": torch.zeros(3)}, metadata=metadata)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"a text file\n",
        b'{"kind": "NeuronMask"}',
        safetensors_with(None),
        safetensors_with({"format": "pt"}),
        safetensors_with({"sp_lens": "not json"}),
        safetensors_with({"sp_lens": "{}"}),
    ],
)
def test_files_of_other_programs_are_rejected(data: bytes, path: Path) -> None:
    path.write_bytes(data)
    for result in RESULTS:
        with pytest.raises(SpLensError, match="result"):
            type(result).load(path)


def test_pickles_missing_files_and_folders_are_rejected(path: Path) -> None:
    torch.save({"a": torch.zeros(3)}, path)
    for result in RESULTS:
        for other in (path, path.with_name("missing"), path.parent):
            with pytest.raises(SpLensError, match=other.name):
                type(result).load(other)


@pytest.mark.parametrize("header", ["[]", '{"kind": "NeuronMask"}', '{"kind": "NeuronMask", "layout": [{}]}'])
def test_incomplete_headers_are_rejected(header: str, path: Path) -> None:
    path.write_bytes(safetensors_with({"sp_lens": header}))
    with pytest.raises(SpLensError):
        NeuronMask.load(path)


@pytest.mark.parametrize("text", ['{"kind": "Evaluation"}', '{"kind": "Evaluation", "top2": 1}'])
def test_incomplete_json_is_rejected(text: str, path: Path) -> None:
    path.write_text(text)
    with pytest.raises(SpLensError):
        Evaluation.load(path)


def test_loaded_json_equals_the_saved_value(path: Path) -> None:
    write_json(path, {"a": [1, 2.5, None, "ünïcode"]})
    assert read_json(path) == {"a": [1, 2.5, None, "ünïcode"]}
    path.write_bytes(b"\xff\xfe{")
    with pytest.raises(SpLensError, match="result"):
        read_json(path)


def test_statistics_with_shared_histogram_edges_can_be_saved(path: Path) -> None:
    """`collect(..., edges=...)` gives every group the same tensor of edges."""
    edges, moments = torch.linspace(-1, 1, 5), {}
    for group in LAYOUT:
        x = torch.randn(9, group.width)
        moments[group.name] = Moments.from_activations(x).with_histogram(
            Histogram.from_activations(x, edges, torch.arange(group.width))
        )
    stats = ActivationStats(LAYOUT, moments)
    stats.save(path)
    for name, before in stats.items():
        back = ActivationStats.load(path)[name].histogram
        assert back is not None
        assert before.histogram is not None
        assert torch.equal(back.edges, edges)
        assert torch.equal(back.counts, before.histogram.counts)
