"""Token ids -> text that hides nothing. No model in here."""

from functools import cache
from typing import Any


def token_text(tokenizer: Any, token: int) -> str:
    r"""What one token stands for, spaces and line breaks as they are.

    A token can be a part of a character: "€" is three of them, where a byte-level tokenizer does not know it.
    Decoding such a token alone gives "�", whichever it is. Here its bytes are written out instead ("\xe2"),
    as Python does, or left as a tokenizer itself writes them ("<0xE2>").

    Example:
        >>> import sp_lens as sp
        >>> tokenizer = sp.load_model("demo").tokenizer
        >>> [token_text(tokenizer, token) for token in tokenizer("5 €", add_special_tokens=False)["input_ids"]]
        ['5', ' ', '\\xe2', '\\x82', '\\xac']
    """
    piece = tokenizer.convert_ids_to_tokens(token)
    if piece is None:  # an embedding that no token has, as models round their vocabulary up
        return f"<{token}>"
    if token in tokenizer.all_special_ids:
        return piece
    if all(char in _byte_of_char() for char in piece):
        plain = bytes(_byte_of_char()[char] for char in piece)
        # That these are its bytes is for the tokenizer to say: an "é" of SentencePiece's looks like one of them.
        if plain.decode(errors="replace") == tokenizer.decode([token], clean_up_tokenization_spaces=False):
            return plain.decode(errors="backslashreplace")
    return piece.replace("▁", " ")  # SentencePiece's space


@cache
def _byte_of_char() -> dict[str, int]:
    """The alphabet in which byte-level tokenizers write bytes, that of GPT-2."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {char: byte for byte, char in bytes_to_unicode().items()}
