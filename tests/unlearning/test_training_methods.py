"""Compare the bad teacher, amnesiac and UNSIR with updates of plain transformers models."""

import math
from typing import Any

import pytest
import torch
from factories import FAMILIES, bridge_of, random_rows, tiny_bridge, tiny_hf

import sp_lens as sp
from sp_lens.unlearning.amnesiac import _wrong_labels
from sp_lens.unlearning.bad_teacher import _random_weights
from sp_lens.unlearning.weights import swapped, weights_of

pytestmark = pytest.mark.model

SIDES = ("forget", "retain", "eval_forget", "eval_retain")


def images(count: int, *, seed: int, labels: int | torch.Tensor) -> list[dict[str, Any]]:
    """Random images of the size of the tiny ViT."""
    pixels = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    classes = torch.as_tensor(labels).expand(count)
    return [{"pixel_values": pixel, "labels": int(label)} for pixel, label in zip(pixels, classes, strict=True)]


def cross_entropy(hf: Any, corpus: list[dict[str, Any]], labels: torch.Tensor | None = None) -> torch.Tensor:
    """Loss in nats of each image, from a plain transformers model."""
    logits = hf(torch.stack([item["pixel_values"] for item in corpus])).logits
    labels = torch.tensor([item["labels"] for item in corpus]) if labels is None else labels
    return torch.nn.functional.cross_entropy(logits, labels, reduction="none")


def step(hf: Any, loss: torch.Tensor, rate: float) -> None:
    """One update of plain gradient descent."""
    hf.zero_grad()
    loss.backward()
    with torch.no_grad():
        for parameter in hf.parameters():
            if parameter.grad is not None:
                parameter.sub_(rate * parameter.grad)


