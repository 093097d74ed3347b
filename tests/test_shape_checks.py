"""Test that `make test` checks the shapes of annotated tensors."""

import pytest
import torch
from jaxtyping import Float, TypeCheckError, jaxtyped
from shape_checks import check_shapes


@jaxtyped(typechecker=check_shapes)
def outer(a: Float[torch.Tensor, " n"], b: Float[torch.Tensor, " n"], scale: float = 1.0) -> Float[torch.Tensor, "n n"]:
    return a if scale == 0 else scale * torch.outer(a, b)


def test_arguments_are_checked() -> None:
    outer(torch.ones(3), torch.ones(3))
    with pytest.raises(TypeCheckError, match="parameter"):
        outer(torch.ones(3), torch.ones(4))
    with pytest.raises(TypeCheckError, match="parameter"):
        outer(torch.ones(3), torch.ones(3).int())


def test_results_are_checked() -> None:
    with pytest.raises(TypeCheckError, match="return"):
        outer(torch.ones(3), torch.ones(3), scale=0)


def test_other_annotations_are_not_checked() -> None:
    outer(torch.ones(3), torch.ones(3), scale=torch.tensor(2))  # pyright: ignore[reportArgumentType]
