"""The bundled models predict held-out text and images, and pruning them is selective."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from factories import HERE, corpora

import sp_lens as sp
from sp_lens.cli.__main__ import main

pytestmark = pytest.mark.model


@pytest.mark.parametrize(
    ("name", "loss", "top1"), [("python", 3.6, 0.30), ("non_python", 3.2, 0.38), ("prose", 4.4, 0.25)]
)
def test_the_causal_model_has_learned(demo: Any, name: str, loss: float, top1: float) -> None:
    """It is far better than the bigrams in its model card on documents that it was not trained on."""
    result = sp.evaluate(
        demo, sp.load_corpus(name, demo, tokens=20_000, split="evaluate", offline=True), progress=False
    )
    assert result.loss < loss
    assert result.top1 > top1


@pytest.fixture(scope="module")
def masked() -> Any:
    """The bundled RoBERTa."""
    if HERE < (4, 3):
        pytest.skip("the bridge for RoBERTa needs TransformerLens 4.3")
    return sp.load_model("demo-masked", device="cpu")


@pytest.fixture(scope="module")
def vision() -> Any:
    """The bundled ViT."""
    if "SP_LENS_DATA" not in os.environ:
        pytest.skip("reads CIFAR-10 from the folder that SP_LENS_DATA names")
    return sp.load_model("demo-vision", device="cpu")


def relative_drops(run: sp.PruneRun) -> tuple[float, float]:
    """Return the drops in forget and retain accuracy after the last step, as shares of the initial accuracies."""
    first, last = run.history.iloc[0], run.history.iloc[-1]
    return last["forget_drop"] / first["forget_top1"], last["retain_drop"] / first["retain_top1"]


@pytest.mark.parametrize(("forget", "retain"), [("code", "prose"), ("prose", "code")])
def test_pruning_is_selective_and_random_pruning_is_not(demo: Any, forget: str, retain: str) -> None:
    text = corpora(demo, forget, retain, 6_000)
    settings: dict[str, Any] = {"fraction": 0.15, "steps": 2, "progress": False}
    run = sp.prune(demo, **text, metric="abs", site="mlp", **settings)
    forgotten, kept = relative_drops(run)
    assert forgotten > 0.2
    assert forgotten > 3 * kept
    random_forgotten, random_kept = relative_drops(sp.prune(demo, **text, metric="random", site="mlp", **settings))
    assert random_forgotten < 1.5 * random_kept
    # The paper's first claim: feed-forward neurons forget more selectively than attention neurons.
    attention = sp.prune(demo, **text, metric="abs", site="attn", **settings)
    assert run.selectivity > attention.selectivity


@pytest.mark.parametrize(
    ("name", "loss", "top1"), [("python", 2.6, 0.5), ("non_python", 2.4, 0.54), ("prose", 3.1, 0.42)]
)
def test_the_masked_language_model_has_learned(masked: Any, name: str, loss: float, top1: float) -> None:
    text = sp.load_corpus(name, masked, tokens=20_000, split="evaluate", offline=True)
    result = sp.evaluate(masked, text, progress=False)
    assert result.tokens == pytest.approx(3_000, rel=0.05)  # 15 % of the tokens are predicted
    assert result.loss < loss
    assert result.top1 > top1


def test_a_masked_language_model_forgets_code_and_keeps_prose(masked: Any) -> None:
    text = corpora(masked, "code", "prose", 10_000)
    settings: dict[str, Any] = {"fraction": 0.15, "steps": 2, "progress": False}
    run = sp.prune(masked, **text, metric="abs", site="mlp", **settings)
    forgotten, kept = relative_drops(run)
    assert forgotten > 0.08
    assert forgotten > 1.8 * kept
    random_forgotten, random_kept = relative_drops(sp.prune(masked, **text, metric="random", site="mlp", **settings))
    assert random_forgotten < 1.5 * random_kept


def test_a_masked_language_model_is_pruned_and_exported_by_the_command_line(masked: Any, tmp_path: Path) -> None:
    """After pruning, plotting and exporting, plain transformers gives the logits of the ablated model."""
    run, text = tmp_path / "run", ["--tokens", "1000", "--offline"]
    sides = ["--forget", "code", "--retain", "prose", "--fraction", "0.1", "--steps", "1", "--out", str(run)]
    assert main(["prune", "--model", "demo-masked", *text, *sides]) == 0
    assert main(["plot", "tradeoff", str(run), "--out", str(tmp_path / "tradeoff.html")]) == 0
    mask = run / "mask.safetensors"
    assert main(["export", "--model", "demo-masked", "--mask", str(mask), "--out", str(tmp_path / "pruned")]) == 0
    plain = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "pruned", dtype=torch.float32)
    tokens = transformers.AutoTokenizer.from_pretrained(tmp_path / "pruned")("return <mask>.name", return_tensors="pt")
    with torch.no_grad(), sp.ablate(masked, sp.NeuronMask.load(mask)):
        by_hooks = masked(tokens.input_ids, return_type="logits")
        torch.testing.assert_close(plain(tokens.input_ids).logits, by_hooks, rtol=0, atol=1e-2)  # saved as float16


@pytest.mark.parametrize("site", ["mlp", "attn"])
def test_a_classifier_forgets_cats_and_keeps_the_other_classes(vision: Any, site: Any) -> None:
    def read(split: Any, **which: Any) -> Any:
        return sp.load_images("cifar10", vision, images=300, split=split, **which)

    run = sp.prune(
        vision,
        read("collect", classes=["cat"]),
        read("collect", without=["cat"]),
        eval_forget=read("evaluate", classes=["cat"]),
        eval_retain=read("evaluate", without=["cat"]),
        site=site,
        fraction=0.06,
        steps=2,
        progress=False,
    )
    assert run.history["retain_top1"][0] > 0.5  # there are ten classes
    forgotten, kept = relative_drops(run)
    assert forgotten > 0.5
    assert kept < 0.12


@pytest.mark.parametrize("name", ["amnesiac", "bad_teacher"])
def test_a_classifier_forgets_ships_by_other_methods(vision: Any, name: str) -> None:
    """Eight updates of 31 images with the default learning rate are enough."""

    def read(split: Any, images: int, **which: Any) -> Any:
        return sp.load_images("cifar10", vision, images=images, split=split, **which)

    run = getattr(sp.unlearning, name)(
        vision,
        read("collect", 60, classes=["ship"]),
        read("collect", 120, without=["ship"]),
        eval_forget=read("evaluate", 60, classes=["ship"]),
        eval_retain=read("evaluate", 120, without=["ship"]),
        steps=1,
        updates=8,
        batch_tokens=2048,
        progress=False,
    )
    drops = run.history.iloc[-1]
    assert drops["forget_drop"] > 0.25
    assert drops["retain_drop"] < 0.1


def test_the_ablation_effect_of_a_head_is_its_rise_in_loss(demo: Any) -> None:
    held_out = sp.load_corpus("code", demo, tokens=1_000, split="evaluate", offline=True)
    effects = sp.ablation_effect(demo, held_out, progress=False)
    layer, head = divmod(int(effects.stack().argmax()), 6)
    name = f"blocks.{layer}.attn.hook_z"
    mask = sp.NeuronMask.from_neurons(sp.layout_of(demo), {name: range(32 * head, 32 * head + 32)})
    with sp.ablate(demo, mask):
        ablated = sp.evaluate(demo, held_out, progress=False).loss
    whole = sp.evaluate(demo, held_out, progress=False).loss
    assert effects[name][head].item() == pytest.approx(ablated - whole, abs=1e-5)
