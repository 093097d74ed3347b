"""Compare several processes with one. The tests run functions of this file in processes joined with gloo on the CPU."""

import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import DEMO_FOLDER, random_mask, random_rows, tiny_bridge, tiny_hf
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import AutoTokenizer

import sp_lens as sp
from sp_lens import distributed
from sp_lens.cli.__main__ import main
from sp_lens.data.batch import Batch

pytestmark = pytest.mark.model

# Eight batches per corpus, which three processes cannot share evenly.
OPTIONS: dict[str, Any] = {"batch_tokens": 60, "progress": False}
CORPORA = {
    name: [row % 2000 + (2048 if "retain" in name else 2) for row in random_rows(20, seed=seed)]
    for seed, name in enumerate(("forget", "retain", "eval_forget", "eval_retain"))
}
RUN: dict[str, Any] = {"fraction": 0.1, "steps": 3}
EDGES = torch.linspace(-0.3, 0.4, 8)
IMAGES = [
    {"pixel_values": torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(n)), "labels": n % 5}
    for n in range(9)
]


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    """Provide three processes. The libraries are imported once, by the fork server."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sp_lens", "transformer_lens.model_bridge"])
    with ProcessPoolExecutor(3, mp_context=context) as executor:
        yield executor


def in_ranks(pool: ProcessPoolExecutor, count: int, function: Callable[[Path], Any], folder: Path) -> list[Any]:
    """Return the result of the function in each of `count` joined processes, by rank."""
    futures = [pool.submit(_joined, rank, count, function, folder) for rank in range(count)]
    return [future.result() for future in futures]


def _joined(rank: int, count: int, function: Callable[[Path], Any], folder: Path) -> Any:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    init_method = f"file://{folder}/{function.__name__}-{count}"
    # The timeout makes a process fail instead of waiting forever for another one.
    torch.distributed.init_process_group("gloo", init_method, timedelta(seconds=90), count, rank)
    try:
        return function(folder)
    finally:
        torch.distributed.destroy_process_group()


def run_all(folder: Path) -> dict[str, Any]:
    """Run every function that shares batches among the ranks, and save the results."""
    folder = folder / f"{distributed.rank()}-of-{distributed.world_size()}"
    opt, bert, vit = (tiny_bridge(family) for family in ("opt", "bert", "vit"))
    corpus = CORPORA["forget"]
    sp.collect(opt, corpus, edges=EDGES, neurons=random_mask(opt, 0.3), **OPTIONS).save(folder / "opt.safetensors")
    sp.collect(vit, IMAGES, **OPTIONS).save(folder / "vit.safetensors")
    with sp.ablate(opt, random_mask(opt, 0.3)):
        evaluations = {"ablated": sp.evaluate(opt, corpus, **OPTIONS)}
    evaluations["masked"] = sp.evaluate(bert, corpus, seed=3, **OPTIONS)
    evaluations["images"] = sp.evaluate(vit, IMAGES, **OPTIONS)
    # Every rank has its own folder, to test that only rank 0 writes.
    run = sp.prune(opt, **CORPORA, **RUN, out=folder / "run", **OPTIONS)
    run.save(folder / "run.safetensors")
    return {name: asdict(evaluation) for name, evaluation in evaluations.items()}


def checksum(file: Path) -> str:
    """Return the checksum of the content. The bytes of two files may differ, because the order of the header varies."""
    with safe_open(file, framework="pt") as opened:
        return opened.metadata()["sha256"]


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Make the same calls in one process. Return the folder of its files, and its evaluations."""
    folder = tmp_path_factory.mktemp("single")
    return folder / "0-of-1", run_all(folder)


@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_return_the_results_of_one(
    pool: ProcessPoolExecutor, single: tuple[Path, dict[str, Any]], count: int, tmp_path: Path
) -> None:
    single_folder, evaluations = single
    shared = in_ranks(pool, count, run_all, tmp_path)
    assert all(str(result) == str(shared[0]) for result in shared)  # as strings, because NaN != NaN
    for name, evaluation in evaluations.items():
        assert shared[0][name] == pytest.approx(evaluation, rel=1e-12, abs=0, nan_ok=True)
        exact = ("top1", "top10", "tokens")
        assert [shared[0][name][key] for key in exact] == [evaluation[key] for key in exact]
    folders = [tmp_path / f"{rank}-of-{count}" for rank in range(count)]
    for name in ("opt.safetensors", "vit.safetensors", "run.safetensors"):
        assert len({checksum(folder / name) for folder in folders}) == 1
    for name in ("opt.safetensors", "vit.safetensors"):
        assert_same_statistics(
            sp.ActivationStats.load(folders[0] / name), sp.ActivationStats.load(single_folder / name)
        )
    assert [(folder / "run").exists() for folder in folders] == [True] + [False] * (count - 1)
    assert {file.name for file in (folders[0] / "run").iterdir()} == {
        file.name for file in (single_folder / "run").iterdir()
    }
    run, whole = (sp.PruneRun.load(folder / "run.safetensors") for folder in (folders[0], single_folder))
    assert run.mask == whole.mask
    assert all(torch.equal(run.pruned_at[name], at) for name, at in whole.pruned_at.items())
    for record, expected in zip(run.records, whole.records, strict=True):
        assert record == pytest.approx(expected, rel=1e-12, abs=0, nan_ok=True)


