"""Validate untrusted JSON against type annotations, using pydantic in strict mode.

A valid checksum does not imply valid content: anyone can change a file and compute a new checksum.
"""

import json
import reprlib
from collections.abc import Mapping
from types import NoneType
from typing import Annotated, Any, get_args

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import NotRequired, TypedDict

from sp_lens.errors import SpLensError

# Integers outside this range fit into no tensor and no table.
Int64 = Annotated[int, Field(gt=-(2**63), lt=2**63)]


def mapping_with(**types: Any) -> Any:
    """Return the type of a mapping that has the given keys and may have others.

    Args:
        types: Type of the value of each key. A key whose value may be None is optional.

    Example:
        >>> validate({"step": 1, "note": "other keys are kept"}, mapping_with(step=int, loss=float | None), "record")
        {'step': 1, 'note': 'other keys are kept'}
    """
    items = {key: NotRequired[value] if NoneType in get_args(value) else value for key, value in types.items()}
    mapping: Any = TypedDict("mapping", items)  # pyright: ignore[reportArgumentType]  # not a literal
    mapping.__pydantic_config__ = ConfigDict(strict=True, extra="allow")
    return mapping


def validate(value: Any, expected: Any, name: str) -> Any:
    """Convert a value that was read from JSON to the expected type, or raise an error.

    Lists become tuples, mappings become dataclasses and integers become floats where the type requires it. There are no
    other conversions: True is not an integer and "1" is not a number.

    Args:
        value: Value as `json.loads` returns it.
        expected: Type annotation: a plain type, a `Literal`, an optional or a collection of these, a `mapping_with`, or
            a dataclass, in which case the value must not have any other fields.
        name: Name of the value in error messages.

    Raises:
        SpLensError: If the value does not have the expected type. The message names the first part that differs.

    Example:
        >>> validate([1, 2], tuple[int, ...], "steps")
        (1, 2)
        >>> validate([{"step": "one"}], list[mapping_with(step=int)], "records")
        Traceback (most recent call last):
            ...
        sp_lens.errors.SpLensError: records[0]['step'] is 'one': expected a valid integer.
    """
    # The tuple passes the configuration on to `expected`: pydantic does not take one for a dataclass itself.
    config = ConfigDict(strict=True, extra="forbid")
    adapter = TypeAdapter(tuple[expected], config=config)  # pyright: ignore[reportInvalidTypeForm]
    try:
        # For Python objects, strict mode would reject a list in place of a tuple and a mapping in place of a dataclass.
        return adapter.validate_json(json.dumps([value], ensure_ascii=False).encode())[0]
    except UnicodeEncodeError as error:  # JSON can contain one half of a surrogate pair
        raise SpLensError(f"{name} has text that is not valid Unicode ({error}).") from error
    except ValidationError as error:
        raise SpLensError(_message(name, error.errors(include_url=False)[0])) from error


def _message(name: str, error: Mapping[str, Any]) -> str:
    location = name + "".join(f"[{reprlib.repr(key)}]" for key in error["loc"][1:])
    if error["type"] == "value_error":  # raised by the dataclass
        return f"{location} is invalid: {error['ctx']['error']}"
    if error["type"] == "missing":
        return f"{location} is missing."
    message = error["msg"].replace("Input should be", "expected")
    return f"{location} is {reprlib.repr(error['input'])[:100]}: {message}."
