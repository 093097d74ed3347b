"""Several processes against one: each test runs the functions below in processes that gloo joins, on the CPU."""

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
from sp_lens.data.batching import Batch

pytestmark = pytest.mark.model

# Eight batches of a corpus, that three processes can't share evenly.
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
    """Three processes, which import the libraries once, together."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sp_lens", "transformer_lens.model_bridge"])
    with ProcessPoolExecutor(3, mp_context=context) as executor:
        yield executor


def in_ranks(pool: ProcessPoolExecutor, count: int, function: Callable[[Path], Any], folder: Path) -> list[Any]:
    """What the function returns in each of `count` joined processes, by rank."""
    futures = [pool.submit(_joined, rank, count, function, folder) for rank in range(count)]
    return [future.result() for future in futures]


def _joined(rank: int, count: int, function: Callable[[Path], Any], folder: Path) -> Any:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    meeting = f"file://{folder}/{function.__name__}-{count}"
    # A process that waits for one that does not come fails, and does not hang.
    torch.distributed.init_process_group("gloo", meeting, timedelta(seconds=90), count, rank)
    try:
        return function(folder)
    finally:
        torch.distributed.destroy_process_group()


def everything(folder: Path) -> dict[str, Any]:
    """All that is shared out, with its results in files."""
    folder = folder / f"{distributed.rank()}-of-{distributed.world_size()}"
    opt, bert, vit = (tiny_bridge(family) for family in ("opt", "bert", "vit"))
    corpus = CORPORA["forget"]
    sp.collect(opt, corpus, edges=EDGES, neurons=random_mask(opt, 0.3), **OPTIONS).save(folder / "opt.safetensors")
    sp.collect(vit, IMAGES, **OPTIONS).save(folder / "vit.safetensors")
    with sp.ablate(opt, random_mask(opt, 0.3)):
        found = {"ablated": sp.evaluate(opt, corpus, **OPTIONS)}
    found["masked"] = sp.evaluate(bert, corpus, seed=3, **OPTIONS)
    found["images"] = sp.evaluate(vit, IMAGES, **OPTIONS)
    # Each names a folder of its own, to see that one alone writes.
    run = sp.prune(opt, **CORPORA, **RUN, out=folder / "run", **OPTIONS)
    run.save(folder / "run.safetensors")
    return {name: asdict(evaluation) for name, evaluation in found.items()}


def checksum(file: Path) -> str:
    """What a result is, to the bit (safetensors orders the parts of a header as it likes)."""
    with safe_open(file, framework="pt") as opened:
        return opened.metadata()["sha256"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The same in one process: the folder of its files, and its evaluations."""
    folder = tmp_path_factory.mktemp("alone")
    return folder / "0-of-1", everything(folder)


@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_come_to_what_one_does(
    pool: ProcessPoolExecutor, alone: tuple[Path, dict[str, Any]], count: int, tmp_path: Path
) -> None:
    one, evaluations = alone
    shared = in_ranks(pool, count, everything, tmp_path)
    assert all(str(each) == str(shared[0]) for each in shared)  # as text, where NaN is NaN
    for name, evaluation in evaluations.items():
        assert shared[0][name] == pytest.approx(evaluation, rel=1e-12, abs=0, nan_ok=True)
        exact = ("top1", "top10", "tokens")
        assert [shared[0][name][key] for key in exact] == [evaluation[key] for key in exact]
    folders = [tmp_path / f"{rank}-of-{count}" for rank in range(count)]
    for name in ("opt.safetensors", "vit.safetensors", "run.safetensors"):
        assert len({checksum(folder / name) for folder in folders}) == 1
    for name in ("opt.safetensors", "vit.safetensors"):
        assert_same_statistics(sp.ActivationStats.load(folders[0] / name), sp.ActivationStats.load(one / name))
    assert [(folder / "run").exists() for folder in folders] == [True] + [False] * (count - 1)
    assert {file.name for file in (folders[0] / "run").iterdir()} == {file.name for file in (one / "run").iterdir()}
    run, whole = (sp.PruneRun.load(folder / "run.safetensors") for folder in (folders[0], one))
    assert run.mask == whole.mask
    assert all(torch.equal(run.pruned_at[name], at) for name, at in whole.pruned_at.items())
    for record, expected in zip(run.records, whole.records, strict=True):
        assert record == pytest.approx(expected, rel=1e-12, abs=0, nan_ok=True)


