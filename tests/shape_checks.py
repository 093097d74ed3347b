"""Check the shapes and dtypes of annotated tensors while tests run.

This is the type checker of `pytest --jaxtyping-packages=sp_lens,shape_checks.check_shapes`, which `make test` uses.
"""

from collections.abc import Callable
from typing import TypeVar

from beartype import beartype

Function = TypeVar("Function", bound=Callable[..., object])


def check_shapes(function: Function) -> Function:
    """Check the arguments and the result that are annotated with jaxtyping whenever the function is called.

    All other annotations are left to pyright: many tests pass a value of the wrong type on purpose, to test the message
    of the `SpLensError`, and modules that draw figures import plotly only for type checking.
    """
    hints = function.__annotations__.items()
    function.__annotations__ = {name: hint for name, hint in hints if "jaxtyping" in repr(hint)}
    return beartype(function)
