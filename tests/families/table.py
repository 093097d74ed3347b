"""Define the checks of the conformance suite, and write the documentation page with their results."""

from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, NamedTuple

import pytest

from families.architectures import FAMILIES, Family


class Check(NamedTuple):
    """The largest allowed error of a check, and a description of what is compared."""

    within: float
    what: str


CHECKS = {
    "bridge": Check(1e-5, "logits of the hooked model, and of plain transformers"),
    "stats": Check(
        1e-5,
        "`freq`, `abs`, `rms`, `std` of `collect`, and the formulas in float64 on activations from forward pre-hooks "
        "in plain transformers, relative to the largest value in the layer",
    ),
    "evaluate": Check(
        1e-5,
        "loss of `evaluate` (next tokens, masked tokens, or image classes), and of plain transformers row by row",
    ),
    "hooks": Check(1e-5, "logits with `ablate` or `ablation_hooks`, and of plain transformers with zeroed weights"),
    "folded": Check(1e-5, "the same with `fold_mask` instead of hooks"),
    "export": Check(
        1e-5,
        "the same for the exported folder, loaded by plain transformers and by `load_model`",
    ),
    "compact": Check(
        1e-5,
        "the same with neurons removed from the weights: by `compact`, temporarily by `prune`, and in the folder of "
        "`export(..., compact=True)`",
    ),
    "heads": Check(
        1e-5,
        "`hook_z` of each query head, and the attention pattern of plain transformers times the values of the "
        "key-value head that it shares",
    ),
    "padding": Check(
        1e-5,
        "`collect`, `evaluate` and logits of rows padded on the left or on the right, with an attention mask, and "
        "those of plain transformers on each row alone",
    ),
    "fused": Check(
        1e-5,
        "`hook_z` and `hook_post`, relative to the largest value, and logits, with some neurons ablated: with fused "
        "attention, which is used whenever no gradients are needed, and with the attention of TransformerLens",
    ),
    "bfloat16": Check(0.03, "`abs`, `rms`, `std` and loss in bfloat16 and in float32, relative to the largest value"),
    "float16": Check(0.005, "the same in float16"),
}


@dataclass
class Measured:
    """The largest error of each check on each family in this run, and the tests that measured it."""

    errors: dict[str, dict[str, float]] = field(default_factory=dict)
    tests: dict[str, set[str]] = field(default_factory=dict)

    def keep(self, family: str, check: str, error: float, test: str) -> None:
        errors = self.errors.setdefault(family, {})
        errors[check] = max(error, errors.get(check, 0.0))
        self.tests.setdefault(check, set()).add(test)


# The results of the conformance suite in the configuration of pytest.
MEASURED = pytest.StashKey[Measured]()


def page(measured: Measured, models: dict[str, Any]) -> str:
    """Return the documentation page. The facts about a family are read from its plain transformers model."""
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
        "For each hook, the module of plain transformers whose input it is. The heads are those of the tiny model.",
        _rows(["family", "transformers class", "`mlp.hook_post`", "`attn.hook_z`", "gated", "heads / kv"], facts),
        "## Largest errors",
        f"Measured on a CPU with {versions}.",
        _rows(["family", *CHECKS], errors),
        "## What is compared",
        _rows(["check", "test", "what is compared", "limit"], checks),
        _TAIL + "".join(_skipped(FAMILIES[name]) for name in names),
    ]
    return "\n\n".join(sections) + "\n"


_HEAD = """# Architectures

<!-- Written by `make families` from tests/families. Do not edit it by hand. -->

Each of these architectures passes the same tests (`tests/families/test_families.py`) on a tiny random model with its
configuration. Other models whose blocks have `attn.hook_z` and `mlp.hook_post` are accepted too. To test one of them,
add an entry to `tests/families/architectures.py` and run `make families`."""

_TAIL = """In addition, for each architecture: the names of hooks, the widths and the heads agree with the weights of
plain transformers, and hooks are removed without a trace, also after an exception (logits and weights are bitwise
equal, and no hook remains).

## Limitations

- RoBERTa needs TransformerLens 4.3. A BERT without its masked-LM head or a ViT without its classifier supports
  `collect` and `score`. `evaluate`, `prune` and `ablation_effect` raise an error, because it does not predict anything.
- `top_examples` shows text, and raises an error for image models.
- Post-norm OPT (the 350M): `run_with_cache` of TransformerLens fails without `names_filter`, because it drops a
  dimension when it caches `ln2`. Pass the names of the hooks that you need.
- TransformerLens 4.3 does not load Persimmon, Helium, DiffLlama, and Falcon with its new decoder. InternLM2 and
  Baichuan come with code of their own and are not tested.
- The following architectures raise an error that explains the reason: mixtures of experts (Mixtral, Qwen2-MoE,
  Qwen3-MoE), encoder-decoders (T5), latent attention (DeepSeek, Youtu), and blocks without attention and MLP
  (Mamba)."""


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


def _skipped(family: Family) -> str:
    """Return one line for each check that does not apply to the family."""
    return "".join(f"\n- `{family.name}`, no `{check}`: {reason}." for check, reason in family.skipped.items())


def _number(error: float | None) -> str:
    return "-" if error is None else "0" if error == 0 else _short(f"{error:.1e}")


def _short(number: str) -> str:
    return number.replace("e-0", "e-")


def _rows(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
