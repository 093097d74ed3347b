"""What a masked language model is asked for: the shares of BERT, the same whatever the batch, no special token."""

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


def asked_of(model: Any, rows: list[torch.Tensor], *, batch_tokens: int = 4096, seed: int = 0) -> dict[int, Any]:
    """By the number of a row: what the model sees, and the places that it is asked for."""
    found = {}
    for batch in text_batches(model, rows, batch_tokens=batch_tokens):
        hidden, chosen = mask_tokens(model, batch, seed)
        assert torch.equal(hidden.attention_mask, batch.attention_mask)
        for row, seen, asked in zip(batch.rows, hidden.tokens, chosen, strict=True):
            assert not asked[len(row.tokens) :].any()  # padding
            found[row.number] = (seen[: len(row.tokens)], asked[: len(row.tokens)], row)
    return found


def test_the_shares_are_those_of_bert(bert: Any) -> None:
    rows = [torch.randint(2, 4096, (100,), generator=torch.Generator().manual_seed(n)) for n in range(400)]
    masked = random = kept = 0
    for seen, asked, row in asked_of(bert, rows).values():
        assert int(asked.sum()) == 15  # of a hundred, in every row
        assert torch.equal(seen[~asked], row.tokens[~asked])
        masked += int((seen[asked] == MASK).sum())
        kept += int((seen[asked] == row.tokens[asked]).sum())
        random += int(((seen[asked] != MASK) & (seen[asked] != row.tokens[asked])).sum())
    total = masked + random + kept
    # Within four standard deviations of 80 %, 10 % and 10 % of 6000.
    assert masked / total == pytest.approx(0.8, abs=0.021)
    assert random / total == pytest.approx(0.1, abs=0.016)
    assert kept / total == pytest.approx(0.1, abs=0.016)


@settings(max_examples=20)
@given(batch_tokens=st.integers(1, 400), seed=st.integers(0, 2**32))
def test_it_is_the_same_whatever_the_batch(bert: Any, batch_tokens: int, seed: int) -> None:
    rows = random_rows(12)
    one = asked_of(bert, rows, seed=seed)
    other = asked_of(bert, rows, batch_tokens=batch_tokens, seed=seed)
    for number, (seen, asked, _) in one.items():
        assert torch.equal(other[number][0], seen)
        assert torch.equal(other[number][1], asked)


def test_another_seed_asks_for_others(bert: Any) -> None:
    rows = random_rows(12)
    one, other = (asked_of(bert, rows, seed=seed) for seed in (0, 1))
    assert any(not torch.equal(one[number][1], other[number][1]) for number in one)


def test_special_tokens_are_not_asked_for(bert: Any) -> None:
    rows = [torch.tensor([4096, *row.tolist(), 1]) for row in random_rows(20)]  # <s> ... </s>
    for _, asked, row in asked_of(bert, rows).values():
        assert not asked[0]
        assert not asked[-1]
        assert 1 <= int(asked.sum()) == max(1, round(0.15 * (len(row.tokens) - 2)))


def test_text_stands_between_cls_and_sep(bert: Any) -> None:
    texts = ["def add(a, b): return a + b", "one two three four five six seven " * 60]
    dataset = sp.load_corpus(texts, bert, tokens=None)
    assert max(map(len, dataset["input_ids"])) == 128  # the model's context
    for row in dataset["input_ids"]:
        assert (row[0], row[-1]) == (4096, 1)
    plain = bert.tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert [token for row in dataset["input_ids"] for token in row[1:-1]] == [t for text in plain for t in text]


def test_a_cut_row_ends_as_every_row(bert: Any) -> None:
    dataset = sp.load_corpus(["one two three four five six seven " * 60], bert, tokens=50)
    (row,) = dataset["input_ids"]
    assert len(row) == 52
    assert (row[0], row[-1]) == (4096, 1)


@pytest.mark.skipif(HERE < (4, 3), reason="TransformerLens has a bridge for RoBERTa since 4.3")
def test_robertas_context_is_shorter_than_its_table_of_positions() -> None:
    model = tiny_bridge("roberta")  # 130 positions, of which padding has the first two
    longest = torch.randint(2, 4096, (128,))
    assert sp.evaluate(model, [longest], progress=False).tokens
    with pytest.raises(sp.SpLensError, match=r"a row has 129 tokens, and the model reads 128"):
        sp.evaluate(model, [torch.randint(2, 4096, (129,))], progress=False)


def test_pruning_is_the_same_each_time_and_remembers_its_seed(bert: Any) -> None:
    parts = [random_rows(6, seed=seed) for seed in range(4)]
    corpora: dict[str, Any] = dict(zip(("forget", "retain", "eval_forget", "eval_retain"), parts, strict=True))
    one, again, other = (
        sp.prune(bert, **corpora, fraction=0.1, steps=2, seed=seed, progress=False) for seed in (0, 0, 1)
    )
    assert one.mask == again.mask == other.mask  # nothing is masked where activations are collected
    assert one.history.equals(again.history)
    assert not one.history.equals(other.history)
    assert (one.settings["seed"], other.settings["seed"]) == (0, 1)


def test_the_effect_of_a_head_is_that_of_evaluating_without_it(bert: Any) -> None:
    rows = random_rows(6)
    effects = sp.ablation_effect(bert, rows, seed=5, progress=False)
    head = sp.NeuronMask.from_neurons(sp.layout_of(bert), {"blocks.1.attn.hook_z": range(8, 16)})
    with sp.ablate(bert, head):
        without = sp.evaluate(bert, rows, seed=5, progress=False).loss
    rise = without - sp.evaluate(bert, rows, seed=5, progress=False).loss
    assert effects["blocks.1.attn.hook_z"][1].item() == pytest.approx(rise, abs=1e-6)
    assert rise != 0


def test_padding_must_be_told(bert: Any) -> None:
    padded = torch.tensor([[5, 6, 7, 0, 0], [5, 6, 7, 8, 9]])
    with pytest.raises(sp.SpLensError, match="a row ends in padding and no attention_mask says so"):
        sp.collect(bert, padded, progress=False)
    told = {"input_ids": padded, "attention_mask": (padded != 0).long()}
    assert sp.collect(bert, told, progress=False).count == 2 + 4
