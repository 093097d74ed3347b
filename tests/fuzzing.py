"""Provide one valid result of every kind that can be loaded, and seeded random mutations of its file."""

import copy
import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open

import sp_lens as sp
from sp_lens.evaluation.document_hits import DocumentHits, StepDocuments
from sp_lens.evaluation.evaluate import DocumentSums
from sp_lens.experiments.result import Finding, Reproduction
from sp_lens.statistics.histogram import Histogram
from sp_lens.statistics.moments import Moments
from sp_lens.statistics.top_examples import Example
from sp_lens.storage.serialization import _digest
from sp_lens.unlearning import UnlearningRun

LAYOUT = sp.Layout((sp.NeuronGroup("attn", 0, 4, heads=2), sp.NeuronGroup("mlp", 0, 6)))
MLP = LAYOUT.names[1]
SECONDS = 20  # time limit for loading a file

# Replacements for values in JSON.
STRANGE: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 10**18, 2**63, 10**400, -0.5, 1.5, 1e308, float("inf"), float("nan"), "", "0",
    "mlp", "attn", "../../etc/passwd", "/dev/zero", "<script>alert(1)</script>", "\x00\u202e", "\ud800", "x" * 5000,
    [], {}, [[]], [None], {"": None}, [0] * 50, MLP, [[[[[[[[0]]]]]]]],
)  # fmt: skip


def _stats() -> sp.ActivationStats:
    def of(seed: int) -> dict[str, Moments]:
        generator, moments = torch.Generator().manual_seed(seed), {}
        for group in LAYOUT:
            x = torch.randn(9, group.width, generator=generator)
            histogram = Histogram.from_activations(x, torch.linspace(-2, 2, 5), torch.arange(group.width))
            moments[group.name] = Moments.from_activations(x).with_histogram(histogram)
        return moments

    about = {"model": "m", "corpora": [{"source": "code", "tokens": 9}]}
    blocks = [sp.ActivationStats(LAYOUT, of(seed), {"model": "m"}) for seed in range(3)]
    whole = blocks[0].merge(blocks[1]).merge(blocks[2])
    return sp.ActivationStats(LAYOUT, whole.moments, about, tuple(blocks))


def results() -> dict[str, Any]:
    """Return one valid result of each kind that can be saved, by the name of its class."""
    stats = _stats()
    values = sp.score(stats, stats)
    corpora = {side: {"source": side, "tokens": 9, "documents": 2, "fingerprint": "f"} for side in ("forget", "retain")}
    settings = {
        "model": "m", "weights": "w", "site": "both", "unit": "neuron", "metric": "abs", "fraction": 0.1,
        "recollect": True, "eps": {"mlp": 1e-3, "attn": 1e-4}, "seed": None, "protected": None, "corpora": corpora,
    }  # fmt: skip
    sides = {"top1": 0.5, "top10": 0.75, "top1_skip50": float("nan"), "loss": 1.5, "perplexity": 4.5, "tokens": 9}
    numbers = {f"{side}_{key}": value for side in corpora for key, value in sides.items()}
    records = [{"step": step, "pruned": step, "share": step / 10, **numbers} for step in range(3)]
    pruned_at = {group.name: torch.arange(group.width, dtype=torch.int32) % 3 for group in LAYOUT}
    hits = {f"{side}_{what}": torch.arange(1.0, 7) for side in corpora for what in ("counts", "before", "after")}
    hits |= {f"{side}_nats_{what}": torch.rand(6) for side in corpora for what in ("before", "after")}
    of_step = DocumentSums(torch.full((2,), 9.0), torch.full((2,), 4.0), torch.rand(2))
    documents: list[StepDocuments] = [{"forget": of_step, "retain": of_step} for _ in records]
    example = Example(("a", "<b>", "\n"), (0.5, 2.0, float("nan")), 1, 0, 7, "code/x.py")
    scale = {"offline": True, "spare_sinks": False, "name": "small", "tokens": 9, "images": 9, "steps": 2, "share": 0.5}
    all_results = (
        stats,
        values,
        values.heads(),
        values.top(0.5, site="mlp"),
        sp.PruneRun(LAYOUT, pruned_at, records, settings, documents),
        UnlearningRun({"weight": torch.rand(2, 3)}, records, {**settings, "method": "fine_tune"}, documents),
        DocumentHits(hits),
        sp.TopExamples(LAYOUT, {MLP: {3: (example, example), 0: ()}}, {"model": "m", "corpora": []}),
        sp.Uncertainty(values, values, values, values),
        sp.SpecialisationTest(values, values, values, 0.05, 1e-4),
        sp.specialisation({"code": stats, "prose": stats}),
        sp.Evaluation(0.5, 0.75, float("nan"), 1.5, 4.5, 100),
        sp.unlearning.MembershipInference(0.5, 0.25, 0.75, 0.9, 10, 20, 30),
        sp.unlearning.Relearning(
            [{"update": 0, "forget_top1": 0.1}, {"update": 5, "forget_top1": 0.4}], {"model": "m"}
        ),
        sp.Toxicity("It", ("is.", "was."), (0.1, 0.9), {"classifier": "c", "accuracy": 0.9}, {"model": "m"}),
        Reproduction(
            "figure-2", "m", 1000, scale, {"code": "headers"}, (Finding("a claim", "1.0 [0.5, 1.5]", True),),
            ({"pair": "code", "points": 1.5},), ("figure-2.png", "figure-2.csv"), 1.5, {"sp_lens": "0", "torch": "2"},
        ),
    )  # fmt: skip
    return {type(result).__name__: result for result in all_results}