def assert_same_statistics(shared: sp.ActivationStats, single: sp.ActivationStats) -> None:
    """Compare statistics: sums to 1e-12 of the scale of each neuron, as their order differs, and all else exactly."""
    assert shared.about == single.about
    assert shared.count == single.count
    for name in single:
        a, b = shared[name].tensors(), single[name].tensors()
        moments = single[name]
        scales = {"absolute": b["absolute"], "mean": moments.abs(), "squares": moments.rms() ** 2 * single.count}
        assert a.keys() == b.keys()
        for key, tensor in b.items():
            error = (a[key] - tensor).abs()
            assert (error <= 1e-12 * scales.get(key, torch.zeros(()))).all(), (name, key)


def run_one_batch(folder: Path) -> None:
    opt = tiny_bridge("opt")
    stats = sp.collect(opt, CORPORA["forget"], edges=EDGES, progress=False)
    stats.save(folder / f"{distributed.rank()}.safetensors")
    assert sp.evaluate(opt, CORPORA["forget"], progress=False) == sp.Evaluation.load(folder / "evaluation.json")


def test_there_can_be_more_processes_than_batches(pool: ProcessPoolExecutor, opt: Any, tmp_path: Path) -> None:
    stats = sp.collect(opt, CORPORA["forget"], edges=EDGES, progress=False)
    stats.save(tmp_path / "one.safetensors")
    sp.evaluate(opt, CORPORA["forget"], progress=False).save(tmp_path / "evaluation.json")
    in_ranks(pool, 3, run_one_batch, tmp_path)
    single = checksum(tmp_path / "one.safetensors")
    assert all(checksum(tmp_path / f"{rank}.safetensors") == single for rank in range(3))


def error_messages(folder: Path) -> list[str]:
    """Return the errors of this rank for calls that fail on one rank or that differ between the ranks."""
    opt, rank = tiny_bridge("opt"), distributed.rank()
    broken = tiny_bridge("opt")
    with torch.no_grad():
        broken.original_model.get_decoder().embed_positions.weight[2 + 24] = torch.nan
    rows = [*random_rows(19), torch.arange(2, 28)]  # the longest row is in the first batch, which rank 0 reads
    (folder / "file").write_text("not a folder")
    here = folder / ("file" if rank == 0 else "never")
    calls: list[Callable[[], Any]] = [
        lambda: sp.collect(broken, rows, **OPTIONS),
        lambda: sp.evaluate(broken, rows, **OPTIONS),
        lambda: sp.collect(opt, "text" if rank == 1 else rows, **OPTIONS),
        lambda: sp.collect(opt, [*rows, rows[rank]], **OPTIONS),
        lambda: sp.collect(opt, rows, edges=EDGES[rank:], **OPTIONS),
        lambda: sp.collect(opt, rows, edges=EDGES + rank, **OPTIONS),
        lambda: sp.evaluate(opt, rows, seed=rank, **OPTIONS),
        lambda: sp.prune(opt, **CORPORA, steps=2, out=here, **OPTIONS),
        lambda: sp.prune(tiny_bridge("opt", seed=rank), **CORPORA, steps=2, **OPTIONS),
        lambda: sp.prune(opt, **CORPORA, steps=2, out=folder / ("run" if rank == 0 else "other"), **OPTIONS),
        lambda: sp.reproduce("figure-2"),
    ]
    messages = []
    for call in calls:
        with pytest.raises(sp.SpLensError) as error:
            call()
        messages.append(str(error.value))
    assert sp.collect(opt, rows, **OPTIONS).count == sum(len(row) - 1 for row in rows)
    return messages


def test_an_error_on_one_rank_is_raised_on_all(pool: ProcessPoolExecutor, opt: Any, tmp_path: Path) -> None:
    sp.prune(opt, **CORPORA, steps=1, out=tmp_path / "run", **OPTIONS)
    first, second = in_ranks(pool, 2, error_messages, tmp_path)
    different = "different corpora"
    expected = [  # a part of the message, and the rank that fails by itself
        ("NaN or infinite activation at site", 0),
        ("logits are NaN", 0),
        ("a list", 1),
        (different, None),
        (different, None),
        ("different edges", None),
        (different, None),
        ("cannot write to the folder", 0),
        ("different models", None),
        ("different steps", None),
        ("in one process, and this is one of 2", None),
    ]
    for messages, (part, failed) in zip(zip(first, second, strict=True), expected, strict=True):
        assert all(part in message for message in messages)
        if failed is not None:
            assert messages[1 - failed].startswith(f"rank {failed} failed: ")
            assert not messages[failed].startswith("rank")


