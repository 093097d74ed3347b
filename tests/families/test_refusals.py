"""Test that unsupported models and inputs raise an error before any work starts, and that it says what to do."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from factories import DEMO_FOLDER, bridge_of, random_mask, random_rows, tiny_bridge

import sp_lens as sp
from families.architectures import FAMILIES

pytestmark = pytest.mark.model

NO_NEURONS = {
    "mixtral": r"block 0 is a mixture of experts \(MoEBridge\).*Load a model with dense MLPs",
    "qwen2-moe": r"block 0 is a mixture of experts",
    "qwen3-moe": r"block 0 is a mixture of experts",
    "t5": r"T5ForConditionalGeneration is an encoder-decoder: it has encoder_blocks and decoder_blocks",
    "mamba": r"MambaForCausalLM has neither attn.hook_z nor mlp.hook_post .* consist of norm, mixer",
    "deepseek": r"the attn of block 0 has no W_O that can be divided into neurons",
}
# The functions that take a model, applied to rows of tokens.
FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "layout_of": sp.layout_of,
    "collect": lambda model: sp.collect(model, _must_not_be_read(), progress=False),
    "ablation_effect": lambda model: sp.ablation_effect(model, _must_not_be_read(), progress=False),
    "prune": lambda model: _prune(model, _must_not_be_read()),
}


def _must_not_be_read() -> Any:
    """Return a corpus that fails the test when it is read."""
    yield pytest.fail("the corpus was read")


def _prune(model: Any, corpus: Any) -> Any:
    options: dict[str, Any] = {"fraction": 0.1, "steps": 1, "progress": False}
    return sp.prune(model, corpus, corpus, eval_forget=corpus, eval_retain=corpus, site="mlp", **options)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("name", NO_NEURONS)
def test_a_model_without_neurons_is_rejected(name: str, function: str) -> None:
    with pytest.raises(sp.SpLensError, match=NO_NEURONS[name]):
        FUNCTIONS[function](tiny_bridge(name))


def test_the_message_lists_the_hooks_that_exist() -> None:
    model = tiny_bridge("gpt2")
    mlp = model.blocks[1].mlp  # as if TransformerLens used another name for the hook
    mlp.hook_aliases, mlp._hook_alias_registry = {}, {}
    vars(mlp).pop("hook_post", None)
    with pytest.raises(sp.SpLensError, match=r"GPT2LMHeadModel has no hook blocks\.1\.mlp\.hook_post.*c_proj\.hook_in"):
        sp.layout_of(model)


@pytest.mark.parametrize("read", [sp.collect, sp.evaluate, lambda m, text: sp.load_corpus(text, m, tokens=10)])
def test_text_needs_a_tokenizer(read: Callable[..., Any]) -> None:
    model = tiny_bridge("opt")
    model.tokenizer = None
    with pytest.raises(sp.SpLensError, match="has no tokenizer, so it cannot read text"):
        read(model, ["def add(a, b): return a + b"])
    assert sp.collect(model, random_rows(2), progress=False).count  # tokens it can read


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8], ids=str)
def test_unsupported_dtypes_are_rejected(dtype: torch.dtype) -> None:
    with pytest.raises(sp.SpLensError, match=rf"unknown dtype {dtype}: choose one of torch\.float32"):
        sp.load_model(DEMO_FOLDER, dtype=dtype)


@pytest.mark.parametrize("function", ["evaluate", "ablation_effect", "prune"])
def test_a_model_without_a_head_is_not_evaluated(function: str) -> None:
    torch.manual_seed(0)
    kind, options = FAMILIES["vit"][1:3]
    config = kind.config_class(**options, architectures=["ViTModel"])
    model = bridge_of(transformers.ViTModel(config).eval(), "headless")
    evaluate = {"evaluate": lambda model: sp.evaluate(model, _must_not_be_read(), progress=False)}
    with pytest.raises(sp.SpLensError, match=r"ViTModel has no trained head, so its predictions are meaningless"):
        (FUNCTIONS | evaluate)[function](model)
    image = {"pixel_values": torch.zeros(3, 16, 16), "labels": 0}
    assert sp.collect(model, [image], progress=False).count  # activations are available


def test_a_masked_model_needs_a_mask_token() -> None:
    model = tiny_bridge("bert")
    model.tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO_FOLDER)
    for function in (FUNCTIONS["prune"], lambda model: sp.evaluate(model, _must_not_be_read(), progress=False)):
        with pytest.raises(sp.SpLensError, match="the tokenizer has no mask token"):
            function(model)


def test_an_image_model_rejects_text() -> None:
    model = tiny_bridge("vit")
    text = ["def add(a, b): return a + b"]
    mask = random_mask(model, 0.1)
    for read in (
        lambda: sp.collect(model, text, progress=False),
        lambda: sp.evaluate(model, random_rows(2), progress=False),
        lambda: sp.sample_activations(model, text, mask),
    ):
        with pytest.raises(sp.SpLensError, match=r"item 0 .* is not an image with a class: got (str|Tensor)"):
            read()
    for read in (lambda: sp.load_corpus(text, model, tokens=None), lambda: sp.top_examples(model, text, mask)):
        with pytest.raises(
            sp.SpLensError,
            match=r"ViTForImageClassification reads pixel_values, but this function needs a model that reads tokens",
        ):
            read()


def test_a_language_model_rejects_images() -> None:
    with pytest.raises(sp.SpLensError, match="the model reads tokens, not images"):
        sp.load_images("digits", tiny_bridge("gpt2"))


def test_invalid_images_are_rejected() -> None:
    model = tiny_bridge("vit")
    for item, message in (
        ({"pixel_values": torch.zeros(3, 8, 8), "labels": 0}, r"shape \(3, 8, 8\), but .* expects \(3, 16, 16\)"),
        ({"pixel_values": torch.zeros(3, 16, 16), "labels": 5}, "has class 5, but the classes of the model are 0 to 4"),
        ({"image": None}, "is not an image with a class: got dict with"),
        ({"image": None, "label": 0}, "cannot read item 0 of the corpus as an image and its class"),
        (
            {"pixel_values": torch.zeros(3, 16, 16, dtype=torch.uint8), "labels": 0},
            "normalized floats, got torch.uint8",
        ),
    ):
        with pytest.raises(sp.SpLensError, match=message):
            sp.evaluate(model, [item], progress=False)
    with pytest.raises(sp.SpLensError, match="the corpus is empty"):
        sp.evaluate(model, [], progress=False)
    with pytest.raises(sp.SpLensError, match="expected images and their classes as the corpus, got int"):
        sp.evaluate(model, 7, progress=False)


def test_images_can_be_given_in_batches() -> None:
    model, pixels = tiny_bridge("vit"), torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    one = sp.evaluate(model, [{"pixel_values": p, "labels": n} for n, p in enumerate(pixels)], progress=False)
    batch = {"pixel_values": pixels, "labels": torch.arange(3)}
    assert one == pytest.approx(sp.evaluate(model, batch, progress=False), nan_ok=True)


@pytest.mark.parametrize("saved", ["BertModel", "BertForSequenceClassification"])
def test_an_untrained_head_is_not_evaluated(saved: str) -> None:
    model = tiny_bridge("bert")
    model.original_model.config.architectures = [saved]  # as if TransformerLens had loaded such a folder
    with pytest.raises(sp.SpLensError, match="no trained head"):
        sp.evaluate(model, _must_not_be_read(), progress=False)
