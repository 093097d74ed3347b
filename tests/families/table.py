"""What is measured on every family, how large an error may be, and the documentation's table of what it was."""

from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, NamedTuple

import pytest

from families.architectures import FAMILIES, Family


class Check(NamedTuple):
    """How large an error may be, and what is compared, in words."""

    within: float
    what: str


CHECKS = {
    "bridge": Check(1e-5, "logits of the hooked model and of plain transformers"),
    "stats": Check(
        1e-5,
        "`freq`, `abs`, `rms`, `std` of `collect`, and the formulas in float64 on what forward pre-hooks see in plain "
        "transformers, as a share of the largest in the layer",
    ),
    "evaluate": Check(
        1e-5,
        "loss of `evaluate` (next tokens, masked tokens, or classes of images), and of plain transformers row by row",
    ),
    "hooks": Check(1e-5, "logits with `ablate` or `ablation_hooks`, and with the weights of plain transformers zeroed"),
    "folded": Check(1e-5, "the same with `fold_mask` in place of hooks"),
    "export": Check(
        1e-5,
        "the same of the exported folder, loaded by plain transformers and by `load_model`",
    ),
    "compact": Check(
        1e-5,
        "the same with neurons taken out of the weights: by `compact`, as `prune` does it, and in the folder of "
        "`export(..., compact=True)`",
    ),
    "heads": Check(
        1e-5,
        "`hook_z` of each query head, and in plain transformers its attention pattern times the values of the "
        "key-value head that it shares",
    ),
    "padding": Check(
        1e-5,
        "`collect`, `evaluate` and logits of rows padded on the left or on the right, with an attention mask, and "
        "plain transformers on each row alone",
    ),
    "fused": Check(
        1e-5,
        "`hook_z` and `hook_post` as a share of the largest, and logits, with some neurons ablated: attention in one "
        "kernel, in which all runs that needs no gradients, and as TransformerLens takes it apart",
    ),
    "bfloat16": Check(0.03, "`abs`, `rms`, `std` and loss in bfloat16 and in float32, as a share of the largest"),
    "float16": Check(0.005, "the same in float16"),
}


@dataclass
class Measured:
    """The largest error of each check on each family that a run has seen, and the tests that measured them."""

    errors: dict[str, dict[str, float]] = field(default_factory=dict)
    tests: dict[str, set[str]] = field(default_factory=dict)

    def keep(self, family: str, check: str, error: float, test: str) -> None:
        errors = self.errors.setdefault(family, {})
        errors[check] = max(error, errors.get(check, 0.0))
        self.tests.setdefault(check, set()).add(test)


# What the conformance suite has measured in this run, in the configuration of pytest.
MEASURED = pytest.StashKey[Measured]()


def page(measured: Measured, models: dict[str, Any]) -> str:
    """The page of the documentation; the facts are read off the plain transformers models of the families."""
    names = [name for name in FAMILIES if name in measured.errors]
    facts = [_facts(FAMILIES[name], models[name]) for name in names]
    errors = [[f"`{name}`", *(_number(measured.errors[name].get(check)) for check in CHECKS)] for name in names]
    checks = [
        [name, ", ".join(f"`{test}`" for test in sorted(measured.tests[name])), check.what, _short(f"{check.within:g}")]
        for name, check in CHECKS.items()
        if name in measured.tests
    ]
    versions = ", ".join(f"{name} {version(name)}" for name in ("transformer-lens", "transformers", "torch"))
    sections = [
        _HEAD,
        "## Where the neurons are",
        "By hook, the module in a block of plain transformers whose input it sees. Heads are those of the tiny model.",
        _rows(["family", "transformers class", "`mlp.hook_post`", "`attn.hook_z`", "gated", "heads / kv"], facts),
        "## The largest error",
        f"On a CPU, with {versions}.",
        _rows(["family", *CHECKS], errors),
        "## What is compared",
        _rows(["column", "test", "compared", "at most"], checks),
        _TAIL,
    ]
    return "\n\n".join(sections) + "\n"


_HEAD = """# Architectures

<!-- Written by `make families` out of tests/families; not to be edited by hand. -->

Each of these architectures is held to the same tests (`tests/families/test_families.py`), on a tiny random model made
from its configuration. Other models whose blocks have `attn.hook_z` and `mlp.hook_post` are accepted too; to hold one
to the tests, add a line to `tests/families/architectures.py` and run `make families`."""

_TAIL = """Beside these numbers, for each architecture: hook names, widths and heads are those of the weights of plain
transformers, and hooks that are removed leave no trace, after an exception too (the same logits and weights bit by bit,
and not a hook more).

## What is missing

- RoBERTa needs TransformerLens 4.3. A BERT without its masked-LM head, or a ViT without its classifier, can be
  collected from and scored; `evaluate`, `prune` and `ablation_effect` refuse it, as it predicts nothing.
- `top_examples` shows text, and refuses a model of images.
- OPT with its norms after (the 350M): TransformerLens fails in `run_with_cache` without `names_filter`, as it drops a
  dimension when `ln2` is cached. Name the hooks that you want.
- Refused, with the reason: mixtures of experts (Mixtral, Qwen2-MoE, Qwen3-MoE), encoder-decoders (T5), latent attention
  (DeepSeek), and blocks without attention and MLP (Mamba)."""


def _facts(family: Family, hf: Any) -> list[str]:
    heads = hf.config.num_attention_heads
    gated = any("gate" in name for name, _ in hf.named_parameters())
    return [
        f"`{family.name}`",
        f"`{family.model.__name__}`",
        *(f"`{path.rpartition('{}.')[2]}`" for path in (family.mlp, family.attn)),
        "yes" if gated else "no",
        f"{heads} / {getattr(hf.config, 'num_key_value_heads', heads)}",
    ]


def _number(error: float | None) -> str:
    return "-" if error is None else "0" if error == 0 else _short(f"{error:.1e}")


def _short(number: str) -> str:
    return number.replace("e-0", "e-")


def _rows(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
