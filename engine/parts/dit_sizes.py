"""Sizes of a DiT, read off the names and shapes of its checkpoint. Standard library only. Knows no family."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ..contract.errors import WeightsError

DEFAULT_HEAD_DIM = 128


def count_blocks(names: Iterable[str], prefix: str) -> int:
    """How many numbered parts `prefix` has: one more than the highest number. KeyError if there is none."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    numbers = [int(found[1]) for name in names if (found := pattern.match(name))]
    if not numbers:
        raise KeyError(f"{prefix}.0")
    return 1 + max(numbers)


def head_dim(dim: int, metadata: Mapping[str, str], *, source: str) -> int:
    """The size of a head: 128, unless the metadata key `head_dim` says otherwise.

    WeightsError unless it is even, divides `dim` and is at least 6: below, the split into t, h and w would leave an
    axis without columns.
    """
    size = metadata.get("head_dim", str(DEFAULT_HEAD_DIM))
    if not size.isdecimal() or int(size) < 6 or int(size) % 2 or dim % int(size):
        raise WeightsError(
            f"{source} has width {dim}, which does not divide into heads of {size}.",
            "A small model needs the safetensors metadata key head_dim: an even number that divides its width.",
        )
    return int(size)


def only_part(source: str, words: str, error: Exception) -> WeightsError:
    """The error for missing tensors that sizes are read off. `words`: e.g. "a Wan DiT"."""
    return WeightsError(
        f"{source} is only part of {words}, or its tensors have unknown shapes ({error}).",
        "Give all parts: the folder, the index file, or the first part of several.",
    )


def rope_axes(head_dim: int) -> tuple[int, int, int]:
    """How a head's columns are split between t, h and w: 16, 56, 56 for the published 128."""
    side = 2 * (7 * head_dim // 32)
    return head_dim - 2 * side, side, side
