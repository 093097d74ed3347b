"""Compare lm-evaluation-harness on a hooked model with plain transformers whose neurons have zero weights."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from factories import DEMO_FOLDER, KINDS, random_mask, tiny_bridge, tiny_hooked, zero_rows

import sp_lens as sp
from sp_lens.models.loading import weights_fingerprint

pytestmark = pytest.mark.harness

QUESTIONS = [
    {"question": "The boat left the", "choices": [" harbour", " import of", " table"], "answer": 0},
    {"question": "def double(x):\n    return", "choices": [" x * 2", " nobody"], "answer": 0},
    {"question": "She said that", "choices": [" he was", ")]}"], "answer": 1},
]
TEXT = "The boat left the harbour at noon. " * 60  # longer than the model's context


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a manager of one task of each kind of the harness, on data in a folder."""
    tasks = pytest.importorskip("lm_eval.tasks", reason="needs lm-eval: pip install '.[eval]'")
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "questions.json").write_text("\n".join(map(json.dumps, QUESTIONS)))
    (folder / "texts.json").write_text(json.dumps({"text": TEXT}))
    kinds = {
        "choose": ("questions", "question", "multiple_choice", {"doc_to_choice": "{{choices}}"}, "acc"),
        "generate": (
            "questions", "question", "generate_until",
            {"generation_kwargs": {"until": ["</s>"], "max_gen_toks": 8, "do_sample": False}}, "exact_match",
        ),
        "read": ("texts", "", "loglikelihood_rolling", {}, "word_perplexity"),
    }  # fmt: skip
    for name, (data, question, kind, extra, metric) in kinds.items():
        files, cache = {"test": str(folder / f"{data}.json")}, str(folder / "cache")
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": files, "cache_dir": cache},
            "test_split": "test",
            "output_type": kind,
            "doc_to_text": f"{{{{{question}}}}}" if question else "",
            "doc_to_target": "answer" if question else "{{text}}",
            "target_delimiter": "",
            "metric_list": [{"metric": metric}],
            **extra,
        }
        (folder / f"{name}.yaml").write_text(json.dumps(task))  # JSON is YAML
    return tasks.TaskManager(include_path=str(folder), include_defaults=False)


@pytest.fixture(scope="module")
def mask(demo: Any) -> sp.NeuronMask:
    """Three in ten neurons of both sites."""
    return random_mask(demo, 0.3)


@pytest.fixture(scope="module")
def pruned(mask: sp.NeuronMask) -> Any:
    """The bundled model in plain transformers, with zero weights for these neurons."""
    hf = transformers.AutoModelForCausalLM.from_pretrained(DEMO_FOLDER, dtype=torch.float32).eval()
    zero_rows("opt", hf, mask)
    return hf


@pytest.fixture(scope="module")
def result(demo: Any, mask: sp.NeuronMask, manager: Any) -> dict[str, Any]:
    """The results of the harness on the model ablated by hooks."""
    before = weights_fingerprint(demo)
    with sp.ablate(demo, mask):
        result = sp.lm_eval(demo, ["choose", "generate", "read"], task_manager=manager, bootstrap_iters=0)
    assert weights_fingerprint(demo) == before
    return result


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(DEMO_FOLDER)


def nats(hf: Any, context: list[int], continuation: list[int]) -> float:
    """Return the log-probability of a continuation."""
    with torch.no_grad():
        log_probs = hf(torch.tensor([(context + continuation)[:-1]])).logits[0].double().log_softmax(-1)
    return sum(log_probs[len(context) + at - 1, token].item() for at, token in enumerate(continuation))


def test_loglikelihoods_match_plain_transformers(result: dict[str, Any], pruned: Any, tokenizer: Any) -> None:
    hits = []
    for question, sample in zip(QUESTIONS, result["samples"]["choose"], strict=True):
        start = tokenizer(question["question"])["input_ids"]
        expected = [
            nats(pruned, start, tokenizer(question["question"] + choice)["input_ids"][len(start) :])
            for choice in question["choices"]
        ]
        assert [response[0][0] for response in sample["resps"]] == pytest.approx(expected, abs=1e-3)
        hits.append(max(range(len(expected)), key=expected.__getitem__) == question["answer"])
    assert result["results"]["choose"]["acc,none"] == sum(hits) / len(hits)


