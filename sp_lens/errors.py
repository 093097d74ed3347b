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
