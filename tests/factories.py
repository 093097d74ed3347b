"""Inputs of the tests: tiny random models of several families, random rows of tokens, and random document hits."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from families.architectures import FAMILIES, REFUSED

import sp_lens as sp
from sp_lens.data.corpora import Corpora
from sp_lens.evaluation.document_hits import DocumentHits
from sp_lens.models.plain_model import verify_once

DEMO_FOLDER = Path(str(files("sp_lens.assets") / "demo"))
DEMO_MASKED_FOLDER = Path(str(files("sp_lens.assets") / "demo-masked"))


def tiny_hf(family: str, seed: int = 0) -> Any:
    """Return a random transformers model of a family, with weights large enough that every neuron has an effect."""
    kind, options = FAMILIES[family][1:3] if family in FAMILIES else REFUSED[family]
    torch.manual_seed(seed)
    model = kind(kind.config_class(**options, attn_implementation="eager")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.config.architectures = [kind.__name__]
    return model


def bridge_of(hf_model: Any, name: str) -> Any:
    """Return a bridge around a transformers model, with the bundled tokenizer or an image processor."""
    from transformer_lens.model_bridge import TransformerBridge

    tokenizer = None
    if hf_model.main_input_name == "input_ids":
        masked = type(hf_model).__name__.endswith("ForMaskedLM")
        tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO_MASKED_FOLDER if masked else DEMO_FOLDER)
    bridge: Any = TransformerBridge.boot_transformers(name, hf_model=hf_model, tokenizer=tokenizer, device="cpu")
    if tokenizer is None:
        size = hf_model.config.image_size
        bridge.processor = transformers.ViTImageProcessorPil(size={"height": size, "width": size})
    return bridge


def tiny_bridge(family: str, seed: int = 0) -> Any:
    """Return a random model of a family as a bridge."""
    return bridge_of(tiny_hf(family, seed), f"tiny-{family}")


def random_rows(count: int, *, seed: int = 0, longest: int = 24) -> list[torch.Tensor]:
    """Return rows of random tokens, none of them special, with random lengths from 2 to `longest`."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, longest + 1, (count,), generator=generator).tolist()
    return [torch.randint(2, 4096, (length,), generator=generator) for length in lengths]


def padded(rows: list[torch.Tensor], side: str, pad_id: int) -> dict[str, torch.Tensor]:
    """Return the rows in the format of a tokenizer, padded on one side to the length of the longest row."""
    longest = max(map(len, rows))
    ids, mask = torch.full((len(rows), longest), pad_id), torch.zeros((len(rows), longest), dtype=torch.long)
    for index, row in enumerate(rows):
        real = slice(longest - len(row), None) if side == "left" else slice(len(row))
        ids[index, real], mask[index, real] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


def tiny_hooked(family: str, seed: int = 0) -> Any:
    """Return the same random model as a `HookedTransformer` with unprocessed weights (TransformerLens 3)."""
    # Import by name, because the type checker sees TransformerLens 4, which has none of these.
    transformer_lens: Any = importlib.import_module("transformer_lens")
    weight_conversions = importlib.import_module("transformer_lens.pretrained.weight_conversions")
    hf = tiny_hf(family, seed)
    options: dict[str, dict[str, Any]] = {
        "gpt2": {"act_fn": "gelu_new", "d_mlp": 128, "normalization_type": "LN"},
        "opt": {"act_fn": "relu", "d_mlp": 48, "normalization_type": "LN"},
        "neox": {
            "act_fn": "gelu",
            "d_mlp": 48,
            "normalization_type": "LN",
            "positional_embedding_type": "rotary",
            "rotary_dim": 2,
            "parallel_attn_mlp": True,
        },
        "llama": {
            "act_fn": "silu",
            "d_mlp": 48,
            "normalization_type": "RMS",
            "positional_embedding_type": "rotary",
            "rotary_dim": 8,
            "rotary_adjacent_pairs": False,
            "gated_mlp": True,
            "final_rms": True,
            "n_key_value_heads": 2,
            "eps": 1e-6,
        },
    }
    cfg = transformer_lens.HookedTransformerConfig(
        n_layers=2, d_model=32, n_ctx=128, d_head=8, n_heads=4, d_vocab=4096, model_name=f"tiny-{family}",
        device="cpu", **options[family],
    )  # fmt: skip
    model = transformer_lens.HookedTransformer(cfg, tokenizer=transformers.AutoTokenizer.from_pretrained(DEMO_FOLDER))
    state = getattr(weight_conversions, f"convert_{family}_weights")(hf, cfg)
    model.load_state_dict(state, strict=False)
    return model


