"""What attention takes for a moment beside what goes in and comes out, from sizes alone: for those who compute it, and
for the memory planner, which loads no torch.

Everything is told in sizes of one token tensor, [B, L, H, D] in 16 bits. Standard library only.
"""

from __future__ import annotations

TILE = 128
"""Tokens. Where a length was no multiple of 64, gradients of cuDNN 9.19 were NaN or 4e6 times too large in whole
trainings (H200, 19,249 tokens, 24 heads), and right in other processes with the same numbers; with whole tiles they
were right in both. NVIDIA names such lengths as a cause (NVIDIA/cudnn-frontend, issue 160)."""
GROUPS = 4
"""In which heads are made whole tiles of where memory is short: copies of all at once are five sizes of the tokens."""
COPIES = 5
"""The gradient, q, k, v and the result: what whole tiles are made of."""
RESULTS = 3
"""Gradients of q, k and v."""
WORKSPACE = 2
"""cuDNN's, as FlashAttention's: it adds the gradient of q up in 32 bits."""
GAPS = 1.25
"""All heads at once where so many times what that takes is free: on a card that is nearly full, gaps of 230 to 370 MiB
between tensors cannot be used (H100, Wan 14B with 81 frames in 12 GB)."""

SHORTEST = 2048
"""Keys: attention to fewer, as to a text, takes little time. In 8 bits quantising them would be most of it; our kernel
for Hopper loses to cuDNN's."""
CODES = 1.5
"""Attention in 8 bits: q and k in int8, v in float8. (Scales are a number for each row of q and each 128 keys.)"""


def is_room(free: int | None, token_bytes: float) -> bool:
    """Whether copies of all heads at once are made. `free` None: it is not known, or more than enough."""
    return free is None or free > GAPS * (COPIES + RESULTS + WORKSPACE) * token_bytes


def gradient_sizes(tokens: int | None, *, whole_tiles: bool, at_once: bool) -> float:
    """The most that there is at a time while gradients of attention are computed, in sizes of the tokens.

    `tokens` None: not known, and no whole tiles. `whole_tiles`: the kernel must be given such, so that lengths that are
    none are copied; `at_once`: all heads together. In groups, what the group before gave is still held while copies of
    the next are made.
    """
    if not whole_tiles or tokens is not None and tokens % TILE == 0:
        return RESULTS + WORKSPACE
    longer = 1.0 if tokens is None else -(-tokens // TILE) * TILE / tokens
    made = COPIES + RESULTS + WORKSPACE
    return longer * made if at_once else RESULTS + longer * (made + RESULTS) / GROUPS
