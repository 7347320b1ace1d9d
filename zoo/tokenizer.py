"""The pocket models' tokenizer: a SentencePiece model of whole words, with single characters for all other words.

Every word of the captions is one token, so a caption of twenty words is about twenty tokens long. Other Latin words are
spelled, which is how a LoRA gets a word of its own; signs of other scripts are all unknown. UMT5's special tokens have
its numbers: padding 0, end 1, unknown 2.
"""

from __future__ import annotations

import string
from collections.abc import Iterable

from engine.families.wan.tiny import umt5_tokenizer

_SPACE = "\u2581"  # SentencePiece's sign for the blank before a word
_CHARACTERS = string.ascii_letters + string.digits + string.punctuation


def word_tokenizer(words: Iterable[str]) -> bytes:
    """The bytes of a SentencePiece model with a token for each of `words` and for each sign that a keyboard has."""
    whole = [_SPACE + word for word in sorted(set(words)) if word not in string.punctuation]
    return umt5_tokenizer(
        [" ".join(_CHARACTERS)],
        model_type="char",
        vocab_size=len(whole) + len(_CHARACTERS) + 16,
        user_defined_symbols=whole,
        normalization_rule_name="identity",
    )
