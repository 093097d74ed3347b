"""Compare sp_lens with plain transformers on every architecture.

`--families-table FILE` writes the documentation page from the results.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from factories import (
    HERE,
    KINDS,
    TINY,
    bridge_of,
    output_modules,
    plain_activations,
    random_mask,
    random_rows,
    tiny_bridge,
    tiny_hf,
    tiny_hooked,
    zero_rows,
)
from torch.nn.functional import cross_entropy

import sp_lens as sp
from families.architectures import FAMILIES, Family
from families.table import CHECKS, MEASURED
from sp_lens.data.batching import text_batches
from sp_lens.data.masked_lm import mask_tokens
from sp_lens.interventions import compaction
from sp_lens.interventions.ablation import folded
from sp_lens.models.fused_attention import fused_attention

pytestmark = pytest.mark.model

ROWS = random_rows(8)
PAGE = Path(__file__).parents[2] / "docs" / "pages" / "how-to" / "families.md"
# The padding token is also BOS and EOS, so that only the attention mask identifies padding.
PAD = 1

Measure = Callable[[str, float], None]

METRICS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "freq": lambda z: (z > 0).double().mean(0),
    "abs": lambda z: z.abs().mean(0),
    "rms": lambda z: z.square().mean(0).sqrt(),
    "std": lambda z: (z - z.mean(0)).square().mean(0).sqrt(),
}


@dataclass(frozen=True)
class Case:
    """A hooked model and the plain transformers model with the same weights."""

    family: Family
    model: Any
    hf: Any

    @property
    def inputs(self) -> torch.Tensor:
        """Rows of tokens that are longer than a sliding window, or pixels."""
        generator = torch.Generator().manual_seed(1)
        if not self.family.reads_text:
            return torch.randn(3, 3, 16, 16, generator=generator)
        return torch.randint(2, 4096, (3, 20), generator=generator)

    @property
    def corpus(self) -> list[Any]:
        """Rows of tokens, or images with their classes."""
        if self.family.reads_text:
            return ROWS
        return [{"pixel_values": pixels, "labels": number} for number, pixels in enumerate(self.inputs)]

    @property
    def pruned(self) -> tuple[sp.NeuronMask, Any]:
        """A mask, and plain transformers with zeroed output weights of the masked neurons."""
        mask, hf = random_mask(self.model, 0.3), tiny_hf(self.family.name)
        zero_rows(self.family.name, hf, mask)
        return mask, hf


def logits(model: Any, inputs: torch.Tensor, **options: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        output = model(inputs, **options)
    return output if isinstance(output, torch.Tensor) else output.logits


def largest(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.double() - other.double()).abs().max())


def cases(*, causal: bool = False, text: bool = False, kinds: tuple[str, ...] = KINDS) -> pytest.MarkDecorator:
    """Parametrize a test by families, as each class that the installed TransformerLens has. Models are shared."""
    params = [
        pytest.param(
            f"{kind} {name}", marks=[_skip_before(family.since), *([pytest.mark.long] if family.is_long else [])]
        )
        for name, family in FAMILIES.items()
        for kind in kinds
        if (kind == "bridge" or name in TINY) and family.causal >= causal and family.reads_text >= text
    ]
    return pytest.mark.parametrize("case", params, indirect=True)


def skip_unless_applicable(case: "Case", check: str) -> None:
    if reason := case.family.skipped.get(check):
        pytest.skip(reason)


def _skip_before(since: str) -> pytest.MarkDecorator:
    needed = tuple(map(int, since.split(".")))
    return pytest.mark.skipif(needed > HERE, reason=f"TransformerLens has a bridge for it since {since}")


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    kind, name = request.param.split()
    return Case(FAMILIES[name], tiny_bridge(name) if kind == "bridge" else tiny_hooked(name), tiny_hf(name))


@pytest.fixture
def measure(case: Case, request: pytest.FixtureRequest) -> Measure:
    """Return a function that compares an error with the limit of its check and records it for the documentation."""
    measured = request.config.stash[MEASURED]

    def measure(check: str, error: float) -> None:
        assert error <= CHECKS[check].within, f"{check}: {error:.2g} is more than {CHECKS[check].within:g}"
        measured.keep(case.family.name, check, error, request.function.__name__)

    return measure


@cases()
def test_layout_and_logits_equal_those_of_transformers(case: Case, measure: Measure) -> None:
    layout, heads = sp.layout_of(case.model), case.hf.config.num_attention_heads
    expected = {}
    for name, module in output_modules(case.family.name, case.hf).items():
        transposed = isinstance(module, transformers.pytorch_utils.Conv1D)
        expected[name] = (module.weight.shape[0 if transposed else 1], heads if "attn" in name else 0)
    assert {group.name: (group.width, group.heads) for group in layout} == expected
    assert list(layout.names) == list(expected)
    measure("bridge", largest(logits(case.model, case.inputs), logits(case.hf, case.inputs)))


@cases()
def test_statistics_equal_those_of_transformers(case: Case, measure: Measure) -> None:
    stats = sp.collect(case.model, case.corpus, progress=False)
    inputs = ROWS if case.family.reads_text else list(case.inputs)
    plain = plain_activations(case.family.name, case.hf, inputs, positions=slice(case.family.leading, None))
    for metric, formula in METRICS.items():
        values = stats.importance(metric)  # type: ignore[arg-type]
        assert set(values) == set(plain)
        for name, z in plain.items():
            measure("stats", largest(values[name], formula(z)) / float(formula(z).max()))


@cases()
def test_evaluation_equals_that_of_transformers(case: Case, measure: Measure) -> None:
    """The loss refers to the next token, the masked tokens, or the class of an image."""
    nats: list[torch.Tensor] = []
    if case.family.causal:
        nats = [cross_entropy(logits(case.hf, row[None])[0, :-1], row[1:], reduction="none") for row in ROWS]
    elif case.family.reads_text:
        for batch in text_batches(case.model, ROWS, batch_tokens=4096):
            masked, predicted = mask_tokens(case.model, batch, seed=3)
            for row, tokens, is_predicted in zip(batch.rows, masked.tokens, predicted, strict=True):
                row_logits = logits(case.hf, tokens[: len(row.tokens)][None])[0]
                positions = is_predicted.nonzero().flatten()
                nats.append(cross_entropy(row_logits[positions], row.tokens[positions], reduction="none"))
    else:
        nats = [cross_entropy(logits(case.hf, case.inputs), torch.arange(len(case.inputs)), reduction="none")]
    result = sp.evaluate(case.model, case.corpus, seed=3, progress=False)
    assert result.tokens == len(torch.cat(nats))
    measure("evaluate", abs(result.loss - float(torch.cat(nats).double().mean())))


@cases()
def test_ablation_equals_zeroed_weights(case: Case, measure: Measure) -> None:
    mask, hf = case.pruned
    expected = logits(hf, case.inputs)
    assert largest(expected, logits(case.hf, case.inputs)) > 1e-2  # the mask has an effect
    with sp.ablate(case.model, mask):
        measure("hooks", largest(logits(case.model, case.inputs), expected))
    with case.model.hooks(fwd_hooks=sp.ablation_hooks(mask)):
        measure("hooks", largest(logits(case.model, case.inputs), expected))
    with folded(case.model, mask):
        measure("folded", largest(logits(case.model, case.inputs), expected))


@cases(kinds=("bridge",))
def test_fused_attention_equals_that_of_transformerlens(case: Case, measure: Measure) -> None:
    """The rows are padded on either side and longer than a sliding window, and hooks change z."""
    inputs = [(case.inputs, {})]
    if case.family.reads_text:
        inputs += [(ids, {"attention_mask": mask}) for ids, mask in map(padded, ("left", "right"))]
    names = list(sp.layout_of(case.model).names)
    for tokens, options in inputs:
        is_real = options.get("attention_mask", torch.ones(tokens.shape[:2])).bool()
        with torch.no_grad(), sp.ablate(case.model, random_mask(case.model, 0.3)):
            expected, unfused = case.model.run_with_cache(tokens, names_filter=names, **options)
            with fused_attention(case.model) as fused:
                actual, cache = case.model.run_with_cache(tokens, names_filter=names, **options)
        assert fused == case.family.fused
        if not fused:
            return
        compared = slice(None) if not options else is_real  # activations at padding may differ
        measure("fused", largest(actual[compared], expected[compared]))
        for name in names:
            z = unfused[name][compared]
            measure("fused", largest(cache[name][compared], z) / float(z.abs().max()))


@cases()
def test_the_exported_model_equals_ablation(case: Case, measure: Measure, tmp_path: Path) -> None:
    mask, hf = case.pruned
    folder = sp.export(case.model, mask, tmp_path / "pruned", hf_model=case.hf)
    reloaded = case.family.model.from_pretrained(folder).eval()
    assert not reloaded.config.output_attentions
    measure("export", largest(logits(reloaded, case.inputs), logits(hf, case.inputs)))
    assert set(reloaded.state_dict()) == set(case.hf.state_dict())
    again = sp.load_model(folder, device="cpu")
    assert sp.layout_of(again) == sp.layout_of(case.model)
    measure("export", largest(logits(again, case.inputs), logits(hf, case.inputs)))


@cases()
def test_compaction_equals_zeroed_weights(
    case: Case, measure: Measure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neurons are removed temporarily, in an exported folder, and permanently."""
    skip_unless_applicable(case, "compact")
    mask, hf = case.pruned
    expected, whole = logits(hf, case.inputs), sp.layout_of(case.model)
    weights = {name: value.clone() for name, value in case.model.state_dict().items()}
    monkeypatch.setattr(compaction, "MIN_REMOVED", 1)
    with compaction.pruned(case.model, mask):
        assert all(group.width < was.width for group, was in _mlps(case.model, whole))
        measure("compact", largest(logits(case.model, case.inputs), expected))
    folder = sp.export(case.model, mask, tmp_path / "pruned", compact=True, hf_model=case.hf)
    assert all(torch.equal(value, weights[name]) for name, value in case.model.state_dict().items())
    reloaded = case.family.model.from_pretrained(folder).eval()
    measure("compact", largest(logits(reloaded, case.inputs), expected))
    create = tiny_bridge if hasattr(case.model, "original_model") else tiny_hooked
    model = create(case.family.name)
    sp.compact(model, mask)
    assert all(group.width < was.width for group, was in _mlps(model, whole))
    measure("compact", largest(logits(model, case.inputs), expected))


