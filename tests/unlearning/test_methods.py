"""Compare the unlearning methods with plain transformers, float64 and numpy, and test that they restore the model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pandas as pd
import pytest
import torch
from factories import HERE, TINY, plain_activations, random_rows, tiny_bridge, tiny_hf

import sp_lens as sp
from sp_lens.data.corpora import Corpora
from sp_lens.unlearning import training, unlearn

pytestmark = pytest.mark.model

METHODS: dict[str, Callable[..., Any]] = {
    name: getattr(sp.unlearning, name)
    for name in (
        "amnesiac",
        "bad_teacher",
        "fine_tune",
        "gradient_ascent",
        "magnitude",
        "selective_synaptic_dampening",
        "task_arithmetic",
    )
}  # all that read text; test_training_methods.py tests unsir, which reads images
TRAINED = ("fine_tune", "gradient_ascent", "task_arithmetic")


def corpora(length: int = 0) -> Corpora:
    """Return six rows per corpus, of one length (a mean over a batch is then a mean over rows) or of random lengths."""
    forget, retain, eval_forget, eval_retain = (
        [torch.arange(length) * (7 + seed) + 2 + 31 * n for n in range(6)] if length else random_rows(6, seed=seed)
        for seed in range(4)
    )
    return Corpora(forget, retain, eval_forget, eval_retain)


def run(name: str, model: Any, **options: Any) -> Any:
    """Run a method for two steps on random rows; `options` override these defaults."""
    return METHODS[name](model, **{**corpora(), "steps": 2, "progress": False, **options})


def row_loss(hf: Any, row: torch.Tensor) -> torch.Tensor:
    """Mean next-token loss of a row in plain transformers."""
    log_probabilities = hf(row[None]).logits[0, :-1].log_softmax(-1)
    return -log_probabilities.gather(1, row[1:, None]).mean()


def log_probabilities(model: Any) -> torch.Tensor:
    """Predictions for one fixed row, from a bridge or a transformers model."""
    with torch.no_grad():
        output = model(torch.arange(2, 40)[None])
    return getattr(output, "logits", output).log_softmax(-1)


@pytest.mark.parametrize("family", TINY)
def test_gradients_flow_through_the_bridge(family: str) -> None:
    """One step of plain SGD on plain transformers: theta + lr * grad on forget, theta - lr * grad on retain.

    The predictions are compared, because a bridge stores some weights in other shapes than transformers.
    """
    text = corpora(length=12)
    for name, side, sign in (("gradient_ascent", "forget", 1), ("fine_tune", "retain", -1)):
        hf, model = tiny_hf(family), tiny_bridge(family)
        torch.stack([row_loss(hf, row) for row in text[side]]).mean().backward()
        with torch.no_grad():
            for parameter in hf.parameters():
                if parameter.grad is not None:
                    parameter.add_(sign * 0.5 * parameter.grad)
        before = log_probabilities(model)
        result = run(name, model, steps=1, optimizer="sgd", learning_rate=0.5, **text)
        with result.applied(model):
            changed = log_probabilities(model)
        torch.testing.assert_close(changed, log_probabilities(hf), atol=2e-5, rtol=0)
        assert (changed - before).abs().max() > 1e-3
        assert torch.equal(log_probabilities(model), before)


@pytest.mark.parametrize("name", TRAINED)
def test_weights_are_those_of_adamw_on_plain_transformers(name: str) -> None:
    """A batch contains all rows, so their order has no effect. There is no weight decay."""
    text, model = corpora(length=12), tiny_bridge("opt")
    result = run(name, model, updates=3, **text)
    hf = tiny_hf("opt")
    theta = {key: parameter.detach().clone() for key, parameter in hf.named_parameters()}
    ascend, side = name == "gradient_ascent", "retain" if name == "fine_tune" else "forget"
    optimizer = torch.optim.AdamW(hf.parameters(), lr=1e-4, weight_decay=0.0, maximize=ascend)
    for _ in range(3 if name == "task_arithmetic" else 6):
        optimizer.zero_grad()
        torch.stack([row_loss(hf, row) for row in text[side]]).mean().backward()
        optimizer.step()
    weights = plain_names(result)
    # Where the gradient is close to 0, rounding decides the sign of Adam's step, so a few weights differ.
    changes, expected = [], []
    for key, parameter in hf.named_parameters():
        changes.append((weights.get(key, theta[key]) - theta[key]).flatten())
        change = parameter.detach() - theta[key]
        expected.append((-0.2 * change if name == "task_arithmetic" else change).flatten())
    difference = (torch.cat(changes) - torch.cat(expected)).abs()
    assert (difference < 1e-6).float().mean() > 0.999
    assert torch.cat(expected).abs().max() > 1e-5


def plain_names(result: Any) -> dict[str, torch.Tensor]:
    """The weights of a run under the names of transformers."""
    return {key.replace("._original_component", ""): value for key, value in result.weights.items()}


def test_task_arithmetic_with_weight_1() -> None:
    """theta - (theta_ft - theta), where `fine_tune` on the same text gives theta_ft."""
    model, text = tiny_bridge("opt"), corpora()
    theta = {name: p.detach().clone() for name, p in model.original_model.named_parameters()}
    tuned = run("fine_tune", model, steps=1, updates=5, **{**text, "retain": text["forget"]})
    negated = run("task_arithmetic", model, steps=1, updates=5, scale=1.0, **text)
    assert negated.weights.keys() == tuned.weights.keys()
    for name, value in negated.weights.items():
        torch.testing.assert_close(value, theta[name] - (tuned.weights[name] - theta[name]), atol=0, rtol=0)


@pytest.mark.parametrize("family", TINY)
def test_dampening_equals_the_formula_in_float64(family: str) -> None:
    """The equations of selection and dampening of Foster et al. 2023, with the gradient of each row."""
    text = corpora()
    hf, model = tiny_hf(family).double(), tiny_bridge(family).to(torch.float64)
    result = run("selective_synaptic_dampening", model, steps=3, alpha=3.0, decay=0.5, dampening=0.8, **text)
    fisher: dict[str, dict[str, torch.Tensor]] = {}
    for side in ("forget", "retain"):
        fisher[side] = {name: torch.zeros_like(p) for name, p in hf.named_parameters()}
        for row in text[side]:
            hf.zero_grad()
            row_loss(hf, row).backward()
            for name, p in hf.named_parameters():
                if p.grad is not None:
                    fisher[side][name] += p.grad**2 / len(text[side])
    alpha, weights, dampened, total = 3.0 * 0.5**2, plain_names(result), 0, 0
    for name, p in hf.named_parameters():
        f, r = fisher["forget"][name], fisher["retain"][name]
        if f.max() < 1e-15:  # the bias of the keys: attention does not depend on it, so its gradient is rounding error
            continue
        beta = (0.8 * r / f).nan_to_num().clamp(max=1)
        expected = torch.where(f > alpha * r, beta * p.detach(), p.detach())
        if family == "opt":  # other bridges have other parameters; their predictions are compared below
            # Losses are computed in float32 for all weights, so a ratio of squared gradients is accurate to 1e-5.
            torch.testing.assert_close(weights.get(name, p.detach()), expected, atol=1e-8, rtol=5e-5)
        with torch.no_grad():
            p.copy_(expected)
        dampened += int(((f > alpha * r) & (beta < 1)).sum())
        total += p.numel()
    assert result.history["dampened"].iloc[-1] == pytest.approx(dampened / total, abs=1e-3)
    with result.applied(model):
        torch.testing.assert_close(log_probabilities(model), log_probabilities(hf), atol=1e-3, rtol=0)
    assert 0 < result.history["dampened"].iloc[1] < result.history["dampened"].iloc[-1] < 1


@pytest.mark.parametrize("site", ["mlp", "attn"])
def test_magnitude_equals_numpy(site: str) -> None:
    text, hf, model = corpora(), tiny_hf("opt"), tiny_bridge("opt")
    result = run("magnitude", model, site=site, fraction=0.1, **text)
    activations = plain_activations("opt", hf, text["forget"])
    scores, neurons = [], []
    for layer, block in enumerate(hf.model.decoder.layers):
        name = f"blocks.{layer}.mlp.hook_post" if site == "mlp" else f"blocks.{layer}.attn.hook_z"
        weight = (block.fc2 if site == "mlp" else block.self_attn.out_proj).weight.detach().double().numpy()
        z = activations[name].numpy()
        scores += list(np.sqrt((weight**2).sum(axis=0)) * np.sqrt((z**2).mean(axis=0)))  # weight is [out, neuron]
        neurons += [(name, neuron) for neuron in range(z.shape[1])]
    count = round(0.1 * len(scores))
    order = [neurons[index] for index in np.argsort(-np.array(scores), kind="stable")]
    for step in (1, 2):
        pruned = {(name, int(neuron)) for name, mask in result.mask_at(step).items() for neuron in mask.nonzero()}
        assert pruned == set(order[: step * count])
        with sp.ablate(model, result.mask_at(step)):  # the history is that of zeroed weights
            loss = sp.evaluate(model, text["eval_retain"], progress=False).loss
        assert result.history["retain_loss"][step] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_the_history_and_figures_are_those_of_a_pruning_run(name: str, opt: Any) -> None:
    pruned = sp.prune(opt, **corpora(), steps=2, fraction=0.1, progress=False)
    result = run(name, opt)
    columns = [column for column in result.history if column != "dampened"]
    assert columns == list(pruned.history)
    assert result.history.iloc[0][columns].tolist() == pruned.history.iloc[0].tolist()
    assert result.steps == 2
    drops = result.history["forget_drop"] - result.history["retain_drop"]
    assert result.best_step == drops.argmax()
    assert result.selectivity == result.best_hits().selectivity <= drops.max() + 1e-9
    for figure in (sp.plots.tradeoff, sp.plots.perplexity):
        drawn: Any = figure({"selective pruning": pruned, "other": result})
        assert [trace["name"] for trace in drawn.data if trace["name"]] == ["selective pruning", "other"]
    unnamed: Any = sp.plots.tradeoff([pruned, result])
    labels = [trace["name"] for trace in unnamed.data if trace["name"]]
    assert len(set(labels)) == 2


@pytest.mark.parametrize("name", METHODS)
def test_the_same_call_gives_the_same_run_and_more_steps_extend_it(name: str, opt: Any) -> None:
    first, second, longer = run(name, opt), run(name, opt), run(name, opt, steps=3)
    pd.testing.assert_frame_equal(first.history, second.history, check_exact=True)
    pd.testing.assert_frame_equal(first.history, longer.history[:3], check_exact=True)
    if isinstance(first, sp.unlearning.UnlearningRun):
        assert first.weights.keys() == second.weights.keys()
        assert all(torch.equal(first.weights[key], second.weights[key]) for key in first.weights)


def bits(model: Any) -> list[Any]:
    return [(p.detach().clone(), p.requires_grad, p.grad, model.training) for p in model.parameters()]


def assert_same_bits(model: Any, before: list[Any]) -> None:
    for (value, *rest), (other, *others) in zip(bits(model), before, strict=True):
        assert torch.equal(value, other)
        assert rest == others


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_restored_bit_for_bit(name: str, fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_bridge("opt")
    model.train()
    next(model.parameters()).requires_grad_(False)
    before = bits(model)
    if fails:
        calls = []
        evaluate = unlearn.evaluate_sides

        def failing(*arguments: Any, **options: Any) -> Any:
            calls.append(1)
            if len(calls) == 3:
                raise RuntimeError("out of memory")
            return evaluate(*arguments, **options)

        monkeypatch.setattr(unlearn, "evaluate_sides", failing)
        with pytest.raises(RuntimeError, match="out of memory"):
            run(name, model)
    else:
        run(name, model)
    assert_same_bits(model, before)


def test_weights_are_saved_and_applied(opt: Any, tmp_path: Path) -> None:
    result = run("gradient_ascent", opt, learning_rate=1e-2)
    result.save(tmp_path / "ascent.safetensors")
    loaded = sp.unlearning.UnlearningRun.load(tmp_path / "ascent.safetensors")
    pd.testing.assert_frame_equal(loaded.history, result.history, check_exact=True)
    assert loaded.settings == result.settings
    before = bits(opt)
    with loaded.applied(opt) as changed:
        evaluation = sp.evaluate(changed, corpora()["eval_forget"], progress=False)
        empty = sp.NeuronMask.from_neurons(sp.layout_of(opt), {})
        sp.export(changed, empty, tmp_path / "changed")  # compares the folder's logits with the model's
    assert evaluation.loss == result.history["forget_loss"].iloc[-1]
    assert_same_bits(opt, before)
    with (
        pytest.raises(sp.SpLensError, match="Load the original model, unchanged"),
        loaded.applied(tiny_bridge("gpt2")),
    ):
        pass
    with pytest.raises(sp.SpLensError, match="prunes no neurons"):
        sp.plots.pruned_by_layer(loaded)  # pyright: ignore[reportArgumentType]


@pytest.mark.skipif(HERE < (4, 3), reason="TransformerLens has a bridge for RoBERTa since 4.3")
@pytest.mark.parametrize("name", METHODS)
def test_masked_language_models_are_supported(name: str) -> None:
    model = tiny_bridge("roberta")
    before = bits(model)
    history = run(name, model).history
    assert history[["forget_loss", "retain_loss"]].notna().all(axis=None)
    assert history["forget_loss"].nunique() > 1
    assert_same_bits(model, before)


SAME = corpora(length=20)["retain"]
INVALID: list[tuple[str, str, dict[str, Any]]] = [
    ("fine_tune", "steps=0: expected a number above 0", {"steps": 0}),
    ("gradient_ascent", "unknown optimizer 'adam': choose one of 'adamw', 'sgd'", {"optimizer": "adam"}),
    ("gradient_ascent", "learning_rate=-0.1", {"learning_rate": -0.1}),
    ("fine_tune", "updates=0", {"updates": 0}),
    ("task_arithmetic", "scale=0", {"scale": 0.0}),
    ("selective_synaptic_dampening", "alpha=-1", {"alpha": -1.0}),
    ("selective_synaptic_dampening", "decay=1.5: expected a number above 0 and below 1", {"decay": 1.5}),
    ("magnitude", "no neurons at site 'ffn'", {"site": "ffn"}),
    ("magnitude", "leave nothing to prune after step 2", {"fraction": 0.5, "steps": 3}),
    ("fine_tune", "eval_retain has 6 rows that are in retain too", {"retain": SAME, "eval_retain": SAME}),
]


@pytest.mark.parametrize(("name", "message", "options"), INVALID, ids=[message for _, message, _ in INVALID])
def test_invalid_options_raise_before_any_forward_pass(
    opt: Any, name: str, message: str, options: dict[str, Any]
) -> None:
    calls: list[int] = []
    handle = opt.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(sp.SpLensError, match=message):
        run(name, opt, **options)
    handle.remove()
    assert not calls


def test_quantized_weights_raise() -> None:
    model = tiny_bridge("opt")
    packed = torch.nn.Parameter(torch.zeros(4, dtype=torch.int8), requires_grad=False)
    model.original_model.register_parameter("packed", packed)
    with pytest.raises(sp.SpLensError, match="the weight packed of 'tiny-opt' is quantized or offloaded"):
        run("gradient_ascent", model)


def test_nan_weights_and_text_without_a_prediction_raise() -> None:
    model = tiny_bridge("opt")
    before = bits(model)
    with pytest.raises(
        sp.SpLensError, match=r"step 1 of gradient ascent: the model's logits are NaN: .* smaller steps"
    ):
        run("gradient_ascent", model, optimizer="sgd", learning_rate=1e38)
    for name in ("fine_tune", "selective_synaptic_dampening"):
        with pytest.raises(sp.SpLensError, match="nothing to predict"):
            run(name, model, retain=[torch.tensor([model.tokenizer.eos_token_id] * 3)])
    assert_same_bits(model, before)


def test_the_losses_change_in_the_expected_direction(demo: Any) -> None:
    """On a few hundred tokens, ascent increases the forget loss and fine-tuning does not increase the retain loss."""
    text = sp.load_corpora("code", "prose", demo, tokens=400, offline=True)
    ascent = run("gradient_ascent", demo, **text)
    assert ascent.history["forget_loss"].is_monotonic_increasing
    assert ascent.history["forget_loss"].iloc[-1] > ascent.history["forget_loss"].iloc[0] + 0.01
    tuned = run("fine_tune", demo, learning_rate=2e-5, **text)
    assert tuned.history["retain_loss"].iloc[-1] <= tuned.history["retain_loss"].iloc[0]


def test_the_keyword_types_have_the_fields_of_the_options() -> None:
    """`RunKeywords` and `TrainingKeywords` exist for type checkers only, which cannot derive them."""
    assert get_type_hints(training.RunKeywords) == get_type_hints(sp.unlearning.RunOptions)
    assert get_type_hints(training.TrainingKeywords) == get_type_hints(sp.unlearning.TrainingOptions)
