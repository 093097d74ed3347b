"""The tokens that a masked language model predicts: the shares of BERT, whatever the batch, and no special tokens."""

from typing import Any

import pytest
import torch
from factories import HERE, random_rows, tiny_bridge
from hypothesis import given, settings
from hypothesis import strategies as st

import sp_lens as sp
from sp_lens.data.batching import text_batches
from sp_lens.data.masked_lm import mask_tokens

pytestmark = pytest.mark.model

MASK = 4097


@pytest.fixture(scope="module")
def bert() -> Any:
    return tiny_bridge("bert")


def masked_rows(model: Any, rows: list[torch.Tensor], *, batch_tokens: int = 4096, seed: int = 0) -> dict[int, Any]:
    """Return, by row number, the input of the model, the mask of the positions to predict, and the row."""
    result = {}
    for batch in text_batches(model, rows, batch_tokens=batch_tokens):
        masked, chosen = mask_tokens(model, batch, seed)
        assert torch.equal(masked.attention_mask, batch.attention_mask)
        for row, tokens, predicted in zip(batch.rows, masked.tokens, chosen, strict=True):
            assert not predicted[len(row.tokens) :].any()  # padding
            result[row.number] = (tokens[: len(row.tokens)], predicted[: len(row.tokens)], row)
    return result


def test_chosen_and_replaced_tokens_have_the_shares_of_bert(bert: Any) -> None:
    rows = [torch.randint(2, 4096, (100,), generator=torch.Generator().manual_seed(n)) for n in range(400)]
    masked = random = kept = 0
    for tokens, predicted, row in masked_rows(bert, rows).values():
        assert int(predicted.sum()) == 15  # of 100 tokens, in every row
        assert torch.equal(tokens[~predicted], row.tokens[~predicted])
        masked += int((tokens[predicted] == MASK).sum())
        kept += int((tokens[predicted] == row.tokens[predicted]).sum())
        random += int(((tokens[predicted] != MASK) & (tokens[predicted] != row.tokens[predicted])).sum())
    total = masked + random + kept
    # The tolerances are four standard deviations of 80 %, 10 % and 10 % of 6000 tokens.
    assert masked / total == pytest.approx(0.8, abs=0.021)
    assert random / total == pytest.approx(0.1, abs=0.016)
    assert kept / total == pytest.approx(0.1, abs=0.016)


@settings(max_examples=20)
@given(batch_tokens=st.integers(1, 400), seed=st.integers(0, 2**32))
def test_masking_does_not_depend_on_the_batch_size(bert: Any, batch_tokens: int, seed: int) -> None:
    rows = random_rows(12)
    expected = masked_rows(bert, rows, seed=seed)
    actual = masked_rows(bert, rows, batch_tokens=batch_tokens, seed=seed)
    for number, (tokens, predicted, _) in expected.items():
        assert torch.equal(actual[number][0], tokens)
        assert torch.equal(actual[number][1], predicted)


def test_another_seed_chooses_other_tokens(bert: Any) -> None:
    rows = random_rows(12)
    first, second = (masked_rows(bert, rows, seed=seed) for seed in (0, 1))
    assert any(not torch.equal(first[number][1], second[number][1]) for number in first)


def test_special_tokens_are_not_chosen(bert: Any) -> None:
    rows = [torch.tensor([4096, *row.tolist(), 1]) for row in random_rows(20)]  # <s> ... </s>
    for _, predicted, row in masked_rows(bert, rows).values():
        assert not predicted[0]
        assert not predicted[-1]
        assert 1 <= int(predicted.sum()) == max(1, round(0.15 * (len(row.tokens) - 2)))


def test_rows_of_text_begin_with_cls_and_end_with_sep(bert: Any) -> None:
    texts = ["def add(a, b): return a + b", "one two three four five six seven " * 60]
    dataset = sp.load_corpus(texts, bert, tokens=None)
    assert max(map(len, dataset["input_ids"])) == 128  # the model's context
    for row in dataset["input_ids"]:
        assert (row[0], row[-1]) == (4096, 1)
    plain = bert.tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert [token for row in dataset["input_ids"] for token in row[1:-1]] == [t for text in plain for t in text]


def test_a_row_that_is_cut_ends_with_sep(bert: Any) -> None:
    dataset = sp.load_corpus(["one two three four five six seven " * 60], bert, tokens=50)
    (row,) = dataset["input_ids"]
    assert len(row) == 52
    assert (row[0], row[-1]) == (4096, 1)


@pytest.mark.skipif(HERE < (4, 3), reason="TransformerLens has a bridge for RoBERTa since 4.3")
def test_the_context_of_roberta_is_two_shorter_than_its_position_embeddings() -> None:
    model = tiny_bridge("roberta")  # 130 positions, of which two are reserved for padding
    longest = torch.randint(2, 4096, (128,))
    assert sp.evaluate(model, [longest], progress=False).tokens
    with pytest.raises(sp.SpLensError, match=r"a row has 129 tokens, but the context length of the model is 128"):
        sp.evaluate(model, [torch.randint(2, 4096, (129,))], progress=False)


def test_pruning_is_reproducible_and_records_its_seed(bert: Any) -> None:
    parts = [random_rows(6, seed=seed) for seed in range(4)]
    corpora: dict[str, Any] = dict(zip(("forget", "retain", "eval_forget", "eval_retain"), parts, strict=True))
    first, again, other = (
        sp.prune(bert, **corpora, fraction=0.1, steps=2, seed=seed, progress=False) for seed in (0, 0, 1)
    )
    assert first.mask == again.mask == other.mask  # no tokens are masked when activations are collected
    assert first.history.equals(again.history)
    assert not first.history.equals(other.history)
    assert (first.settings["seed"], other.settings["seed"]) == (0, 1)


def test_the_effect_of_a_head_is_the_increase_in_evaluated_loss(bert: Any) -> None:
    rows = random_rows(6)
    effects = sp.ablation_effect(bert, rows, seed=5, progress=False)
    head = sp.NeuronMask.from_neurons(sp.layout_of(bert), {"blocks.1.attn.hook_z": range(8, 16)})
    with sp.ablate(bert, head):
        without = sp.evaluate(bert, rows, seed=5, progress=False).loss
    rise = without - sp.evaluate(bert, rows, seed=5, progress=False).loss
    assert effects["blocks.1.attn.hook_z"][1].item() == pytest.approx(rise, abs=1e-6)
    assert rise != 0


def test_padding_requires_an_attention_mask(bert: Any) -> None:
    padded = torch.tensor([[5, 6, 7, 0, 0], [5, 6, 7, 8, 9]])
    with pytest.raises(sp.SpLensError, match="a row ends with padding, but has no attention_mask"):
        sp.collect(bert, padded, progress=False)
    batch = {"input_ids": padded, "attention_mask": (padded != 0).long()}
    assert sp.collect(bert, batch, progress=False).count == 2 + 4