def _mlps(model: Any, whole: sp.Layout) -> Iterator[tuple[sp.NeuronGroup, sp.NeuronGroup]]:
    return zip(sp.layout_of(model).select("mlp"), whole.select("mlp"), strict=True)


@cases(causal=True)
def test_heads_are_slices_of_attention(case: Case, measure: Measure) -> None:
    """The neurons of a query head are its attention pattern times the values of the key-value head that it shares."""
    skip_unless_applicable(case, "heads")
    tokens = case.inputs[:, :7]  # shorter than a sliding window, whose cache drops earlier tokens
    layout = sp.layout_of(case.model).select("attn")
    with torch.no_grad():
        plain = case.hf(tokens, output_attentions=True, use_cache=True)
        _, cache = case.model.run_with_cache(tokens, names_filter=list(layout.names))
    for group in layout:
        values = plain.past_key_values.layers[group.layer].values
        assert values.shape[1] == getattr(case.hf.config, "num_key_value_heads", group.heads)
        for head in range(group.heads):
            z = plain.attentions[group.layer][:, head] @ values[:, head * values.shape[1] // group.heads]
            measure("heads", largest(cache[group.name][:, :, head], z))


@cases(causal=True)
def test_heads_are_scored_and_ablated_as_slices(case: Case, measure: Measure) -> None:
    heads = sp.collect(case.model, ROWS, progress=False).importance("abs").heads("mean")
    plain = plain_activations(case.family.name, case.hf, ROWS)
    sliced = {name: plain[name].abs().mean(0).unflatten(0, (4, -1)).mean(1) for name in heads}
    strongest = max((float(values[head]), name, head) for name, values in sliced.items() for head in range(4))[1:]
    for name, values in sliced.items():
        measure("stats", largest(heads[name], values) / float(values.max()))

    mask, hf = heads.top(1 / 8), tiny_hf(case.family.name)  # one of eight
    with torch.no_grad():
        weight = output_modules(case.family.name, hf)[strongest[0]].weight
        rows = weight if case.family.name == "gpt2" else weight.T
        rows.unflatten(0, (4, -1))[strongest[1]] = 0
    with sp.ablate(case.model, mask):
        measure("hooks", largest(logits(case.model, case.inputs), logits(hf, case.inputs)))


def padded(side: str) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, ROWS)) + 3
    ids = torch.full((len(ROWS), longest), PAD)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(ROWS):
        positions = slice(longest - len(row), None) if side == "left" else slice(len(row))
        ids[number, positions], mask[number, positions] = row, 1
    return ids, mask


