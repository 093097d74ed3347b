"""One thread at a time uses a model; other threads get an error instead of wrong numbers."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from factories import random_rows, tiny_bridge

import sp_lens as sp
from sp_lens.models.exclusive import exclusive

pytestmark = pytest.mark.model

ROWS = random_rows(12)


def in_thread(call: Any) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


def mask_of(model: Any) -> sp.NeuronMask:
    return sp.NeuronMask.from_neurons(sp.layout_of(model), {"blocks.0.mlp.hook_post": range(20)})


@pytest.mark.parametrize("context", [sp.ablate, "folded", "unlearning"])
def test_another_thread_cannot_use_a_model_that_is_changed(context: Any) -> None:
    model = tiny_bridge("opt")
    expected = sp.evaluate(model, ROWS, progress=False)
    if context == "folded":
        from sp_lens.interventions.ablation import folded as context
    if context == "unlearning":
        from sp_lens.unlearning.weights import editable

        entered: Any = editable(model)
    else:
        entered = context(model, mask_of(model))
    calls = (
        lambda: sp.evaluate(model, ROWS, progress=False),
        lambda: sp.collect(model, ROWS, progress=False),
        lambda: sp.effect_estimate(model, ROWS, progress=False),
        lambda: sp.fold_mask(model, mask_of(model)),
    )
    with entered:
        for call in calls:
            with pytest.raises(sp.SpLensError, match=r"in use by the thread 'MainThread'.*once for each thread"):
                in_thread(call)
        assert sp.evaluate(model, ROWS, progress=False).tokens  # the same thread may use it
    assert in_thread(calls[0]) == expected


def test_two_threads_get_correct_statistics_or_an_error() -> None:
    model = tiny_bridge("opt")
    expected = sp.collect(model, ROWS, progress=False).frame()
    barrier = threading.Barrier(2)

    def collect() -> Any:
        barrier.wait()
        try:
            return sp.collect(model, ROWS, progress=False, batch_tokens=24).frame()["abs"]
        except sp.SpLensError:
            return None

    for _ in range(3):
        with ThreadPoolExecutor(2) as pool:
            results = [future.result() for future in [pool.submit(collect) for _ in range(2)]]
        assert any(result is not None for result in results)
        for result in results:
            assert result is None or abs(result - expected["abs"]).max() < 1e-6


def test_threads_with_a_model_each_do_not_disturb_each_other() -> None:
    models = [tiny_bridge("opt") for _ in range(2)]
    expected = sp.evaluate(models[0], ROWS, progress=False)
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(sp.evaluate, model, ROWS, progress=False) for model in models]
    assert [future.result() for future in futures] == [expected, expected]


def test_a_model_is_free_after_an_exception_and_copies_are_free() -> None:
    model = tiny_bridge("opt")
    with exclusive(model):
        duplicate = copy.deepcopy(model)
    with pytest.raises(sp.SpLensError), exclusive(model), exclusive(model):
        raise sp.SpLensError("interrupted")
    for each in (model, duplicate):
        assert in_thread(lambda each=each: sp.evaluate(each, ROWS, progress=False)).tokens
    assert "_sp_lens_use" not in vars(model)


GRADIENTS: dict[str, Any] = {
    "effect_estimate": lambda model: sp.effect_estimate(model, ROWS, progress=False).stack("mlp"),
    **{
        name: lambda model, name=name: torch.tensor(
            getattr(sp.unlearning, name)(
                model, ROWS[:4], ROWS[4:8], eval_forget=ROWS[8:10], eval_retain=ROWS[10:], steps=1, progress=False
            ).history["forget_loss"]
        )
        for name in ("fine_tune", "gradient_ascent", "selective_synaptic_dampening", "bad_teacher", "amnesiac")
    },
    "relearning": lambda model: torch.tensor(
        sp.unlearning.relearning(model, ROWS[:4], eval_forget=ROWS[8:], updates=2, every=1, progress=False).history[
            "forget_top1"
        ]
    ),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_are_enabled_where_they_are_needed(name: str) -> None:
    expected = GRADIENTS[name](tiny_bridge("opt"))
    model = tiny_bridge("opt")
    torch.set_grad_enabled(False)
    try:
        actual = GRADIENTS[name](model)
        assert not torch.is_grad_enabled()
    finally:
        torch.set_grad_enabled(True)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    with torch.inference_mode(), pytest.raises(sp.SpLensError, match=r"inference_mode\(\) is active"):
        GRADIENTS[name](model)


def test_a_model_that_was_loaded_in_inference_mode() -> None:
    with torch.inference_mode():
        model = tiny_bridge("opt")
        inside = sp.collect(model, ROWS, progress=False)
    stats = sp.collect(model, ROWS, progress=False).merge(inside)
    mask = stats.importance("abs").top(0.1, site="mlp")
    with sp.ablate(model, mask):
        assert sp.evaluate(model, ROWS, progress=False).tokens
    with pytest.raises(sp.SpLensError, match=r"loaded within torch\.inference_mode"):
        sp.effect_estimate(model, ROWS, progress=False)
    with pytest.raises(sp.SpLensError, match=r"loaded within torch\.inference_mode"):
        sp.fold_mask(model, mask)


def test_inference_mode_changes_no_result() -> None:
    text = {"forget": ROWS[:4], "retain": ROWS[4:8], "eval_forget": ROWS[8:10], "eval_retain": ROWS[10:]}
    settings: dict[str, Any] = {"fraction": 0.2, "steps": 2, "progress": False}
    expected = sp.prune(tiny_bridge("opt"), **text, **settings)
    model = tiny_bridge("opt")
    with torch.inference_mode():
        run = sp.prune(model, **text, **settings)
        sp.fold_mask(model, run.mask)
    assert run.mask == expected.mask
    assert run.history.equals(expected.history)
    assert not model.blocks[0].mlp.W_out[run.mask["blocks.0.mlp.hook_post"]].any()
