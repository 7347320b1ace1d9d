"""The tokenizers of Pocket HunyuanVideo's two text encoders: a token for each word, characters for all other words.

HunyuanVideo sets a caption into a chat template of some ninety tokens, which the language model reads each time and the
engine cuts off again. To the pocket model's tokenizer all that stands before the caption is one token, so it costs next
to nothing; another --custom_system_prompt is spelled. `Words` turns the token ids that clips are drawn with, which are
UMT5's, into those that the engine makes of the same captions (tests/zoo).
"""

from __future__ import annotations

import string
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from engine.parts import llama_text
from engine.parts.tokenizers import CLIP, LLAMA3, Kind, Tokenizer, from_json

from .scenes import VOCABULARY

_UNKNOWN, _GOES_ON = "<unk>", "##"
_CHARACTERS = string.ascii_lowercase + string.digits + string.punctuation
_TURNS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


def llama_tokenizer() -> str:
    """A tokenizer.json with LLaMA 3's special tokens."""
    before, _ = llama_text.template()
    return _word_tokenizer(special=(LLAMA3.start or "", LLAMA3.pad, *_TURNS, before), kind=LLAMA3)


def clip_tokenizer() -> str:
    """A tokenizer.json with CLIP's special tokens."""
    return _word_tokenizer(special=(CLIP.start or "", CLIP.end or ""), kind=CLIP)


def _word_tokenizer(*, special: Sequence[str], kind: Kind) -> str:
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers, processors

    inside = [_GOES_ON + sign for sign in _CHARACTERS]
    tokens = dict.fromkeys((*special, _UNKNOWN, *VOCABULARY, *_CHARACTERS, *inside))
    vocabulary = {token: number for number, token in enumerate(tokens)}
    library = tokenizers.Tokenizer(
        models.WordPiece(vocabulary, unk_token=_UNKNOWN, continuing_subword_prefix=_GOES_ON)  # type: ignore[call-arg]
    )
    library.normalizer = normalizers.Lowercase()
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.add_special_tokens([tokenizers.AddedToken(token, normalized=False, special=True) for token in special])
    ends = [token for token in (kind.start, kind.end) if token]
    library.post_processor = processors.TemplateProcessing(
        single=" ".join((kind.start or "", "$A", kind.end or "")).strip(),
        special_tokens=[(token, vocabulary[token]) for token in ends],
    )
    return library.to_str()


class Words(nn.Module):
    """UMT5's ids of captions, [B, L] with zeros behind their end, as LLaMA's and as CLIP's. On the ids' device."""

    def __init__(self, drawn: Tokenizer) -> None:
        super().__init__()
        llama = from_json(llama_tokenizer(), source="Pocket LLaMA", kind=LLAMA3)
        clip = from_json(clip_tokenizer(), source="Pocket CLIP", kind=CLIP)
        (first,), self.before = llama_text.token_rows(llama, [""])
        self.sizes = llama.size, clip.size
        self.clip_end = clip.end_id
        self.register_buffer("first", torch.tensor(first[: self.before]), persistent=False)
        self.register_buffer("start", torch.tensor([clip.start_id]), persistent=False)
        for name, tokenizer, end in (("to_llama", llama, first[-1]), ("to_clip", clip, clip.end_id)):
            table = torch.full((drawn.size,), tokenizer.split("\u8272")[0])
            for word in VOCABULARY:
                table[drawn.split(word)[0]] = tokenizer.split(word)[0]
            table[drawn.end_id], table[drawn.pad_id] = end, tokenizer.pad_id
            self.register_buffer(name, table, persistent=False)

    def llama(self, ids_BL: Tensor) -> Tensor:
        """[B, before + L]: the template's beginning, the caption, its end, padding."""
        return torch.cat([self.first.expand(len(ids_BL), -1), self.to_llama[ids_BL]], dim=1)

    def clip(self, ids_BL: Tensor) -> Tensor:
        """[B, 1 + L]: start, the caption, end, and again end as padding."""
        return torch.cat([self.start.expand(len(ids_BL), -1), self.to_clip[ids_BL]], dim=1)
