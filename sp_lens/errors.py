"""Define the exceptions that sp_lens raises for bad input, and checks of arguments that raise them."""

from collections.abc import Iterable


class SpLensError(ValueError):
    """Invalid input. The message states what was given, what was expected, and how to fix it."""


class DamagedFile(SpLensError):
    """The file was written by sp_lens but is truncated or inconsistent. Regenerate it."""


def check_choice(kind: str, value: object, choices: Iterable[object]) -> None:
    """Raise SpLensError if `value` is not one of `choices`.

    Args:
        kind: Noun that describes the value in the message ("metric", "site").
        value: Value that the caller passed.
        choices: All allowed values. The message lists them.

    Example:
        >>> check_choice("site", "mlp", ("mlp", "attn"))
        >>> check_choice("site", "ffn", ("mlp", "attn"))
        Traceback (most recent call last):
            ...
        sp_lens.errors.SpLensError: unknown site 'ffn': choose one of 'mlp', 'attn'.
    """
    choices = tuple(choices)
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise SpLensError(f"unknown {kind} {value!r}: choose one of {listed}.")


def check_at_least(least: int, **numbers: int) -> None:
    """Raise SpLensError if one of the named numbers is smaller than `least`."""
    for name, number in numbers.items():
        if number < least:
            raise SpLensError(f"{name} is {number}: expected {least} or more.")


def check_shares(**shares: float) -> None:
    """Raise SpLensError if one of the named numbers is not between 0 and 1."""
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise SpLensError(f"{name} is {share}: expected a share between 0 and 1.")


def check_positive(**numbers: float) -> None:
    """Raise SpLensError if one of the named numbers is not positive and finite."""
    for name, number in numbers.items():
        if not 0 < number < float("inf"):
            raise SpLensError(f"{name}={number}: expected a number above 0.")
