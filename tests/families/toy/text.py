"""Captions to conditioning: each byte of the caption has a row in a table."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ...parts.tokenizers import TokenCount
from ...parts.weights import open_weights
from .detect import check_role


def load(files: Mapping[str, str], *, device: torch.device | str) -> nn.Embedding:
    """The table [256, D]. Bytes need no tokenizer. WeightsError for another kind of file."""
    file = open_weights(files["byte_table"], role="--byte_table")
    check_role(file.shapes, wanted="text-encoder", flag="--byte_table", source=f"--byte_table {file.path.name}")
    return nn.Embedding.from_pretrained(file.read("bytes.weight", device=device, dtype=torch.float32))


def encode(encoder: nn.Embedding, captions: list[str]) -> list[dict[str, Tensor]]:
    """One "varlen_bytes" [L, D] a caption; an empty one counts as one zero byte."""
    device = encoder.weight.device
    rows = [torch.tensor(list(caption.encode()) or [0], device=device) for caption in captions]
    return [{"varlen_bytes": encoder(row_L)} for row_L in rows]


def token_counts(encoder: nn.Embedding, captions: list[str]) -> list[TokenCount]:
    """The bytes of each caption, all of which are read."""
    return [TokenCount(count, read=count) for count in (len(caption.encode()) for caption in captions)]