def assert_same_statistics(shared: sp.ActivationStats, one: sp.ActivationStats) -> None:
    """To 1e-12 of each neuron's own size where sums were made in another order, to the bit elsewhere."""
    assert shared.about == one.about
    assert shared.count == one.count
    for name in one:
        a, b = shared[name].tensors(), one[name].tensors()
        scales = {"absolute": b["absolute"], "mean": one[name].abs(), "squares": one[name].rms() ** 2 * one.count}
        assert a.keys() == b.keys()
        for key, tensor in b.items():
            error = (a[key] - tensor).abs()
            assert (error <= 1e-12 * scales.get(key, torch.zeros(()))).all(), (name, key)


def one_batch(folder: Path) -> None:
    opt = tiny_bridge("opt")
    stats = sp.collect(opt, CORPORA["forget"], edges=EDGES, progress=False)
    stats.save(folder / f"{distributed.rank()}.safetensors")
    assert sp.evaluate(opt, CORPORA["forget"], progress=False) == sp.Evaluation.load(folder / "evaluation.json")


def test_more_processes_than_batches(pool: ProcessPoolExecutor, opt: Any, tmp_path: Path) -> None:
    stats = sp.collect(opt, CORPORA["forget"], edges=EDGES, progress=False)
    stats.save(tmp_path / "one.safetensors")
    sp.evaluate(opt, CORPORA["forget"], progress=False).save(tmp_path / "evaluation.json")
    in_ranks(pool, 3, one_batch, tmp_path)
    one = checksum(tmp_path / "one.safetensors")
    assert all(checksum(tmp_path / f"{rank}.safetensors") == one for rank in range(3))


def failures(folder: Path) -> list[str]:
    """What each rank says where one fails, one after the other: they stay in step."""
    opt, own = tiny_bridge("opt"), distributed.rank()
    broken = tiny_bridge("opt")
    with torch.no_grad():
        broken.original_model.get_decoder().embed_positions.weight[2 + 24] = torch.nan
    rows = [*random_rows(19), torch.arange(2, 28)]  # the longest is in the first batch, and of the first rank
    (folder / "file").write_text("not a folder")
    here = folder / ("file" if own == 0 else "never")
    fails: list[Callable[[], Any]] = [
        lambda: sp.collect(broken, rows, **OPTIONS),
        lambda: sp.evaluate(broken, rows, **OPTIONS),
        lambda: sp.collect(opt, "text" if own == 1 else rows, **OPTIONS),
        lambda: sp.collect(opt, [*rows, rows[own]], **OPTIONS),
        lambda: sp.collect(opt, rows, edges=EDGES[own:], **OPTIONS),
        lambda: sp.collect(opt, rows, edges=EDGES + own, **OPTIONS),
        lambda: sp.evaluate(opt, rows, seed=own, **OPTIONS),
        lambda: sp.prune(opt, **CORPORA, steps=2, out=here, **OPTIONS),
        lambda: sp.prune(tiny_bridge("opt", seed=own), **CORPORA, steps=2, **OPTIONS),
        lambda: sp.prune(opt, **CORPORA, steps=2, out=folder / ("run" if own == 0 else "other"), **OPTIONS),
        lambda: sp.reproduce("figure-2"),
    ]
    said = []
    for fail in fails:
        with pytest.raises(sp.SpLensError) as error:
            fail()
        said.append(str(error.value))
    assert sp.collect(opt, rows, **OPTIONS).count == sum(len(row) - 1 for row in rows)
    return said


