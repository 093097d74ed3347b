"""The comparison of a bridge with the transformers model in it."""

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import transformers
from factories import DEMO_FOLDER, TINY, bridge_of, random_rows, tiny_bridge

import sp_lens as sp
from sp_lens.models.plain_model import is_verified, verify_bridge, verify_once

pytestmark = pytest.mark.model

SIZES: dict[str, Any] = {"vocab_size": 4096, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}


def large_weights(hf: Any) -> Any:
    with torch.no_grad():
        for number, parameter in enumerate(hf.parameters()):
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(number))
    return hf.eval()


def wrong_gpt2() -> Any:
    config = transformers.GPT2Config(**SIZES, scale_attn_weights=False)
    return large_weights(transformers.GPT2LMHeadModel(config))


@pytest.mark.parametrize("family", TINY)
def test_correct_bridges_pass_and_stay_as_they_are(family: str) -> None:
    model = tiny_bridge(family)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    verify_bridge(model)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_gpt2_without_scaled_attention_is_rejected(tmp_path: Any) -> None:
    hf = wrong_gpt2()
    plain, model = copy.deepcopy(hf), bridge_of(hf, "wrong")
    inputs = torch.arange(2, 18)[None]
    with torch.no_grad():
        assert (plain(inputs).logits - model(inputs)).abs().max() > 0.01
    with pytest.raises(sp.SpLensError, match=r"other logits .* GPT2LMHeadModel: .* differ by \d.*verify=False"):
        verify_bridge(model)
    with pytest.raises(sp.SpLensError, match="other logits"):
        sp.collect(model, random_rows(3), progress=False)
    plain.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(DEMO_FOLDER).save_pretrained(tmp_path)
    with pytest.raises(sp.SpLensError, match="other logits"):
        sp.load_model(tmp_path)
    loaded = sp.load_model(tmp_path, verify=False)
    assert sp.collect(loaded, random_rows(3), progress=False).count


def test_gpt1_is_rejected_because_padding_changes_its_causal_mask() -> None:
    model = bridge_of(large_weights(transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig(**SIZES))), "gpt1")
    with pytest.raises(sp.SpLensError, match=r"other logits .* OpenAIGPTLMHeadModel"):
        verify_bridge(model)


def test_a_model_is_verified_once_and_not_while_hooks_change_it() -> None:
    model = tiny_bridge("opt")
    with model.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", lambda value, hook: 0 * value)]):
        sp.collect(model, random_rows(3), progress=False)
    assert not is_verified(model)
    sp.collect(model, random_rows(3), progress=False)
    assert is_verified(model)
    assert is_verified(sp.load_model("demo"))


def test_another_thread_cannot_use_a_model_while_it_is_verified() -> None:
    model = tiny_bridge("opt")
    errors: list[BaseException | None] = []

    def evaluate_in_thread(*_: Any) -> None:
        with ThreadPoolExecutor(1) as pool:
            errors.append(pool.submit(sp.evaluate, model, random_rows(3), progress=False).exception())

    handle = model.blocks[0].register_forward_pre_hook(evaluate_in_thread)
    verify_once(model)
    handle.remove()
    assert [str(error)[:29] for error in errors] == ["the model is in use by the th"]


def test_the_mode_of_the_model_is_restored_after_an_error() -> None:
    model = tiny_bridge("opt").train()

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    handle = model.blocks[0].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        verify_once(model)
    handle.remove()
    assert model.training
    assert not is_verified(model)