def test_generated_text_matches_plain_transformers(result: dict[str, Any], pruned: Any, tokenizer: Any) -> None:
    """Decoding is greedy, with the key-value cache of transformers."""
    for question, sample in zip(QUESTIONS, result["samples"]["generate"], strict=True):
        start = tokenizer(question["question"], return_tensors="pt")["input_ids"]
        generated = pruned.generate(start, max_new_tokens=8, do_sample=False)[0, start.shape[1] :]
        assert sample["resps"][0][0] == tokenizer.decode(generated, skip_special_tokens=True)


def test_rolling_perplexity_matches_plain_transformers(result: dict[str, Any], pruned: Any, tokenizer: Any) -> None:
    """Each token is scored once, in windows of 256 tokens, the last of which overlaps; the perplexity is per word."""
    tokens = tokenizer(TEXT)["input_ids"]  # BOS is scored as a token of the text, predicted from another BOS
    assert 256 < len(tokens) < 1024
    starts = range(0, len(tokens), 256)
    expected = 0.0
    for start in starts:
        end = min(start + 256, len(tokens))
        before = [tokenizer.bos_token_id] if start == 0 else tokens[end - 257 : start]
        expected += nats(pruned, before, tokens[start:end])
    (measured,) = (response[0] for response in result["samples"]["read"][0]["resps"])
    assert measured == pytest.approx(expected, rel=1e-5)
    perplexity = result["results"]["read"]["word_perplexity,none"]
    assert perplexity == pytest.approx(math.exp(-measured / len(TEXT.split())), rel=0.02)


def test_an_exported_folder_scores_the_same(
    demo: Any, mask: sp.NeuronMask, result: dict[str, Any], manager: Any, tmp_path: Path
) -> None:
    """The folder is read as by `lm_eval --model hf --model_args pretrained=pruned/`."""
    lm_eval = pytest.importorskip("lm_eval")
    folder = sp.export(demo, mask, tmp_path / "pruned")
    exported = lm_eval.simple_evaluate(
        "hf", model_args=f"pretrained={folder}", tasks=["choose", "generate", "read"], device="cpu",
        task_manager=manager, bootstrap_iters=0,
    )  # fmt: skip
    for task in ("choose", "read"):
        for here, there in zip(result["samples"][task], exported["samples"][task], strict=True):
            numbers = [[response[0] for response in sample["resps"]] for sample in (here, there)]
            assert torch.allclose(torch.tensor(numbers[0]), torch.tensor(numbers[1]), atol=1e-3)
    for here, there in zip(result["samples"]["generate"], exported["samples"]["generate"], strict=True):
        assert here["resps"] == there["resps"]


def test_limit_restricts_the_number_of_documents(demo: Any, manager: Any) -> None:
    result = sp.lm_eval(demo, ["choose"], limit=2, task_manager=manager, bootstrap_iters=0)
    assert len(result["samples"]["choose"]) == 2


@pytest.mark.model
def test_other_kinds_of_models_are_an_error() -> None:
    with pytest.raises(sp.SpLensError, match="predicts masked tokens, but lm-evaluation-harness needs"):
        sp.lm_eval(tiny_bridge("bert"), ["choose"])
    with pytest.raises(sp.SpLensError, match="predicts the class of an image"):
        sp.lm_eval(tiny_bridge("vit"), ["choose"])
    if "hooked" in KINDS:
        with pytest.raises(sp.SpLensError, match="reads a transformers model, and HookedTransformer contains none"):
            sp.lm_eval(tiny_hooked("opt"), ["choose"])


def test_the_error_without_the_harness_names_the_package_to_install(demo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    with pytest.raises(sp.SpLensError, match=r"pip install 'sp_lens\[eval\]'"):
        sp.lm_eval(demo, ["choose"])
