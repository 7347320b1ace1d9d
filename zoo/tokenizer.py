"""The pocket models' tokenizer: a SentencePiece model of whole words, with single characters for all other words.

Every word of the captions is one token, so a caption of twenty words is about twenty tokens long. Other Latin words are
spelled, which is how a LoRA gets a word of its own; signs of other scripts are all unknown. UMT5's special tokens have
its numbers: padding 0, end 1, unknown 2.
"""

from __future__ import annotations

import io
import string
from collections.abc import Iterable

_SPACE = "\u2581"  # SentencePiece's sign for the blank before a word
_CHARACTERS = string.ascii_letters + string.digits + string.punctuation


def word_tokenizer(words: Iterable[str]) -> bytes:
    """The bytes of a SentencePiece model with a token for each of `words` and for each sign that a keyboard has."""
    import sentencepiece

    stream = io.BytesIO()
    whole = [_SPACE + word for word in sorted(set(words)) if word not in string.punctuation]
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter([" ".join(_CHARACTERS)]),
        model_writer=stream,
        model_type="char",
        vocab_size=len(whole) + len(_CHARACTERS) + 16,
        hard_vocab_limit=False,
        character_coverage=1.0,
        user_defined_symbols=whole,
        normalization_rule_name="identity",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return stream.getvalue()
