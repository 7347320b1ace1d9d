"""The temporary memory of attention, beside its inputs and outputs, from sizes alone: for the code that computes it and
for the memory planner, which loads no torch.

The unit is the size of one token tensor, [B, L, H, D] in 16 bits. Standard library only.
"""

from __future__ import annotations

TILE = 128
"""Tokens. With lengths that are not a multiple of 64, cuDNN 9.19 gave gradients that were NaN or 4e6 times too large
throughout some trainings (H200, 19,249 tokens, 24 heads), and right ones from the same numbers in other processes; with
whole tiles both were right. NVIDIA names such lengths as a cause (NVIDIA/cudnn-frontend, issue 160)."""
GROUPS = 4
"""Where memory is short, heads are copied into whole tiles in this many groups: copies of all take five sizes."""
COPIES = 5
"""What is copied into whole tiles: the gradient, q, k, v and the result."""
RESULTS = 3
"""Gradients of q, k and v."""
WORKSPACE = 2
"""cuDNN's, like FlashAttention's: it sums the gradient of q in 32 bits."""
GAPS = 1.25
"""All heads are copied at once if this many times the memory for it is free: on a card that is nearly full, gaps of 230
to 370 MiB between tensors cannot be used (H100, Wan 14B with 81 frames in 12 GB)."""

SHORTEST = 2048
"""Keys. Attention to fewer, such as a text's, is short: quantising for 8 bits would be most of the work, and our kernel
for Hopper is slower than cuDNN's."""
CODES = 1.5
"""Attention in 8 bits: q and k in int8, v in float8. (Scales of q are a number per token, of k one per 128.)"""
EIGHT_BIT_GRADIENTS = 6.1
"""The peak while its gradients are computed, whatever the number of tokens: int8 codes of q, k, v and the result's
gradient (2), float8 codes of two of them turned (1), the gradients of q, k and v (3), a few numbers per token (0.1)."""


def is_room(free: int | None, token_bytes: float) -> bool:
    """Whether to copy all heads at once. `free`: bytes; None: unknown, or more than enough."""
    return free is None or free > GAPS * (COPIES + RESULTS + WORKSPACE) * token_bytes


def gradient_sizes(tokens: int | None, *, whole_tiles: bool, at_once: bool) -> float:
    """The peak while gradients of attention are computed, in sizes of the tokens.

    `tokens`: their number; None: unknown, and not a multiple of TILE. `whole_tiles`: whether the kernel needs whole
    tiles, so that other lengths are copied. `at_once`: whether all heads are copied together; in groups, the result of
    one group is still held while the next is being copied.
    """
    if not whole_tiles or tokens is not None and tokens % TILE == 0:
        return RESULTS + WORKSPACE
    longer = 1.0 if tokens is None else -(-tokens // TILE) * TILE / tokens
    made = COPIES + RESULTS + WORKSPACE
    return longer * made if at_once else RESULTS + longer * (made + RESULTS) / GROUPS