def resume_run(folder: Path) -> None:
    run = sp.prune(tiny_bridge("opt"), **CORPORA, **RUN, out=folder / "run", **OPTIONS)
    run.save(folder / f"{distributed.rank()}.safetensors")


def test_a_run_is_resumed_with_another_number_of_processes(
    pool: ProcessPoolExecutor, single: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    for step in (0, 1):  # the checkpoints of one process that was killed after step 1
        name = f"step-{step:04d}.safetensors"
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / name).write_bytes((single[0] / "run" / name).read_bytes())
    in_ranks(pool, 2, resume_run, tmp_path)
    assert checksum(tmp_path / "0.safetensors") == checksum(tmp_path / "1.safetensors")
    run = sp.PruneRun.load(tmp_path / "run")
    assert run.steps == 3
    assert run.mask == sp.PruneRun.load(single[0] / "run").mask


def gather_tensors(_: Path) -> None:
    def tensors_of(rank: int) -> dict[str, torch.Tensor]:
        return {
            "odd": torch.arange(3, dtype=torch.float32) / 7 + rank,
            "double": torch.tensor(0.1 + rank, dtype=torch.float64),
            "table": torch.full((2, 2), rank),
            "flags": torch.tensor([True, False, rank == 1]),
            "none": torch.zeros(0, 3),
        }

    gathered = distributed.gathered(tensors_of(distributed.rank()))
    assert len(gathered) == distributed.world_size()
    for rank, tensors in enumerate(gathered):
        assert all(torch.equal(tensor, tensors_of(rank)[name]) for name, tensor in tensors.items())
        assert all(tensor.dtype == tensors_of(rank)[name].dtype for name, tensor in tensors.items())


def test_gathered_tensors_are_those_of_each_rank(pool: ProcessPoolExecutor, tmp_path: Path) -> None:
    in_ranks(pool, 2, gather_tensors, tmp_path)
    gather_tensors(tmp_path)  # in one process


@settings(max_examples=30)
@given(st.integers(0, 30), st.integers(1, 8))
def test_every_batch_is_read_by_one_rank(count: int, world: int) -> None:
    ones = torch.ones(1, 2, dtype=torch.long)
    batches = [Batch(n * ones, ones, ones.bool(), rows=(), number=n) for n in range(count)]
    shares, checksums = [], set()
    for rank in range(world):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(distributed, "rank", lambda rank=rank: rank)
            patch.setattr(distributed, "world_size", lambda: world)
            ranks = distributed.Ranks()
            shares.append([batch.number for batch in ranks.share(batches)])
            checksums.add(ranks.checksum)
    assert sorted(number for share in shares for number in share) == list(range(count))
    assert all(share == sorted(share) for share in shares)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert len(checksums) == 1


def save_model_and_texts(folder: Path) -> list[str]:
    """Save a tiny model and four texts of two batches each, and return the command-line options that name them."""
    tiny_hf("opt").save_pretrained(folder / "tiny-opt")
    AutoTokenizer.from_pretrained(DEMO_FOLDER).save_pretrained(folder / "tiny-opt")
    options = ["--model", str(folder / "tiny-opt"), "--tokens", "5000"]
    for seed, name in enumerate(CORPORA):
        numbers = torch.randint(10_000, (3000,), generator=torch.Generator().manual_seed(seed)).tolist()
        text = " ".join(f"{number:x}" if "retain" in name else str(number) for number in numbers)
        (folder / f"{name}.txt").write_text(text)
        options += [f"--{name.replace('_', '-')}", str(folder / f"{name}.txt")]
    return options


def test_accelerate_launch(tmp_path: Path) -> None:
    """`--multi_gpu` is needed without GPUs as well: with `--cpu`, accelerate always starts one process."""
    prune = ["prune", *save_model_and_texts(tmp_path), "--spare-sinks", "--fraction", "0.1", "--steps", "1", "--out"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])  # older versions of accelerate wait forever at port 0
    launch = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port", port]
    launched = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *launch, "-m", "sp_lens.cli", *prune, tmp_path / "two"],
        check=True, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert launched.stdout.count("selectivity") == 1
    assert main([*prune, str(tmp_path / "one")]) == 0
    two, one = (sp.PruneRun.load(tmp_path / name) for name in ("two", "one"))
    assert two.mask == one.mask
    assert two.records[1]["retain_loss"] == pytest.approx(one.records[1]["retain_loss"], rel=1e-12, abs=0)