@cases(text=True)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_has_no_effect(case: Case, measure: Measure, side: str) -> None:
    ids, mask = padded(side)
    batch = {"input_ids": ids, "attention_mask": mask}
    values = sp.collect(case.model, [batch], progress=False).importance("abs")
    for name, z in plain_activations(case.family.name, case.hf, ROWS).items():
        measure("padding", largest(values[name], METRICS["abs"](z)) / float(METRICS["abs"](z).max()))
    loss = sp.evaluate(case.model, ROWS, progress=False).loss
    measure("padding", abs(sp.evaluate(case.model, [batch], progress=False).loss - loss))
    if not case.family.causal:
        return
    alone = [logits(case.hf, row[None])[0] for row in ROWS]
    nats = [cross_entropy(before[:-1], row[1:], reduction="sum") for before, row in zip(alone, ROWS, strict=True)]
    loss = float(sum(nats)) / sum(len(row) - 1 for row in ROWS)
    measure("padding", abs(sp.evaluate(case.model, [batch], progress=False).loss - loss))
    measure("padding", largest(logits(case.model, ids, attention_mask=mask)[mask.bool()], torch.cat(alone)))


@cases(kinds=("bridge",))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_half_precision_is_close_to_float32(case: Case, measure: Measure, dtype: torch.dtype) -> None:
    half = bridge_of(tiny_hf(case.family.name).to(dtype), f"tiny-{case.family.name}")
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}
    whole, rounded = (sp.collect(model, case.corpus, progress=False) for model in (case.model, half))
    check = str(dtype).removeprefix("torch.")
    for metric in ("abs", "rms", "std"):
        for name, values in whole.importance(metric).items():
            measure(check, largest(rounded.importance(metric)[name], values) / float(values.max()))
    loss, expected = (sp.evaluate(model, case.corpus, progress=False).loss for model in (half, case.model))
    measure(check, abs(loss - expected) / expected)
    mask = random_mask(half, 0.3)
    inputs = case.inputs if case.family.reads_text else case.inputs.to(dtype)
    with sp.ablate(half, mask):
        ablated = logits(half, inputs)
    with folded(half, mask):
        assert torch.equal(logits(half, inputs), ablated)  # a product with zero is exact in any dtype


