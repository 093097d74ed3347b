"""The exception that `sp_lens` raises for something its caller can mend."""

from collections.abc import Iterable


class SpLensError(ValueError):
    """Bad input. The message says what came, what was expected, and what to do about it."""


class DamagedFile(SpLensError):
    """A file of ours that can't be read to its end, or says what can't be: what it held has to be made again."""


def check_choice(kind: str, value: object, choices: Iterable[object]) -> None:
    """Refuse a `value` that is not among `choices`.

    Args:
        kind: what is being chosen, as it reads in a sentence ("metric", "site").
        value: what the caller gave.
        choices: what there is.

    Raises:
        SpLensError: naming every choice.

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
    """Refuse a number below the `least`, by its name."""
    for name, number in numbers.items():
        if number < least:
            raise SpLensError(f"{name} is {number}: expected {least} or more.")


def check_shares(**shares: float) -> None:
    """Refuse what is no share, from 0 to 1, by its name."""
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise SpLensError(f"{name} is {share}: expected a share, from 0 to 1.")


def check_positive(**numbers: float) -> None:
    """Refuse a number that is not above 0, by the name of its option."""
    for name, number in numbers.items():
        if not 0 < number < float("inf"):
            raise SpLensError(f"{name}={number}: expected a number above 0.")
