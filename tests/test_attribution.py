"""The estimate of an effect against its definition: the slope of the loss in a factor before an activation."""

from typing import Any

import pytest
import torch
from conftest import random_rows

import sp_lens as sp
from sp_lens.sites import attached

pytestmark = pytest.mark.model


@pytest.mark.parametrize(("site", "layer"), [("mlp", 0), ("mlp", 3), ("attn", 1)])
def test_an_estimate_is_the_slope_of_the_loss(demo: Any, site: Any, layer: int) -> None:
    rows = random_rows(3)
    estimate = sp.effect_estimate(demo, rows, progress=False)
    group = sp.layout_of(demo).of(site)[layer]
    strongest = int(estimate[group.name].abs().argmax())

    def loss(factor: float) -> float:
        def scale(activation: torch.Tensor, hook: Any) -> torch.Tensor:
            flat = activation.flatten(2).clone()
            flat[:, :, strongest] *= factor
            return flat.view_as(activation)

        with attached(demo, [(group, scale)]):
            return sp.evaluate(demo, rows, progress=False).loss

    slope = (loss(1.01) - loss(0.99)) / 0.02
    assert float(estimate[group.name][strongest]) == pytest.approx(-slope, rel=0.03)


def test_the_weights_get_no_gradient(demo: Any) -> None:
    wanted = {name: parameter.requires_grad for name, parameter in demo.named_parameters()}
    sp.effect_estimate(demo, random_rows(1), progress=False)
    assert {name: parameter.requires_grad for name, parameter in demo.named_parameters()} == wanted
    assert all(parameter.grad is None for parameter in demo.parameters())
