"""Test membership inference against an independent implementation, and on a model that memorised its data."""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from datasets import Dataset
from factories import HERE, random_mask, random_rows, tiny_bridge, tiny_hf

import sp_lens as sp
from sp_lens.unlearning.membership import _entropies

pytestmark = pytest.mark.model


def images(count: int, seed: int) -> list[dict[str, Any]]:
    """Random images of random classes."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(count, 3, 16, 16, generator=generator)
    labels = torch.randint(5, (count,), generator=generator)
    return [{"pixel_values": image, "labels": label} for image, label in zip(pixels, labels, strict=True)]


def entropy(logits: torch.Tensor) -> torch.Tensor:
    p = logits.double().softmax(-1)
    return -(p * p.log()).sum(-1)


def logistic_regression(members: np.ndarray, others: np.ndarray) -> Any:
    """A classifier that minimises the balanced logistic loss plus half the square of the slope."""
    x, y = np.concatenate([members, others]), np.array([1] * len(members) + [-1] * len(others))
    weight = len(x) / 2 / np.where(y > 0, len(members), len(others))

    def loss(parameters: np.ndarray) -> float:
        slope, offset = parameters
        return float((weight * np.logaddexp(0, -y * (slope * x + offset))).sum() + slope**2 / 2)

    slope, offset = scipy.optimize.minimize(loss, np.zeros(2), tol=1e-12).x
    return lambda z: slope * z + offset > 0


def test_the_attack_equals_an_independent_implementation() -> None:
    hf, model = tiny_hf("vit"), tiny_bridge("vit")
    for classifier in (hf.classifier, model.original_model.classifier._original_component):
        with torch.no_grad():  # larger weights, so that entropies differ
            classifier.weight.mul_(8)
    corpora = {name: images(count, n) for n, (name, count) in enumerate((("f", 23), ("r", 30), ("h", 19)))}
    result = sp.unlearning.membership_inference(model, *corpora.values(), progress=False)
    with torch.no_grad():
        entropies = {
            name: entropy(hf(torch.stack([item["pixel_values"] for item in corpus])).logits).numpy()
            for name, corpus in corpora.items()
        }
    called_members = int(logistic_regression(entropies["r"], entropies["h"])(entropies["f"]).sum())
    assert 0 < called_members < 23
    assert result.share == called_members / 23
    assert (result.forget_items, result.members, result.non_members) == (23, 30, 19)
    assert 0.2 < result.accuracy < 0.8  # members and non-members have the same distribution
    # Wilson 1927: the ends are the p at a distance of z standard errors of p from the share.
    for end in (result.low, result.high):
        assert abs(result.share - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / 23), rel=1e-4)
    assert result.low < result.share < result.high


def test_the_entropy_of_a_document_is_the_mean_over_its_predictions() -> None:
    """It is not the mean over its rows."""
    hf, model, rows = tiny_hf("opt"), tiny_bridge("opt"), random_rows(6, seed=0)
    documents = ["a", "b", "a", "c", "b", "a"]
    corpus = Dataset.from_dict({"input_ids": [row.tolist() for row in rows], "document": documents})
    entropies = _entropies(model, {"x": corpus}, 0, 60, False)["x"]
    nats: dict[str, list[torch.Tensor]] = {}
    with torch.no_grad():
        for row, document in zip(rows, documents, strict=True):
            nats.setdefault(document, []).append(entropy(hf(row[None]).logits[0, :-1]))
    expected = torch.stack([torch.cat(parts).mean() for parts in nats.values()])
    # Sorted, because batches are not in the order of the rows.
    torch.testing.assert_close(entropies.sort().values, expected.sort().values, atol=1e-5, rtol=0)


@pytest.mark.skipif(HERE < (4, 3), reason="TransformerLens has a bridge for RoBERTa since 4.3")
def test_predictions_of_a_batch_are_assigned_to_their_rows() -> None:
    """For a masked language model, rows in a batch have the entropies of rows on their own."""
    model = tiny_bridge("roberta")
    batched, single = (_entropies(model, {"x": random_rows(9)}, 0, size, False)["x"] for size in (4096, 1))
    assert len(single) == 9
    torch.testing.assert_close(batched, single, atol=1e-5, rtol=0)


def test_memorised_images_are_detected(tmp_path: Path) -> None:
    """Random images of random classes can only be memorised."""
    model = tiny_bridge("vit")
    memorised, fresh, others = images(60, 1), images(60, 2), images(60, 3)
    options: dict[str, Any] = {"learning_rate": 3e-3, "steps": 1, "updates": 60, "progress": False}
    run = sp.unlearning.fine_tune(
        model, others, memorised, eval_forget=images(9, 4), eval_retain=images(9, 5), batch_tokens=30 * 17, **options
    )
    forget, retain = memorised[:20], memorised[20:]
    before = sp.unlearning.membership_inference(model, forget, retain, fresh, progress=False)
    with run.applied(model):
        result = sp.unlearning.membership_inference(model, forget, retain, fresh, progress=False)
        unseen = sp.unlearning.membership_inference(model, others, retain, fresh, progress=False)
    assert before.accuracy < 0.6
    assert result.accuracy > 0.7
    assert result.share > 0.9
    assert unseen.high < result.low
    result.save(tmp_path / "membership.json")
    assert sp.unlearning.MembershipInference.load(tmp_path / "membership.json") == result
    (tmp_path / "other.json").write_text('{"kind": "Evaluation"}')
    with pytest.raises(sp.SpLensError, match="is not a MembershipInference"):
        sp.unlearning.MembershipInference.load(tmp_path / "other.json")


def test_ablations_affect_the_result() -> None:
    model = tiny_bridge("vit")
    corpora = [images(20, seed) for seed in range(3)]
    mask = random_mask(model, 0.6)
    whole = sp.unlearning.membership_inference(model, *corpora, progress=False)
    with sp.ablate(model, mask):
        by_hooks = sp.unlearning.membership_inference(model, *corpora, progress=False)
    sp.fold_mask(model, mask)
    assert sp.unlearning.membership_inference(model, *corpora, progress=False) == by_hooks != whole


def test_invalid_input_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_bridge("vit")
    few, some, others = images(4, 0), images(20, 1), images(20, 2)
    with pytest.raises(sp.SpLensError, match="retain has 4 and held_out 20 images or documents"):
        sp.unlearning.membership_inference(model, some, few, others, progress=False)
    with pytest.raises(sp.SpLensError, match="held_out has 20 rows that are in forget too"):
        sp.unlearning.membership_inference(model, some, few, some, progress=False)
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(sp.SpLensError, match=r"needs scikit-learn. Install it with pip install 'sp_lens\[vision\]'"):
        sp.unlearning.membership_inference(model, some, few, others, progress=False)
