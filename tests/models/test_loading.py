"""Test loading and exporting: the bundled model, folders, and inputs that are rejected."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from factories import DEMO_FOLDER, bridge_of, random_mask, tiny_bridge, tiny_hf

import sp_lens as sp
from sp_lens.models.hooks import model_name
from sp_lens.models.loading import publish

pytestmark = pytest.mark.model


def test_the_bundled_model_is_small_and_equals_the_transformers_model(demo: Any) -> None:
    plain = transformers.AutoModelForCausalLM.from_pretrained(
        DEMO_FOLDER, dtype=torch.float32, attn_implementation="eager"
    )
    tokens = torch.randint(2, 4096, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(demo(tokens), plain(tokens).logits, rtol=0, atol=1e-4)
    assert 2e6 < sum(parameter.numel() for parameter in plain.parameters()) < 6e6
    assert (DEMO_FOLDER / "model.safetensors").stat().st_size < 15e6
    assert plain.config.activation_function == "relu"
    assert model_name(demo) == "demo"
    assert not demo.training


def test_a_local_folder_is_loaded(tmp_path: Path) -> None:
    hf = tiny_hf("llama")
    hf.save_pretrained(tmp_path / "mine")
    transformers.AutoTokenizer.from_pretrained(DEMO_FOLDER).save_pretrained(tmp_path / "mine")
    model = sp.load_model(tmp_path / "mine", device="cpu")
    tokens = torch.arange(2, 30)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), hf(tokens).logits, rtol=0, atol=1e-5)
    assert model_name(model) == "mine"
    assert (
        next(sp.load_model(tmp_path / "mine", device="cpu", dtype=torch.bfloat16).parameters()).dtype == torch.bfloat16
    )


def test_two_processes_can_convert_the_same_file_at_once(tmp_path: Path) -> None:
    for name in ("converted", "converted.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    publish(tmp_path / "converted.tmp", tmp_path / "converted")
    assert [path.name for path in tmp_path.iterdir()] == ["converted"]
    (tmp_path / "new.tmp").mkdir()
    publish(tmp_path / "new.tmp", tmp_path / "new")
    assert (tmp_path / "new").is_dir()
    with pytest.raises(FileNotFoundError):
        publish(tmp_path / "none.tmp", tmp_path / "none")


@pytest.mark.parametrize("name", ["no/such-model", "no-such-folder/", "nothing.gguf"])
def test_an_unknown_model_raises_a_helpful_error(name: str) -> None:
    with pytest.raises(sp.SpLensError, match=r"cannot load the model|there is no GGUF file"):
        sp.load_model(name)


def test_the_message_names_an_unknown_architecture_without_listing_all_others(tmp_path: Path) -> None:
    transformers.CanineConfig(architectures=["CanineForMultipleChoice"]).save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(DEMO_FOLDER).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((DEMO_FOLDER / "model.safetensors").read_bytes())
    with pytest.raises(sp.SpLensError, match=r"cannot load the model .*CanineForMultipleChoice") as caught:
        sp.load_model(tmp_path)
    assert len(str(caught.value)) < 800 + len(str(tmp_path))


@pytest.mark.parametrize("read", [sp.collect, sp.evaluate], ids=["collect", "evaluate"])
def test_the_tokenizer_of_another_model_is_rejected(tmp_path: Path, read: Any) -> None:
    """This is detected by `load_model`, and for other bridges before they read text."""
    hf = tiny_hf("llama")
    hf.resize_token_embeddings(1000)
    hf.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(DEMO_FOLDER).save_pretrained(tmp_path)
    message = "the tokenizer has 4096 tokens, but LlamaForCausalLM has only 1000 embeddings: it belongs to another"
    with pytest.raises(sp.SpLensError, match=message):
        sp.load_model(tmp_path, device="cpu")
    with pytest.raises(sp.SpLensError, match=message):
        read(bridge_of(hf, "mine"), [torch.arange(2, 30)], progress=False)


@pytest.mark.parametrize("row", [torch.tensor([5, 4096]), torch.tensor([5, -1])], ids=str)
def test_token_ids_outside_the_vocabulary_are_rejected(opt: Any, row: torch.Tensor) -> None:
    with pytest.raises(sp.SpLensError, match="the vocabulary of the model is 0 to 4095: use the tokenizer of"):
        sp.collect(opt, [row], progress=False)


def test_weights_of_another_size_are_rejected(tmp_path: Path) -> None:
    tiny_hf("llama").save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"intermediate_size": 48', '"intermediate_size": 40'))
    with pytest.raises(sp.SpLensError, match=r"cannot load the model .* RuntimeError"):
        sp.load_model(tmp_path)


def test_a_model_without_hooks_is_rejected() -> None:
    with pytest.raises(sp.SpLensError, match="expected a TransformerBridge or a HookedTransformer"):
        sp.layout_of(tiny_hf("opt"))


def test_widths_are_read_from_the_weights(tiny: Any) -> None:
    """An OPT with its own ffn_dim has a wrong cfg.d_mlp, and grouped-query attention has fewer key heads."""
    layout = sp.layout_of(tiny.model)
    width = 128 if tiny.family == "gpt2" else 48
    assert [(g.site, g.layer, g.width, g.heads) for g in layout] == [
        (site, layer, 32 if site == "attn" else width, 4 if site == "attn" else 0)
        for layer in (0, 1)
        for site in ("attn", "mlp")
    ]


def test_export_does_not_overwrite_a_folder(opt: Any, tmp_path: Path) -> None:
    mask = random_mask(opt, 0.1)
    folder = sp.export(opt, mask, tmp_path / "pruned")
    with pytest.raises(sp.SpLensError, match="already exists"):
        sp.export(opt, mask, folder)
    sp.export(opt, random_mask(opt, 0.2), folder, overwrite=True)
    assert sp.NeuronMask.load(folder / "sp_lens_mask.safetensors") == random_mask(opt, 0.2)
    with pytest.raises(sp.SpLensError, match="of another model"):
        sp.export(opt, random_mask(tiny_bridge("gpt2"), 0.1), tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pruned"]


def test_an_exported_model_can_be_loaded(opt: Any, tmp_path: Path) -> None:
    mask = random_mask(opt, 0.3)
    again = sp.load_model(sp.export(opt, mask, tmp_path / "pruned"), device="cpu")
    tokens = torch.arange(2, 30)[None]
    with sp.ablate(opt, mask):
        torch.testing.assert_close(again(tokens), opt(tokens), rtol=0, atol=1e-5)


def test_processed_weights_are_not_exported(tmp_path: Path) -> None:
    """Folded value biases change hook_z, so the saved model would differ from the measured one."""
    model = tiny_bridge("gpt2", seed=2)
    model.enable_compatibility_mode()
    with pytest.raises(sp.SpLensError, match=r"differs from the model ablated by hooks|cannot be exported"):
        sp.export(model, random_mask(model, 0.5), tmp_path / "pruned")
    assert not (tmp_path / "pruned").exists()


def test_a_default_device_other_than_the_cpu_is_rejected(demo: Any) -> None:
    torch.set_default_device("meta")
    try:
        for call in (lambda: sp.collect(demo, ["One two three."]), lambda: sp.layout_of(demo)):
            with pytest.raises(sp.SpLensError, match=r"set_default_device\('meta'\) is in effect.*\(None\)"):
                call()
    finally:
        torch.set_default_device(None)
