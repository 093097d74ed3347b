"""Compare top examples with a brute-force search over the activations of `run_with_cache`, row by row."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import Tiny, count_hooks, padded, random_mask, random_rows
from hypothesis import given, settings
from hypothesis import strategies as st

import sp_lens as sp
from sp_lens.neurons.layout import Layout, NeuronGroup
from sp_lens.statistics.contexts import decode_jointly, token_text

ATTN, MLP = "blocks.0.attn.hook_z", "blocks.1.mlp.hook_post"


def top(model: Any, corpus: Any, neurons: sp.NeuronMask, **options: Any) -> sp.TopExamples:
    return sp.top_examples(model, corpus, neurons, progress=False, **options)


def chosen(model: Any) -> sp.NeuronMask:
    return sp.NeuronMask.from_neurons(sp.layout_of(model), {ATTN: [0, 9, 31], MLP: [3, 40]})


def whole_rows(model: Any, rows: list[torch.Tensor], names: list[str]) -> dict[str, list[torch.Tensor]]:
    """Return the activations [pos neuron] of each row, run alone without padding, by hook name."""
    with torch.no_grad():
        caches = [model.run_with_cache(row[None], names_filter=names)[1] for row in rows]
    return {name: [cache[name][0].flatten(1) for cache in caches] for name in names}


def check(
    model: Any, rows: list[torch.Tensor], found: sp.TopExamples, *, k: int, context: int, first: int, atol: float = 1e-5
) -> None:
    """Compare `found` with all rows sorted by their largest |z|. `first` is the first position that counts."""
    activations = whole_rows(model, rows, list(found))
    for name, by_neuron in found.items():
        z = activations[name]
        for neuron, examples in by_neuron.items():
            strengths = sorted((float(row[first:, neuron].abs().max()) for row in z if len(row) > first), reverse=True)
            assert [abs(example.value) for example in examples] == pytest.approx(strengths[:k], rel=1e-4, abs=atol)
            assert len({example.row for example in examples}) == len(examples)
            for example in examples:
                row, activation = rows[example.row].tolist(), z[example.row][:, neuron]
                assert abs(float(activation[example.position])) == pytest.approx(
                    float(activation[first:].abs().max()), rel=1e-4, abs=atol
                )
                low, high = max(0, example.position - context), example.position + context + 1
                assert example.peak == example.position - low
                assert example.tokens == tuple(token_text(model.tokenizer, token) for token in row[low:high])
                expected = activation.clone()
                expected[:first] = torch.nan
                np.testing.assert_allclose(example.activations, expected[low:high], rtol=1e-4, atol=atol)


@pytest.mark.model
@pytest.mark.parametrize("batch_tokens", [1, 60, 4096])
def test_examples_match_a_brute_force_search(tiny: Tiny, batch_tokens: int) -> None:
    rows = random_rows(14)
    before = count_hooks(tiny.model)
    found = top(tiny.model, rows, chosen(tiny.model), k=4, context=3, batch_tokens=batch_tokens)
    assert {name: list(by_neuron) for name, by_neuron in found.items()} == {ATTN: [0, 9, 31], MLP: [3, 40]}
    assert count_hooks(tiny.model) == before
    check(tiny.model, rows, found, k=4, context=3, first=1)


@pytest.mark.model
@settings(max_examples=12, deadline=None)
@given(batch_tokens=st.integers(1, 300), k=st.integers(1, 20), context=st.integers(0, 30), rows=st.integers(1, 20))
def test_examples_do_not_depend_on_batches(opt: Any, batch_tokens: int, k: int, context: int, rows: int) -> None:
    corpus = random_rows(rows, seed=rows)
    found = top(opt, corpus, chosen(opt), k=k, context=context, batch_tokens=batch_tokens)
    check(opt, corpus, found, k=k, context=context, first=1)


@pytest.mark.model
def test_examples_of_the_bundled_model_on_code_match_a_brute_force_search(demo: Any) -> None:
    corpus = sp.load_corpus("code", demo, tokens=3000, offline=True)
    mask = random_mask(demo, 0.003)
    found = top(demo, corpus, mask)
    rows = [torch.tensor(row) for row in corpus["input_ids"]]
    check(demo, rows, found, k=10, context=15, first=2, atol=1e-4)  # neither BOS nor the token after it counts
    assert sum(map(len, found.values())) == mask.count()
    for by_neuron in found.values():
        for example in (example for examples in by_neuron.values() for example in examples):
            assert example.document == corpus["document"][example.row]
    # The strongest activation of a neuron is the extreme that `collect` records.
    stats = sp.collect(demo, corpus, progress=False)
    for name, by_neuron in found.items():
        for neuron, examples in by_neuron.items():
            extreme = max(abs(float(stats[name].min[neuron])), abs(float(stats[name].max[neuron])))
            assert abs(examples[0].value) == pytest.approx(extreme, rel=1e-6)


@pytest.mark.model
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_special_tokens_are_not_peaks(tiny: Tiny, side: str) -> None:
    """The padding id is also BOS and EOS. The examples are those of the rows without padding."""
    rows = [torch.cat([torch.tensor([1]), row]) for row in random_rows(6)]
    longest = max(map(len, rows))
    found = top(tiny.model, [padded(rows, side, pad_id=1)], chosen(tiny.model), k=6, context=longest)
    check(tiny.model, rows, found, k=6, context=longest, first=2)
    assert all(example.tokens[0] == "</s>" and np.isnan(example.activations[:2]).all() for example in found[MLP][3])


@pytest.mark.model
def test_equal_rows_are_in_the_order_of_the_corpus(opt: Any) -> None:
    row = random_rows(1)[0]
    found = top(
        opt, [row] * 300, chosen(opt), k=5, batch_tokens=50
    )  # more rows than the window that is sorted by length
    assert [example.row for example in found[MLP][3]] == [0, 1, 2, 3, 4]
    assert len({example.position for example in found[MLP][3]}) == 1


@pytest.mark.model
def test_active_ablations_apply(opt: Any) -> None:
    rows = random_rows(5)
    mask = chosen(opt)
    with sp.ablate(opt, sp.NeuronMask.from_neurons(mask.layout, {MLP: [3]})):
        ablated = top(opt, rows, mask)
    whole = top(opt, rows, mask)
    assert all(example.value == 0 for example in ablated[MLP][3])
    assert all(example.value != 0 for example in whole[MLP][3])


@pytest.mark.model
def test_a_small_corpus_gives_fewer_than_k_examples_and_needs_context(opt: Any) -> None:
    rows = [torch.tensor([1, 300]), torch.tensor([300, 301, 302])]  # the first row has a counted token without context
    (example,) = top(opt, rows, chosen(opt), k=10)[MLP][3]
    assert (example.row, example.document, len(example.tokens)) == (1, None, 3)
    with pytest.raises(sp.SpLensError, match="no token of the corpus counts"):
        top(opt, rows[:1], chosen(opt))


@pytest.mark.model
def test_the_logits_are_not_computed(opt: Any) -> None:
    called = []
    handle = opt.unembed.register_forward_hook(lambda *_: called.append(1))
    top(opt, random_rows(3), chosen(opt))
    handle.remove()
    assert not called


@pytest.mark.model
def test_strings_are_documents_named_by_their_content(demo: Any) -> None:
    texts = ["def f(x):\n    return x", "of the people"]
    found = top(demo, texts, chosen(demo), k=2)[MLP][3]
    assert {example.document for example in found} == set(sp.load_corpus(texts, demo, tokens=None)["document"])


@pytest.mark.model
@pytest.mark.parametrize(
    ("neurons", "options", "message"),
    [
        ([], {}, "the mask of neurons is empty"),
        ([1], {"k": 0}, "k is 0: expected 1 or more"),
        ([1], {"context": -1}, "context is -1: expected 0 or more"),
    ],
)
def test_invalid_arguments_raise_an_error(opt: Any, neurons: list[int], options: dict[str, int], message: str) -> None:
    mask = sp.NeuronMask.from_neurons(sp.layout_of(opt), {MLP: neurons})
    with pytest.raises(sp.SpLensError, match=message):
        top(opt, random_rows(2), mask, **options)


@pytest.mark.model
def test_the_error_for_nan_names_site_layer_and_batch(opt: Any) -> None:
    def broken(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        return activation.masked_fill(torch.arange(activation.shape[-1]) == 3, torch.nan)

    with (
        opt.hooks(fwd_hooks=[(MLP, broken)]),
        pytest.raises(sp.SpLensError, match="site 'mlp', layer 1, batch 0"),
    ):
        top(opt, random_rows(2), chosen(opt))


def test_a_mask_of_another_model_is_an_error(opt: Any) -> None:
    other = Layout((NeuronGroup("mlp", 0, 7),))
    with pytest.raises(sp.SpLensError, match="the mask is of another model"):
        top(opt, random_rows(2), sp.NeuronMask.from_neurons(other, {"blocks.0.mlp.hook_post": [0]}))


# Saving, frames and the texts of tokens.


def two_examples() -> sp.TopExamples:
    layout = Layout((NeuronGroup("attn", 0, 8, heads=2), NeuronGroup("mlp", 0, 4)))
    strong = sp.Example(
        ("</s>", "\\xc3", "\\xa9", " b\n"), (float("nan"), 0.1, -3.0, 1.5), 2, 7, 2, "book", ("</s>", "", "é", " b\n")
    )
    weak = sp.Example((" x", "y"), (0.25, 0.0), 0, 0, 5, None)
    contexts = {"blocks.0.attn.hook_z": {6: (strong, weak)}, "blocks.0.mlp.hook_post": {1: (weak,)}}
    return sp.TopExamples(layout, contexts, {"model": "tiny", "k": 2})


def test_saved_examples_are_loaded_exactly(tmp_path: Path) -> None:
    examples = two_examples()
    examples.save(tmp_path / "examples.safetensors")
    loaded = sp.TopExamples.load(tmp_path / "examples.safetensors")
    assert (loaded.layout, loaded.about) == (examples.layout, examples.about)
    assert loaded.frame().equals(examples.frame().astype({"activation": np.float32}).astype({"activation": float}))
    assert loaded["blocks.0.attn.hook_z"][6][0].value == -3.0
    with pytest.raises(sp.SpLensError, match="contains 'TopExamples', but a NeuronMask was expected"):
        sp.NeuronMask.load(tmp_path / "examples.safetensors")


def test_the_frame_has_one_row_per_token() -> None:
    frame = two_examples().frame()
    assert len(frame) == 4 + 2 + 2
    peaks = frame.query("peak")
    assert peaks["activation"].tolist() == [-3.0, 0.25, 0.25]
    assert peaks["position"].tolist() == [2, 5, 5]
    assert peaks["rank"].tolist() == [1, 2, 1]
    assert peaks["head"].fillna(-1).tolist() == [1, 1, -1]
    assert frame["token"].tolist()[:4] == ["</s>", "\\xc3", "\\xa9", " b\n"]
    assert frame["text"].tolist()[:6] == ["</s>", "", "é", " b\n", " x", "y"]
    assert frame["document"].tolist()[:4] == ["book"] * 4


@pytest.mark.model
@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\\"), max_size=20))
def test_token_texts_contain_every_byte(demo: Any, text: str) -> None:
    """After replacing escaped bytes, the texts of the tokens join to the original text."""
    ids = demo.tokenizer(text, add_special_tokens=False)["input_ids"]
    texts = [token_text(demo.tokenizer, token) for token in ids]
    encoded = [
        bytes.fromhex(part.replace("\\x", "")) if re.fullmatch(r"(\\x[0-9a-f]{2})+", part) else part.encode()
        for part in texts
    ]
    assert b"".join(encoded).decode() == text
    assert "".join(decode_jointly(demo.tokenizer, ids)) == text


def test_token_texts_are_read_from_a_sentencepiece_like_tokenizer() -> None:
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    pieces = ["<s>", "▁the", "é", "<0xE2>", "a"]
    inner = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], byte_fallback=True))
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>")
    assert [token_text(tokenizer, token) for token in range(6)] == ["<s>", " the", "é", "<0xE2>", "a", "<5>"]
    assert decode_jointly(tokenizer, [0, 1, 2, 3, 4, 5]) == ["<s>", " the", "é", "", "\\xe2a", "<5>"]