def plain(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Values of weights under the names of transformers."""
    return {name.replace("._original_component", ""): value for name, value in values.items()}


def assert_same_weights(result: Any, hf: Any, before: dict[str, torch.Tensor], atol: float) -> None:
    """Assert that the weights of a run are those of the plain model, which have changed."""
    weights = plain(result.weights)
    changes = [(parameter.detach() - before[name]).abs().max() for name, parameter in hf.named_parameters()]
    assert max(changes) > 100 * atol
    for name, parameter in hf.named_parameters():
        torch.testing.assert_close(weights.get(name, before[name]), parameter.detach(), atol=atol, rtol=0)


def values_of(hf: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in hf.named_parameters()}


def test_updates_of_amnesiac_equal_those_of_plain_transformers() -> None:
    """With two classes, the wrong label is the other class and not random."""
    kind, options = FAMILIES["vit"][1:3]
    config = kind.config_class(**{**options, "num_labels": 2}, attn_implementation="eager")
    torch.manual_seed(0)
    hf, copy = kind(config).eval(), kind(config).eval()
    copy.load_state_dict(hf.state_dict())
    copy.config.architectures = [kind.__name__]
    model = bridge_of(copy, "two-classes")
    corpora = {side: images(4 + 2 * n, seed=n, labels=n % 2) for n, side in enumerate(SIDES)}
    settings: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 0.5, "steps": 2, "progress": False}
    result = sp.unlearning.amnesiac(model, **corpora, **settings)
    before = values_of(hf)
    for _ in range(2):
        wrong = cross_entropy(hf, corpora["forget"], torch.ones(4, dtype=torch.long))  # their class is 0
        step(hf, torch.cat([wrong, cross_entropy(hf, corpora["retain"])]).mean(), 0.5)
    assert_same_weights(result, hf, before, atol=1e-6)


def test_wrong_labels_are_uniform_over_the_other_classes() -> None:
    right = torch.arange(5).repeat(2000)
    wrong = _wrong_labels(right, 5, (0, 0))
    counts = torch.stack([wrong[right == label].bincount(minlength=5) for label in range(5)])
    assert counts.diagonal().tolist() == [0] * 5
    assert (counts[~torch.eye(5, dtype=torch.bool)] - 500).abs().max() < 100  # five standard deviations
    assert torch.equal(wrong, _wrong_labels(right, 5, (0, 0)))
    assert not torch.equal(wrong, _wrong_labels(right, 5, (0, 1)))  # another batch


def test_updates_of_the_bad_teacher_equal_those_of_plain_transformers() -> None:
    """KL(teacher || student) over all predicted tokens of both corpora. On retain it is 0 before the first update."""
    rows = {side: random_rows(5, seed=n) for n, side in enumerate(SIDES)}
    model, hf, good, bad = tiny_bridge("opt"), *(tiny_hf("opt") for _ in range(3))
    bad.load_state_dict(plain(_random_weights(weights_of(model), 3)), strict=False)  # without the tied unembedding
    bad.tie_weights()
    settings: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 50.0, "steps": 2, "seed": 3, "progress": False}
    result = sp.unlearning.bad_teacher(model, **rows, temperature=2.0, **settings)

    def divergence(teacher: Any, row: torch.Tensor) -> torch.Tensor:
        student = (hf(row[None]).logits[0, :-1] / 2).log_softmax(-1)
        target = (teacher(row[None]).logits[0, :-1] / 2).log_softmax(-1).detach()
        return (target.exp() * (target - student)).sum(-1)

    before = values_of(hf)
    for update in range(2):
        forget = torch.cat([divergence(bad, row) for row in rows["forget"]])
        retain = torch.cat([divergence(good, row) for row in rows["retain"]])
        assert (retain.mean() > 1e-3) == (update > 0)
        step(hf, torch.cat([forget, retain]).mean(), 50.0)
    assert_same_weights(result, hf, before, atol=2e-6)


@pytest.mark.parametrize("family", ["gpt2", "neox", "llama", "vit"])
def test_the_bad_teacher_predicts_uniformly(family: str) -> None:
    """The weights of the model are restored, including those that a bridge stores both jointly and separately."""
    model = tiny_bridge(family)
    inputs = torch.randn(4, 3, 16, 16) if family == "vit" else torch.arange(2, 102).view(4, 25)
    weights = weights_of(model)
    values = _random_weights(weights, 0)
    with torch.no_grad():
        before = model(inputs, return_type="logits")
        with swapped(weights, values):
            untrained = model(inputs, return_type="logits").softmax(-1)
        assert torch.equal(model(inputs, return_type="logits"), before)
    assert torch.special.entr(untrained).sum(-1).min() > 0.98 * math.log(untrained.shape[-1])
    assert all(torch.equal(value, _random_weights(weights, 0)[name]) for name, value in values.items())
    assert any(not torch.equal(value, _random_weights(weights, 1)[name]) for name, value in values.items())


def test_random_weights_have_normalisation_weights_of_1_and_biases_of_0() -> None:
    """For the parameter names of transformers and of a `HookedTransformer`."""
    shapes = {
        "fc1.weight": (300, 300), "fc1.bias": (9,), "in_proj_bias": (9,), "norm.weight": (9,),
        "blocks.0.attn.W_Q": (3, 100, 300), "blocks.0.attn.b_Q": (2, 9), "blocks.0.mlp.b_in": (9,),
        "blocks.0.ln1.w": (9,), "blocks.0.ln1.b": (9,),
    }  # fmt: skip
    values = _random_weights({name: torch.nn.Parameter(torch.rand(shape)) for name, shape in shapes.items()}, 0)
    for name in ("fc1.weight", "blocks.0.attn.W_Q"):
        assert values[name].std().item() == pytest.approx(0.02, rel=0.02)
        assert values[name].mean().abs() < 3e-4
    assert {name for name, value in values.items() if (value == 1).all()} == {"norm.weight", "blocks.0.ln1.w"}
    assert sum(bool((value == 0).all()) for value in values.values()) == 5


def test_an_update_reads_both_corpora_in_proportion_to_their_sizes() -> None:
    model = tiny_bridge("vit")
    corpora: dict[str, Any] = {side: images(4 + 4 * n, seed=n, labels=1) for n, side in enumerate(SIDES)}
    sizes: list[int] = []

    def record_size(module: Any, inputs: Any, output: torch.Tensor) -> None:
        if torch.is_grad_enabled():  # in training, not in evaluation
            sizes.append(len(output))

    model.original_model.vit.embeddings.register_forward_hook(record_size)
    sp.unlearning.amnesiac(model, **corpora, steps=1, updates=2, batch_tokens=6 * 17, progress=False)
    assert sizes == [2, 4, 2, 4]


def test_epochs_of_unsir_equal_those_of_plain_transformers() -> None:
    """Adam makes noise in 40 updates. One update then reads copies of it and the retain corpus, the next retain."""
    hf, model = tiny_hf("vit"), tiny_bridge("vit")
    corpora: dict[str, Any] = {
        side: images(3 + n, seed=n, labels=(2, torch.arange(4) % 2, 2, 0)[n]) for n, side in enumerate(SIDES)
    }
    settings: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 0.1, "progress": False}
    result = sp.unlearning.unsir(model, **corpora, noise_images=2, copies=3, **settings)
    assert result.steps == 2
    noise = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    adam = torch.optim.Adam([noise], lr=0.1)
    for _ in range(40):
        adam.zero_grad()
        error = torch.nn.functional.cross_entropy(hf(noise).logits, torch.tensor([2, 2]))
        (0.1 * (noise**2).sum((1, 2, 3)).mean() - error).backward()
        adam.step()
    noisy = [{"pixel_values": image, "labels": 2} for image in noise.detach()]
    before = values_of(hf)
    step(hf, cross_entropy(hf, corpora["retain"] + 3 * noisy).mean(), 0.1)
    step(hf, cross_entropy(hf, corpora["retain"]).mean(), 0.1)
    assert_same_weights(result, hf, before, atol=1e-5)


def test_unsir_is_reproducible_repairs_and_restores_the_model() -> None:
    model = tiny_bridge("vit")
    before = [parameter.detach().clone() for parameter in model.parameters()]
    corpora = {side: images(6, seed=n, labels=torch.arange(6) % 2 + n) for n, side in enumerate(SIDES)}
    settings: dict[str, Any] = {**corpora, "noise_images": 2, "copies": 2, "progress": False}
    runs = [sp.unlearning.unsir(model, **settings, steps=steps, batch_tokens=4 * 17) for steps in (2, 2, 4)]
    assert runs[0].history.equals(runs[1].history)
    assert runs[0].history.equals(runs[2].history[:3])
    nats = []
    for run in runs[1:]:
        with run.applied(model):
            nats.append(sp.evaluate(model, corpora["retain"], progress=False).loss)
    assert nats[1] < nats[0]  # after two more epochs of repair
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), before, strict=True))


def test_invalid_options_raise(opt: Any) -> None:
    rows: dict[str, Any] = {side: random_rows(3, seed=n) for n, side in enumerate(SIDES)} | {"progress": False}
    with pytest.raises(sp.SpLensError, match="UNSIR optimises noise images, but this model reads tokens"):
        sp.unlearning.unsir(opt, **rows)
    for name in ("copies", "noise_images", "learning_rate"):
        invalid: dict[str, Any] = {**rows, name: 0}
        with pytest.raises(sp.SpLensError, match=f"{name}=0"):
            sp.unlearning.unsir(opt, **invalid)
    with pytest.raises(sp.SpLensError, match="unsir has no option updates"):
        sp.unlearning.unsir(opt, **rows, updates=2)
    with pytest.raises(sp.SpLensError, match="temperature=-1"):
        sp.unlearning.bad_teacher(opt, **rows, temperature=-1.0)
    with pytest.raises(sp.SpLensError, match="unknown optimizer 'adam'"):
        sp.unlearning.amnesiac(opt, **rows, optimizer="adam")  # pyright: ignore[reportArgumentType]