@dataclass(frozen=True)
class Tiny:
    """A hooked model, and as a reference the plain transformers model that it was made from."""

    family: str
    model: Any
    hf: Any


# The families on which tests of models run; tests/families covers all supported families.
TINY = ("gpt2", "opt", "neox", "llama")


# TransformerLens 4 removed HookedTransformer and only has the bridge.
HERE = tuple(map(int, version("transformer_lens").split(".")[:2]))


KINDS = ("bridge",) if HERE >= (4,) else ("bridge", "hooked")


def output_modules(family: str, hf: Any) -> dict[str, Any]:
    """Return, by hook name, the transformers module whose input the hook sees, without using sp_lens."""
    modules = {}
    for layer in range(hf.config.num_hidden_layers):
        mlp, attn = (hf.get_submodule(path.format(layer)) for path in FAMILIES[family][3:5])
        modules[f"blocks.{layer}.attn.hook_z"] = attn
        modules[f"blocks.{layer}.mlp.hook_post"] = mlp
    return modules


def zero_rows(family: str, hf: Any, mask: sp.NeuronMask) -> None:
    """Prune the plain transformers model permanently, by setting the output weights of each masked neuron to zero."""
    with torch.no_grad():
        for name, module in output_modules(family, hf).items():
            if name in mask:
                weight = module.weight if family == "gpt2" else module.weight.T  # GPT-2's Conv1D is transposed
                weight[mask[name]] = 0


def plain_activations(
    family: str, hf: Any, rows: list[torch.Tensor], *, positions: slice = slice(1, None)
) -> dict[str, torch.Tensor]:
    """Return the activations of plain transformers, row by row without padding: {hook name: float64 [token neuron]}.

    By default the first token of each row is left out, as in `collect`.
    """
    activations: dict[str, list[torch.Tensor]] = {}
    modules = output_modules(family, hf)
    handles = [
        module.register_forward_pre_hook(
            lambda _, inputs, name=name: activations.setdefault(name, []).append(inputs[0].flatten(0, -2)[positions])
        )
        for name, module in modules.items()
    ]
    with torch.no_grad():
        for row in rows:
            hf(row[None])
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts).double() for name, parts in activations.items()}


def random_mask(model: Any, share: float, seed: int = 0) -> sp.NeuronMask:
    """Return a mask of a random share of all neurons."""
    generator = torch.Generator().manual_seed(seed)
    layout = sp.layout_of(model)
    return sp.NeuronMask(layout, {g.name: torch.rand(g.width, generator=generator) < share for g in layout})


def count_hooks(model: Any) -> int:
    """Return the number of hooks on the model's hook points, counted by TransformerLens and by torch."""
    return sum(len(point.fwd_hooks) + len(point._forward_hooks) for point in model.hook_dict.values())


@contextmanager
def little_memory(model: Any, rows: int) -> Iterator[list[int]]:
    """Context manager in which forward passes over more than `rows` rows run out of memory.

    Yields a list that collects the number of rows of each pass.
    """
    verify_once(model)  # in a forward pass of its own
    seen: list[int] = []

    def runs_out(module: Any, given: tuple[torch.Tensor, ...], _: Any = None) -> None:
        seen.append(len(given[0]))
        if len(given[0]) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    handle = model.blocks[-1].register_forward_pre_hook(runs_out)
    try:
        yield seen
    finally:
        handle.remove()


def same(one: sp.ActivationStats, other: sp.ActivationStats) -> None:
    """Assert that two statistics are equal up to rounding."""
    for name in one:
        mine, theirs = one[name].tensors(), other[name].tensors()
        assert one[name].count == other[name].count
        for key in mine:
            torch.testing.assert_close(mine[key], theirs[key], rtol=1e-5, atol=1e-6, msg=lambda m, k=key: f"{k}: {m}")


def corpora(model: Any, forget: str, retain: str, tokens: int) -> Corpora:
    """Return the collect and evaluate corpora of two registered names, from offline text."""
    return sp.load_corpora(forget, retain, model, tokens=tokens, offline=True)


def hits_of(seed: int, documents: int = 30, lost: float = 0.5) -> DocumentHits:
    """Return hits on random documents of random lengths, with fewer correct predictions after pruning than before."""
    generator = np.random.default_rng(seed)
    tensors = {}
    for side, loss in (("forget", lost), ("retain", 0.1)):
        counts = generator.integers(5, 60, documents)
        before = generator.binomial(counts, 0.5)
        after = before - generator.binomial(before, loss)
        for what, values in (("counts", counts), ("before", before), ("after", after)):
            tensors[f"{side}_{what}"] = torch.tensor(values)
    return DocumentHits(tensors)