def use(result: Any) -> None:
    """Call the methods and figures that a user would apply to a loaded result. They may raise SpLensError only."""
    actions: list[Callable[[], Any]] = [lambda: repr(result)]
    if not isinstance(result, sp.NeuronMask):
        methods = ("frame", "counts", "overlap", "sinks", "importance", "standard_error", "draws", "interval", "heads")
        actions += [getattr(result, name) for name in methods if hasattr(type(result), name)]
    for name in ("history", "best_step", "selectivity", "mask", "mean_interval", "share_interval", "accuracy"):
        if isinstance(getattr(type(result), name, None), property):
            actions.append(partial(getattr, result, name))
    if isinstance(result, sp.PruneRun | UnlearningRun):
        actions.append(partial(sp.plots.tradeoff, result))
    if isinstance(result, sp.NeuronValues):
        actions.append(partial(sp.plots.score_map, result))
    for action in actions:
        with suppress(sp.SpLensError):
            action()


def sealed(text: str, tensors: dict[str, torch.Tensor]) -> bytes:
    """Return a safetensors file with any header and a matching checksum, which anyone can compute."""
    return safetensors.torch.save(tensors, metadata={"sp_lens": text, "sha256": _digest(text, tensors)})


def unsealed(path: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    """Return the header and the tensors of a saved file, or the content of a JSON file and no tensors."""
    if path.read_bytes()[:1] == b"{":
        return json.loads(path.read_text()), {}
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["sp_lens"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def mutations(path: Path, seed: int) -> Iterator[bytes]:
    """Yield endless mutations of a file: damaged bytes, or changed content with a matching checksum."""
    random, whole = Random(seed), path.read_bytes()
    header, tensors = unsealed(path)
    while True:
        if random.random() < 0.3:
            yield _damaged(whole, random)
            continue
        new_header, new_tensors = copy.deepcopy(header), dict(tensors)
        for _ in range(random.choice((1, 1, 2, 3))):
            if new_tensors and random.random() < 0.5:
                _change_tensor(new_tensors, random)
            else:
                new_header = _changed(new_header, random)
        text = json.dumps(new_header)
        yield sealed(text, new_tensors) if tensors else text.encode()


def _damaged(whole: bytes, random: Random) -> bytes:
    index, length = random.randrange(len(whole)), random.choice((1, 2, 8, 300))
    noise = random.randbytes(length)
    return random.choice(
        (
            whole[:index],
            whole[:index] + bytes([whole[index] ^ 1 << random.randrange(8)]) + whole[index + 1 :],
            whole[:index] + noise + whole[index:],
            whole[:index] + whole[index + length :],
            whole[:index] + noise + whole[index + length :],
            whole[:index] + whole[random.randrange(len(whole)) :],
            random.choice((b"\xff" * 8, b"\x00" * 8, (2**40).to_bytes(8, "little"))) + whole[8:],
        )
    )


def _items(value: Any) -> list[tuple[Any, Any]]:
    """Return all nested items of a JSON value as pairs of a container and a key or index."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [(value, key) for key in keys] + [item for key in keys for item in _items(value[key])]


def _changed(value: Any, random: Random) -> Any:
    items = _items(value)
    if not items or random.random() < 0.02:
        return copy.deepcopy(random.choice(STRANGE))
    container, key = random.choice(items)
    match random.randrange(6):
        case 0:
            del container[key]
        case 1 if isinstance(container, dict):
            container[random.choice(("", "kind ", MLP, "blocks.9.mlp.hook_post", "label"))] = container.pop(key)
        case 2 if isinstance(container, list):
            container.insert(key, copy.deepcopy(container[key]))
        case 3:
            other, other_key = random.choice(items)
            container[key] = copy.deepcopy(other[other_key])
        case _:
            container[key] = copy.deepcopy(random.choice(STRANGE))
    return value


def _change_tensor(tensors: dict[str, torch.Tensor], random: Random) -> None:
    name = random.choice(list(tensors))
    tensor = tensors[name]
    number = random.choice((-1, 0, 1, 3, 2**31 - 1, float("nan"), float("inf"), -0.5))
    dtypes = (torch.bool, torch.uint8, torch.int64, torch.float16, torch.float64, torch.complex64, torch.float8_e5m2)
    changes: tuple[Callable[[], torch.Tensor], ...] = (
        lambda: tensor[:0],
        lambda: tensor[:-1],
        lambda: torch.cat([tensor, tensor]),
        lambda: tensor[None],
        lambda: tensor.flatten()[:1].reshape(()),
        lambda: tensor.to(random.choice(dtypes)),
        lambda: torch.full_like(tensor.double(), number),
        lambda: -tensor.double(),
    )
    match random.randrange(5):
        case 0:
            del tensors[name]
        case 1:
            tensors[random.choice(("", "a/b", "../x", f"{MLP}/mean", MLP))] = tensors.pop(name)
        case _ if tensor.ndim and tensor.numel():
            tensors[name] = random.choice(changes)().contiguous().clone()
        case _:
            tensors[name] = torch.zeros(3)


@contextmanager
def limited(seconds: float = SECONDS) -> Iterator[None]:
    """Context manager that raises TimeoutError after a number of seconds."""

    def late(_: int, __: FrameType | None) -> None:
        raise TimeoutError(f"it took more than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