def test_an_error_of_one_ends_all(pool: ProcessPoolExecutor, opt: Any, tmp_path: Path) -> None:
    sp.prune(opt, **CORPORA, steps=1, out=tmp_path / "run", **OPTIONS)
    first, second = in_ranks(pool, 2, failures, tmp_path)
    infinite, nan, unlike, kind = "NaN or infinite activation at site", "logits are NaN", "different corpora", "a list"
    its_own = [(infinite, 0), (nan, 0), (kind, 1)]
    expected = [*its_own, (unlike, None), (unlike, None), ("different edges", None), (unlike, None)]
    expected += [("cannot write to the folder", 0), ("different models", None), ("different steps", None)]
    expected += [("in one process, and this is one of 2", None)]
    for said, (message, failed) in zip(zip(first, second, strict=True), expected, strict=True):
        assert all(message in each for each in said)
        if failed is not None:
            assert said[1 - failed].startswith(f"rank {failed} failed: ")
            assert not said[failed].startswith("rank")


def resumed(folder: Path) -> None:
    run = sp.prune(tiny_bridge("opt"), **CORPORA, **RUN, out=folder / "run", **OPTIONS)
    run.save(folder / f"{distributed.rank()}.safetensors")


def test_a_run_goes_on_with_another_number_of_processes(
    pool: ProcessPoolExecutor, alone: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    for step in (0, 1):  # as one process left it, and was killed
        name = f"step-{step:04d}.safetensors"
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / name).write_bytes((alone[0] / "run" / name).read_bytes())
    in_ranks(pool, 2, resumed, tmp_path)
    assert checksum(tmp_path / "0.safetensors") == checksum(tmp_path / "1.safetensors")
    run = sp.PruneRun.load(tmp_path / "run")
    assert run.steps == 3
    assert run.mask == sp.PruneRun.load(alone[0] / "run").mask


def sent(_: Path) -> None:
    def own(rank: int) -> dict[str, torch.Tensor]:
        return {
            "odd": torch.arange(3, dtype=torch.float32) / 7 + rank,
            "double": torch.tensor(0.1 + rank, dtype=torch.float64),
            "table": torch.full((2, 2), rank),
            "flags": torch.tensor([True, False, rank == 1]),
            "none": torch.zeros(0, 3),
        }

    for rank, part in enumerate(distributed.gathered(own(distributed.rank()))):
        assert all(torch.equal(tensor, own(rank)[name]) for name, tensor in part.items())
        assert all(tensor.dtype == own(rank)[name].dtype for name, tensor in part.items())


def test_tensors_arrive_as_they_were_sent(pool: ProcessPoolExecutor, tmp_path: Path) -> None:
    in_ranks(pool, 2, sent, tmp_path)
    sent(tmp_path)  # and with one process


@settings(max_examples=30)
@given(st.integers(0, 30), st.integers(1, 8))
def test_every_batch_is_dealt_once(count: int, world: int) -> None:
    batches = [Batch(*(torch.full((1, 2), n) for _ in range(3)), rows=()) for n in range(count)]
    dealt, digests = [], set()
    for rank in range(world):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(distributed, "rank", lambda rank=rank: rank)
            patch.setattr(distributed, "world_size", lambda: world)
            work = distributed.Together()
            dealt.append(list(work.dealt(batches)))
            digests.add(work.digest)
    assert sorted(number for own in dealt for number, _ in own) == list(range(count))
    assert all(batch is batches[number] for own in dealt for number, batch in own)
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
    assert len(digests) == 1


def a_model_and_texts(folder: Path) -> list[str]:
    """A tiny model and texts as files, and the options that name them; a corpus is two batches."""
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
    """With `--multi_gpu` though there is none: of `--cpu` accelerate starts one process, whatever the number."""
    prune = ["prune", *a_model_and_texts(tmp_path), "--spare-sinks", "--fraction", "0.1", "--steps", "1", "--out"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])  # by number: older accelerates wait for ever at port 0
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
