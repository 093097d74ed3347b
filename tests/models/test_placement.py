"""Test models on one device, on several devices and on disk against the same model on the CPU."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from factories import DEMO_FOLDER, HERE, random_mask, random_rows, tiny_hf
from torch._subclasses.fake_tensor import FakeTensorMode

import sp_lens as sp
from sp_lens.interventions.ablation import fold_mask
from sp_lens.models.forward import input_device
from sp_lens.models.loading import weights_fingerprint
from sp_lens.neurons.layout import Layout, NeuronGroup
from sp_lens.statistics.moments import Moments

pytestmark = pytest.mark.model

ROWS = random_rows(8)
# Device maps that put half of a model, or all of it, on disk.
ON_DISK = {
    "llama": {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu",
              "model.layers.0": "cpu", "model.layers.1": "disk"},
    "gpt2": {"": "disk"},
}  # fmt: skip


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a folder with a tiny model of the requested family and the bundled tokenizer."""
    tiny_hf(request.param).save_pretrained(tmp_path / request.param)
    transformers.AutoTokenizer.from_pretrained(DEMO_FOLDER).save_pretrained(tmp_path / request.param)
    return tmp_path / request.param


def largest(one: sp.NeuronValues, other: sp.NeuronValues) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("folder", ["llama"], indirect=True)
@pytest.mark.parametrize("device_map", ["auto", "balanced", {"": "cpu"}], ids=str)
def test_results_do_not_depend_on_the_device_map(folder: Path, device_map: Any, tmp_path: Path) -> None:
    whole, placed = sp.load_model(folder, device="cpu"), sp.load_model(folder, device_map=device_map)
    mask = random_mask(whole, 0.3)
    stats = [sp.collect(model, ROWS, progress=False).importance("abs") for model in (whole, placed)]
    assert largest(*stats) < 1e-5
    with sp.ablate(whole, mask), sp.ablate(placed, mask):
        losses = [sp.evaluate(model, ROWS, progress=False).loss for model in (whole, placed)]
    assert abs(losses[0] - losses[1]) < 1e-5
    assert weights_fingerprint(placed) == weights_fingerprint(whole)
    sp.export(placed, mask, tmp_path / "pruned")


@pytest.mark.skipif(HERE < (4,), reason="TransformerLens 3.9 cannot use weights on disk")
@pytest.mark.parametrize("folder", list(ON_DISK), indirect=True)
def test_weights_on_disk_can_be_ablated_but_not_folded(folder: Path, tmp_path: Path) -> None:
    """Collection, ablation and pruning give the same results as in memory. Folding raises before any change."""
    whole, placed = sp.load_model(folder, device="cpu"), sp.load_model(folder, device_map=ON_DISK[folder.name])
    assert any(parameter.is_meta for parameter in placed.parameters())
    assert sp.layout_of(placed) == sp.layout_of(whole)
    assert input_device(placed) == torch.device("cpu")
    runs = [
        sp.prune(
            model, ROWS[:4], ROWS[2:6], eval_forget=random_rows(4, seed=1), eval_retain=random_rows(4, seed=2),
            site="both", fraction=0.1, steps=2, progress=False,
        )
        for model in (whole, placed)
    ]  # fmt: skip
    assert runs[0].mask == runs[1].mask
    assert runs[0].history["retain_loss"].tolist() == pytest.approx(runs[1].history["retain_loss"].tolist(), abs=1e-5)
    kept = [parameter.clone() for parameter in placed.parameters() if not parameter.is_meta]
    for way in (
        lambda: fold_mask(placed, runs[1].mask),
        lambda: sp.compact(placed, runs[1].mask),
        lambda: sp.export(placed, runs[1].mask, tmp_path / "out"),
        lambda: sp.export(placed, runs[1].mask, tmp_path / "out", compact=True),
    ):
        with pytest.raises(sp.SpLensError, match=r"quantized or offloaded to disk.*Ablation by hooks works"):
            way()
    assert all(map(torch.equal, kept, (parameter for parameter in placed.parameters() if not parameter.is_meta)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cpu", "device_map": "auto"}, "give only one of them"),
        ({"device": "warp"}, "there is no device 'warp' here"),
        ({"device_map": "everywhere"}, "unknown device_map 'everywhere': choose one of 'auto'"),
        ({"device_map": {"": "warp"}}, "there is no device 'warp' here"),
    ],
)
def test_unknown_devices_are_rejected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(sp.SpLensError, match=message):
        sp.load_model("demo", **options)


def test_masks_and_means_move_to_the_device_of_the_activation() -> None:
    """Two GPUs are simulated with fake tensors, which contain no numbers but raise if devices are mixed.

    They do not support slicing, so `collect` and `evaluate` are not tested on several GPUs.
    """
    layout = Layout((NeuronGroup("attn", 0, 8, heads=2), NeuronGroup("mlp", 1, 12)))
    mask = sp.NeuronMask(layout, {group.name: torch.arange(group.width) % 3 == 0 for group in layout})
    means = sp.ActivationStats(layout, {g.name: Moments.from_activations(torch.rand(5, g.width)) for g in layout}, {})
    hooks = [*sp.ablation_hooks(mask), *sp.ablation_hooks(mask, mode="mean", reference=means)]
    with FakeTensorMode(allow_non_fake_inputs=True):
        of = {0: torch.empty(2, 3, 2, 4, device="cuda:0"), 1: torch.empty(2, 3, 12, device="cuda:1")}
        with pytest.raises(RuntimeError, match="two devices"):
            torch.add(of[1], torch.ones(12))
        for name, hook in hooks:
            activation = of[int(name.split(".")[1])]
            assert hook(activation, hook=None).device == activation.device
        assert Moments.from_activations(of[1].flatten(0, 1)).mean.device == of[1].device
