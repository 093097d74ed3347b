"""Plain values of a file held against what is wanted of them: a file may say anything, and be whole all the same."""

import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from sp_lens.errors import SpLensError

_LARGEST = 2**63  # whole numbers beyond fit into no tensor and no table


def fitted(value: Any, wanted: Any, name: str) -> Any:  # noqa: PLR0911 (one return for each kind of type)
    """The value, found to be what is wanted; as a tuple or a dataclass, where that is wanted.

    Args:
        value: out of JSON.
        wanted: a type as a dataclass states it: `int`, `float`, `str`, `bool`, `Any`, `Literal[...]`, `X | None`,
            `Sequence[X]`, `tuple[X, ...]`, `tuple[X, Y]`, `Mapping[str, X]`, or a dataclass, whose fields the value has
            and no others. Or `[X]`, a list, or `{key: X}`, a mapping with these keys and perhaps others, of which those
            that may be None may be missing.
        name: what the value is called in a message.

    Raises:
        SpLensError: naming the part that is something else.

    Example:
        >>> fitted([1, 2], tuple[int, ...], "steps")
        (1, 2)
        >>> fitted([{"step": "one"}], [{"step": int}], "records")
        Traceback (most recent call last):
            ...
        sp_lens.errors.SpLensError: records[0]['step'] is 'one': expected int.
    """
    if isinstance(wanted, dict):
        return _with_keys(value, wanted, name)
    if isinstance(wanted, list):
        return list(_listed(value, (*wanted, ...), name))
    if is_dataclass(wanted):
        return _as_dataclass(value, wanted, name)
    origin, inner = get_origin(wanted), get_args(wanted)
    if NoneType in inner:
        return None if value is None else fitted(value, next(one for one in inner if one is not NoneType), name)
    if origin is Mapping:
        return {
            _checked(key, str, f"a key of {name}"): fitted(one, inner[1], f"{name}[{key!r}]")
            for key, one in _checked(value, dict, name).items()
        }
    if origin is Sequence:
        return list(_listed(value, (*inner, ...), name))
    if origin is tuple:
        return _listed(value, inner, name)
    if origin is Literal:
        if not isinstance(value, str) or value not in inner:
            raise SpLensError(f"{name} is {_shown(value)}: expected one of {inner}.")
        return value
    return value if wanted is Any else _checked(value, wanted, name)


def _checked(value: Any, kind: type, name: str) -> Any:
    """The value of a plain type: True is no number, a whole number is a float too, and text has whole characters."""
    kinds = (int, float) if kind is float else (kind,)
    endless = type(value) is int and abs(value) >= _LARGEST
    if type(value) not in kinds or endless or (kind is str and not _is_text(value)):
        raise SpLensError(f"{name} is {_shown(value)}: expected {kind.__name__}.")
    return value


def _shown(value: Any) -> str:
    """The beginning of it, however long and deep it is."""
    return reprlib.repr(value)[:100]


def _is_text(value: Any) -> bool:
    """Whether no half of a surrogate pair is in it, which JSON can have, and no file, table or tokenizer."""
    return not re.search("[\ud800-\udfff]", value)


def _with_keys(value: Any, wanted: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = dict(_checked(value, dict, name))
    for key, kind in wanted.items():
        if key not in found and NoneType not in get_args(kind):
            raise SpLensError(f"{name} has no {key!r}.")
        if key in found:
            found[key] = fitted(found[key], kind, f"{name}[{key!r}]")
    return found


def _as_dataclass(value: Any, wanted: Any, name: str) -> Any:
    hints = get_type_hints(wanted)
    names = [field.name for field in fields(wanted)]
    if set(_checked(value, dict, name)) != set(names):
        raise SpLensError(f"{name} has the parts {_shown(sorted(value))}: expected {sorted(names)}.")
    return wanted(**_with_keys(value, {one: hints[one] for one in names}, name))


def _listed(value: Any, inner: tuple[Any, ...], name: str) -> tuple[Any, ...]:
    """A list of values: all of one kind, where that is followed by an ellipsis, or each of its own."""
    _checked(value, list, name)
    kinds = [inner[0]] * len(value) if inner[-1] is ... else inner
    if len(kinds) != len(value):
        raise SpLensError(f"{name} has {len(value)} parts: expected {len(kinds)}.")
    return tuple(
        fitted(one, kind, f"{name}[{place}]") for place, (one, kind) in enumerate(zip(value, kinds, strict=True))
    )
