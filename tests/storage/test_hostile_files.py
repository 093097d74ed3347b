"""Test that damaged and malicious files are either rejected with SpLensError or read correctly.

The environment variable SP_LENS_FUZZ sets the number of mutations (default 960, SP_LENS_FUZZ=100000 for a long run).
"""

import itertools
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from fuzzing import LAYOUT, MLP, STRANGE, limited, mutations, results, sealed, unsealed, use
from hypothesis import given
from hypothesis import strategies as st

import sp_lens as sp
from sp_lens.errors import DamagedFile
from sp_lens.experiments.registry import EXPERIMENTS
from sp_lens.experiments.result import Reproduction
from sp_lens.experiments.results_page import write_page
from sp_lens.experiments.setting import path_component
from sp_lens.models.loading import weights_fingerprint
from sp_lens.storage.schema import Int64, mapping_with, validate
from sp_lens.storage.serialization import read_json, write_bytes
from sp_lens.unlearning import UnlearningRun
from sp_lens.unlearning.weights import weights_of

RESULTS = results()
MUTATIONS = -(-int(os.environ.get("SP_LENS_FUZZ", "960")) // len(RESULTS))
each_kind = pytest.mark.parametrize("kind", RESULTS)


@pytest.fixture(scope="module", autouse=True)
def _without_shape_checks() -> Iterator[None]:
    """Test the validation by the library itself: the shape checks of `make test` would reject some files before it."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "result"


@each_kind
def test_a_mutated_file_is_rejected_or_can_be_used(kind: str, path: Path) -> None:
    """The mutations are the same in every run. The file that causes a failure is kept, and the message names it."""
    result, mutated = RESULTS[kind], path.with_name("mutated")
    result.save(path)
    use(type(result).load(path))
    rejected = 0
    for number, data in enumerate(itertools.islice(mutations(path, seed=0), MUTATIONS)):
        mutated.write_bytes(data)
        try:
            with limited():
                use(type(result).load(mutated))
        except sp.SpLensError:
            rejected += 1
        except Exception as error:
            raise AssertionError(f"mutation {number} of a {kind} is in {mutated}") from error
    assert rejected > MUTATIONS / 4


Change = Callable[[Any, dict[str, torch.Tensor]], Any]


def put(*keys: Any, value: Any) -> Change:
    """Set a value in the header."""

    def change(header: Any, _: dict[str, torch.Tensor]) -> None:
        for key in keys[:-1]:
            header = header[key]
        header[keys[-1]] = value

    return change


def swap(name: str, make: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    """Replace a tensor."""
    return lambda _, tensors: tensors.update({name: make(tensors[name])})


def drop(name: str) -> Change:
    return lambda _, tensors: tensors.pop(name)


INVALID: list[tuple[str, Change, str]] = [
    ("NeuronValues", put("layout", 1, "width", value=10**18), r"expected a tensor of shape \(1000000000000000000,\)"),
    ("NeuronValues", put("layout", 1, "width", value=10**400), r"'width'\] is 1\d*\.\.\.\d*: expected less than"),
    ("NeuronValues", put("layout", 1, "heads", value=-1), "heads is -1"),
    ("NeuronValues", put("layout", 0, "heads", value=0), "heads is 0 at site 'attn'"),
    ("NeuronValues", put("about", "model", value="\ud800"), "surrogates not allowed"),
    ("NeuronValues", put("layout", 0, "heads", value=3), "4 neurons cannot be divided evenly among 3 heads"),
    ("NeuronValues", put("layout", 0, "site", value="ffn"), r"'site'\] is 'ffn': expected 'mlp' or 'attn'"),
    ("NeuronValues", put("layout", 0, "layer", value=-1), "layer is -1"),
    ("NeuronValues", put("layout", value=[]), "has the hook points"),
    ("NeuronValues", put("layout", value=[{"site": "mlp", "layer": 0, "width": 6, "heads": 0}] * 2), "each once"),
    ("NeuronValues", put("layout", 0, "evil", value=1), "'evil'"),
    ("NeuronValues", put("about", "corpora", value=5), r"'corpora'\] is 5: expected a valid"),
    ("NeuronValues", swap(MLP, lambda values: values[:3]), r"got \(3,\)"),
    ("NeuronValues", swap(MLP, lambda values: values > 0), "floating-point numbers"),
    ("NeuronValues", swap(MLP, lambda values: values.to(torch.float8_e5m2)), "float8_e5m2"),
    ("NeuronValues", swap(MLP, lambda values: values.to(torch.complex64)), "complex64"),
    ("NeuronValues", drop(MLP), "one tensor for each"),
    ("NeuronMask", swap(MLP, lambda mask: mask.int()), "booleans"),
    ("ActivationStats", put("count", value=-9), "count is -9"),
    ("ActivationStats", put("count", value=True), "'count'] is True"),
    ("ActivationStats", put("folds", value=[9, 9, 9, 9]), "there are 4 folds"),
    ("ActivationStats", swap(f"{MLP}/positive", lambda counts: counts + 100), "more tokens than were counted"),
    ("ActivationStats", swap(f"{MLP}/squares", lambda squares: -squares - 1), "squares has a value that is negative"),
    ("ActivationStats", swap(f"{MLP}/mean", lambda mean: mean / 0), "mean has a value that is negative or no number"),
    ("ActivationStats", put("fold_documents", value=[1]), "numbers of documents of 1 folds: expected 3"),
    ("ActivationStats", swap(f"{MLP}/folds.mean", lambda mean: mean[:2]), "3 folds"),
    ("ActivationStats", swap(f"{MLP}/histogram.edges", lambda edges: edges.flip(0)), "that ascend"),
    ("ActivationStats", swap(f"{MLP}/histogram.neurons", lambda neurons: neurons + 1), "expected each once, of 6"),
    ("ActivationStats", swap(f"{MLP}/histogram.counts", lambda counts: counts - 100), "negative counts"),
    ("ActivationStats", drop(f"{MLP}/max"), "moments need"),
    ("PruneRun", put("records", 1, value="a step"), r"records'\]\[1\] is 'a step': expected an object"),
    ("PruneRun", put("records", 1, "step", value=7), r"expected 0, 1, 2, \.\.\. in this order"),
    ("PruneRun", put("records", 1, "forget_top1", value=float("nan")), "forget_top1 is nan"),
    ("PruneRun", put("records", 1, "retain_loss", value="1.5"), "retain_loss"),
    ("PruneRun", put("records", value=[]), "the 0 records have the steps"),
    ("PruneRun", put("settings", "corpora", "forget", value=[]), "the corpus 'forget'"),
    ("PruneRun", swap(MLP, lambda at: at + 7), "are 7 to 9: expected 0 to 2"),
    ("PruneRun", swap(MLP, lambda at: -at), "are -2 to 0: expected 0 to 2"),
    ("PruneRun", swap("documents/forget/hits", lambda hits: hits + 9), "impossible number of predictions"),
    ("PruneRun", swap("documents/forget/hits", lambda hits: hits[:2]), "expected one row per step"),
    ("PruneRun", drop("documents/retain/nats"), "it has no 'documents/retain/nats'"),
    ("UnlearningRun", put("settings", "method", value=None), "'method'] is None"),
    ("DocumentHits", swap("forget_before", lambda hits: hits * 2), "more correct predictions than there are"),
    ("DocumentHits", swap("retain_counts", lambda counts: counts * 0), "expected a number above 0"),
    ("DocumentHits", drop("retain_after"), "it has no 'retain_after'"),
    ("TopExamples", put("contexts", MLP, "3", 0, 1, value=3), "the peak is token 3 of 3"),
    ("TopExamples", put("contexts", MLP, "6", value=[]), "no neuron '6'"),
    ("TopExamples", put("contexts", "blocks.9.mlp.hook_post", value={"0": []}), "no neurons at 'blocks.9"),
    ("TopExamples", swap("activations", lambda z: z[1:]), "6 tokens and"),
    ("Uncertainty", drop(f"low/{MLP}"), "it has no 'low/"),
    ("SpecialisationTest", put("rate", value=5), "rate is 5"),
    ("Specialisation", put("eps", "mlp", value=-1), "expected numbers of 0 or more"),
    ("Specialisation", put("about", value={}), "number of corpora is 0"),
    ("Evaluation", put("tokens", value=-1), "tokens is -1"),
    ("Evaluation", put("top1", value="0.5"), "'top1'] is '0.5': expected a valid number"),
    ("MembershipInference", put("share", value=2), "share is 2"),
    ("Relearning", put("records", value=[]), "no records"),
    ("Toxicity", put("scores", value=[0.5]), "1 scores for 2 texts"),
    ("Reproduction", put("files", 0, value="../../etc/passwd"), "'../../etc/passwd'"),
    ("Reproduction", put("files", 0, value="/etc/passwd"), "'/etc/passwd'"),
    ("Reproduction", put("files", 0, value=".."), r"'\.\.'"),
    ("Reproduction", put("files", 0, value="a.png) [x](javascript:alert(1)"), "expected names of files"),
    ("Reproduction", put("files", 0, value="http://example.org/a.png"), "expected names of files"),
    ("Reproduction", put("files", 0, value="a.png\n"), "expected names of files"),
    ("Reproduction", put("scale", "tokens", value="many"), "'tokens'] is 'many'"),
    ("Reproduction", put("findings", 0, "holds", value=1), "'holds'] is 1: expected a valid boolean"),
]


@pytest.mark.parametrize(
    ("kind", "change", "message"), INVALID, ids=[f"{kind}: {message}" for kind, _, message in INVALID]
)
def test_invalid_content_with_a_valid_checksum_is_rejected(kind: str, change: Change, message: str, path: Path) -> None:
    """Anyone who changes a file can compute the new checksum."""
    result = RESULTS[kind]
    result.save(path)
    header, tensors = unsealed(path)
    change(header, tensors)
    text = json.dumps(header)
    path.write_bytes(sealed(text, tensors) if tensors else text.encode())
    with limited(2), pytest.raises(DamagedFile, match=message) as error:
        type(result).load(path)
    assert str(path) in str(error.value)
    assert f" {kind} saved by sp_lens" in str(error.value)
    assert "create the file again, or pass another one" in str(error.value)
    assert error.value.__cause__ is not None


@each_kind
def test_unusual_json_is_rejected(kind: str, path: Path) -> None:
    result = RESULTS[kind]
    result.save(path)
    header, tensors = unsealed(path)
    whole = json.dumps(header)
    deep = f'{whole[:-1]}, "deep": {"[" * 100_000}{"]" * 100_000}}}'
    for text in (deep, "[" * 100_000, f"[{whole}]", "", "null", whole.replace(f'"{kind}"', '["a"]'), "9" * 10_000):
        path.write_bytes(sealed(text, tensors) if tensors else text.encode())
        with limited(5), pytest.raises(sp.SpLensError, match="result"):
            type(result).load(path)
    if not tensors:
        for data in (whole.encode("utf-16"), whole.encode() + b"\xff", whole.encode()[:-1] + b', "a": "\xed\xa0\x80"}'):
            path.write_bytes(data)
            with pytest.raises(sp.SpLensError, match="result"):
                type(result).load(path)


def test_the_last_of_duplicate_keys_counts(path: Path) -> None:
    RESULTS["Evaluation"].save(path)
    path.write_text(path.read_text().replace('"tokens": 100', '"tokens": 7, "tokens": 100'))
    assert sp.Evaluation.load(path).tokens == 100


@each_kind
def test_pipes_and_devices_are_not_read(kind: str, path: Path) -> None:
    os.mkfifo(path)
    load = type(RESULTS[kind]).load
    for read in (partial(load, path), partial(load, "/dev/zero"), partial(read_json, path)):
        with limited(2), pytest.raises(sp.SpLensError, match=r"there is no file|no such file"):
            read()


def test_steps_of_a_run_that_are_not_regular_files_are_rejected(tmp_path: Path) -> None:
    RESULTS["PruneRun"].save(tmp_path / "step-0002.safetensors")
    (tmp_path / "step-evil.safetensors").write_bytes(b"")  # not the name of a step
    assert sp.PruneRun.load(tmp_path).steps == 2
    os.mkfifo(tmp_path / "step-0003.safetensors")
    with limited(2), pytest.raises(sp.SpLensError, match=r"step-0003\.safetensors"):
        sp.PruneRun.load(tmp_path)
    (tmp_path / "step-0004.safetensors").mkdir()
    with pytest.raises(sp.SpLensError, match=r"step-0004\.safetensors"):
        sp.PruneRun.load(tmp_path)


def test_writing_replaces_a_link_and_not_its_target(tmp_path: Path) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "run"
    outside.write_bytes(b"precious")
    inside.mkdir()
    for name in ("history.csv", "step-0000.safetensors", "mask.safetensors"):
        (inside / name).symlink_to(outside)
        write_bytes(inside / name, b"ours")
        assert (inside / name).read_bytes() == b"ours"
    assert outside.read_bytes() == b"precious"


@given(st.text())
def test_path_components_contain_no_path_separator(name: str) -> None:
    assert not {"/", "\\", "\x00", "\n"} & set(path_component(name))


def test_weights_that_the_model_does_not_have_are_rejected(demo: Any) -> None:
    """A file can state the fingerprint of a model and contain weights of another one."""
    fingerprint = weights_fingerprint(demo)
    name = next(iter(weights_of(demo)))
    for weights in ({"no.such": torch.zeros(2)}, {name: torch.zeros(1)}):
        run = UnlearningRun(weights, [], {"model": "demo", "weights": fingerprint, "method": "fine_tune"})
        with pytest.raises(sp.SpLensError, match="the model has no weight"), run.applied(demo):
            pass
    assert weights_fingerprint(demo) == fingerprint


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(STRANGE),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from("abc"), inner, max_size=4),
)
TYPES: list[Any] = [
    Int64, str, bool, str | None, Sequence[Int64], tuple[str, ...], tuple[Int64, str], sp.NeuronGroup,
    tuple[sp.NeuronGroup, ...], mapping_with(a=Int64, b=str | None), Mapping[str, Sequence[Any]],
]  # fmt: skip
FLOAT_TYPES: list[Any] = [float, Mapping[str, float], list[mapping_with(a=float)]]


def validated(value: Any, expected: Any) -> Any:
    """Return the validated value, or the value itself if it is rejected. The message must be short in any case."""
    message = "it is valid"
    try:
        value = validate(value, expected, "it")
    except sp.SpLensError as error:
        message = str(error)
    assert message.startswith("it")
    assert len(message) < 400
    return value


@given(value=JSON, expected=st.sampled_from(TYPES))
def test_validation_does_not_change_a_value(value: Any, expected: Any) -> None:
    assert json.dumps(validated(value, expected)) == json.dumps(value)


@given(value=JSON, expected=st.sampled_from(FLOAT_TYPES))
def test_validation_converts_only_integers_to_floats(value: Any, expected: Any) -> None:
    result = validated(value, expected)
    in_floats = [json.loads(json.dumps(each), parse_int=float) for each in (result, value)]
    assert json.dumps(in_floats[0]) == json.dumps(in_floats[1])


def test_validation_returns_the_expected_types() -> None:
    assert validate(LAYOUT.to_json(), tuple[sp.NeuronGroup, ...], "layout") == LAYOUT.groups
    assert validate([1, "a"], tuple[Int64, str], "pair") == (1, "a")
    assert math.isnan(validate(float("nan"), float, "loss"))
    assert validate({"a": 1, "c": []}, mapping_with(a=float, b=str | None), "about") == {"a": 1, "c": []}


@pytest.mark.parametrize(
    ("value", "expected", "message"),
    [
        (True, Int64, "it is True: expected a valid integer"),
        (True, float, "it is True: expected a valid number"),
        (2**63, Int64, "it is 9223372036854775808: expected less than"),
        (-(2**63), Int64, "expected greater than"),
        (1.0, Int64, "it is 1.0: expected a valid integer"),
        ("1", Int64, "it is '1': expected a valid integer"),
        ("a\udc00", str, "surrogates not allowed"),
        ({"\udc00": 1}, Mapping[str, Int64], "surrogates not allowed"),
        ([1], tuple[Int64, str], r"it\[1\] is missing"),
        ([1, "a", 2], tuple[Int64, str], "at most 2 items"),
        ({"a": 1}, mapping_with(b=Int64), r"it\['b'\] is missing"),
        ({"site": "mlp", "layer": 0}, sp.NeuronGroup, r"it\['width'\] is missing"),
        ({"site": "mlp", "layer": 0, "width": 1, "evil": 1}, sp.NeuronGroup, r"it\['evil'\] is 1: Unexpected"),
        ([{"site": "mlp", "layer": "0", "width": 1}], tuple[sp.NeuronGroup, ...], r"it\[0\]\['layer'\] is '0'"),
    ],
)
def test_invalid_values_are_rejected_with_their_location(value: Any, expected: Any, message: str) -> None:
    with pytest.raises(sp.SpLensError, match=message):
        validate(value, expected, "it")


def test_the_results_page_escapes_markup_in_results(tmp_path: Path) -> None:
    evil = (
        "<img src=x onerror=alert(1)> [click](javascript:alert(1)) ![x](http://x/y.png) `a` | b\n\n# c\n[d]: http://x"
    )
    folder = tmp_path / "figure-2" / "a) [b](javascript:alert(1)"
    RESULTS["Reproduction"].save(folder / "result.json")
    values = json.loads((folder / "result.json").read_text())
    values |= {"model": evil, "corpora": {evil: evil}, "table": [{evil: evil, "points": 1.5}]}
    values["findings"] = [{"claim": evil, "measured": evil, "holds": True}]
    values["versions"] = dict.fromkeys(values["versions"], evil)
    values["scale"]["name"] = evil
    write_bytes(folder / "result.json", json.dumps(values).encode())
    assert Reproduction.load(folder / "result.json").model == evil
    page = write_page(tmp_path, tmp_path / "page.md")
    markdown = (
        pytest.importorskip("markdown_it", reason="needs markdown-it-py").MarkdownIt("commonmark").enable("table")
    )
    html = re.sub(r"<code>.*?</code>", "", markdown.render(page))
    assert "onerror" in html
    assert "<img src=x" not in html
    assert "<h1>c" not in html
    assert set(re.findall(r'(?:href|src)="([^"]*)"', html)) == {
        *(f"#{name}" for name in EXPERIMENTS),
        "figure-2/a%29%20%5Bb%5D%28javascript%3Aalert%281%29/figure-2.png",
    }
