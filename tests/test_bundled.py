"""The bundled model on real text: it has learned, and pruning is selective both ways round."""

from typing import Any

import pytest

import sp_lens as sp

pytestmark = pytest.mark.model


def corpora(model: Any, forget: str, retain: str, tokens: int) -> dict[str, Any]:
    """Collect and evaluate corpora of two names, offline."""
    return {
        f"{prefix}{side}": sp.load_corpus(name, model, tokens=tokens, split=split, offline=True)
        for prefix, split in (("", "collect"), ("eval_", "evaluate"))
        for side, name in (("forget", forget), ("retain", retain))
    }


@pytest.mark.parametrize(
    ("name", "loss", "top1"), [("python", 3.6, 0.30), ("non_python", 3.2, 0.38), ("prose", 4.4, 0.25)]
)
def test_it_has_learned(demo: Any, name: str, loss: float, top1: float) -> None:
    """Far better than the bigrams in its card, on documents that it was not trained on."""
    result = sp.evaluate(
        demo, sp.load_corpus(name, demo, tokens=20_000, split="evaluate", offline=True), progress=False
    )
    assert result.loss < loss
    assert result.top1 > top1


@pytest.mark.parametrize("site", ["mlp", "attn"])
@pytest.mark.parametrize(("forget", "retain"), [("code", "prose"), ("prose", "code")])
def test_pruning_is_selective_and_random_pruning_is_not(demo: Any, forget: str, retain: str, site: Any) -> None:
    text = corpora(demo, forget, retain, 10_000)
    settings: dict[str, Any] = {"site": site, "fraction": 0.1, "steps": 3, "progress": False}
    run = sp.prune(demo, **text, metric="abs", **settings)
    random = sp.prune(demo, **text, metric="random", **settings)
    last = run.history.iloc[-1]
    assert last["forget_drop"] > 0.03
    assert last["forget_drop"] > 2 * last["retain_drop"]
    assert run.selectivity > random.selectivity + 0.02


def test_forgetting_code_costs_code_several_times_what_it_costs_prose(demo: Any) -> None:
    run = sp.prune(demo, **corpora(demo, "code", "prose", 10_000), fraction=0.1, steps=2, progress=False)
    last = run.history.iloc[-1]
    assert last["forget_drop"] > 3 * max(last["retain_drop"], 0)
    assert last["forget_loss"] - run.history["forget_loss"][0] > 3 * (
        last["retain_loss"] - run.history["retain_loss"][0]
    )


def test_ablation_effect_of_heads_agrees_with_evaluating(demo: Any) -> None:
    held_out = sp.load_corpus("code", demo, tokens=1_000, split="evaluate", offline=True)
    effects = sp.ablation_effect(demo, held_out, progress=False)
    layer, head = divmod(int(effects.stack().argmax()), 6)
    name = f"blocks.{layer}.attn.hook_z"
    mask = sp.NeuronMask.of_neurons(sp.layout_of(demo), {name: range(32 * head, 32 * head + 32)})
    with sp.ablate(demo, mask):
        ablated = sp.evaluate(demo, held_out, progress=False).loss
    whole = sp.evaluate(demo, held_out, progress=False).loss
    assert effects[name][head].item() == pytest.approx(ablated - whole, abs=1e-5)