def hooks_of(model: Any) -> int:
    """Return the number of hooks on all modules, counted in torch and in TransformerLens."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "fwd_hooks", "bwd_hooks")
    return sum(len(getattr(module, kind, ())) for module in model.modules() for kind in kinds)


@cases()
def test_the_model_is_restored(case: Case) -> None:
    """This holds after ablation, folding, collection and evaluation, and after an exception in each of them."""
    mask = random_mask(case.model, 0.5)
    hooks, before = hooks_of(case.model), logits(case.model, case.inputs)
    weights = {name: value.clone() for name, value in case.model.state_dict().items()}

    def broken() -> Iterator[Any]:
        yield from case.corpus * 90  # more than one batch, so that the model has run before the exception
        raise RuntimeError("inside")

    for context in (sp.ablate, folded):
        with context(case.model, mask):
            assert not torch.equal(logits(case.model, case.inputs), before)
        with pytest.raises(RuntimeError, match="inside"), context(case.model, mask):
            raise RuntimeError("inside")
    sp.collect(case.model, case.corpus, progress=False)
    with pytest.raises(RuntimeError, match="inside"):
        sp.collect(case.model, broken(), progress=False)
    assert hooks_of(case.model) == hooks
    assert torch.equal(logits(case.model, case.inputs), before)
    after = case.model.state_dict()
    assert after.keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in after.items())


@pytest.mark.xfail(
    strict=True, raises=ValueError, reason="TransformerLens drops a dimension when ln2 of a post-norm OPT is cached"
)
def test_all_activations_of_a_post_norm_opt_can_be_cached() -> None:
    """With `names_filter` the activations that sp_lens needs can be cached, as the tests above show."""
    tiny_bridge("opt-post-norm").run_with_cache(torch.arange(2, 9)[None])


def test_the_documentation_lists_these_families(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--families-table"):
        pytest.skip("the page is being written")
    lines = PAGE.read_text("utf-8").splitlines()
    names = [line.split("`")[1] for line in lines if line.startswith("| `")]
    # An older transformers does not have all of them.
    assert [name for name in names if name in FAMILIES] == [*FAMILIES, *FAMILIES]
