"""Rules that streaming and checkpointing go by, and that the planner must know: what it predicts is what they do.

Standard library only.
"""

from __future__ import annotations

WORKING_SET = 40
"""What the backward pass of one block needs at its peak, in sizes of the block's input: 33 to 38 with Wan 14B."""


def spread(count: int, total: int) -> list[int]:
    """`count` of the indices 0..total-1, evenly spread, ascending: the blocks that are streamed."""
    return [(2 * step + 1) * total // (2 * count) for step in range(count)]


def keeps_attention(token_bytes: int, *, blocks: int, free: int) -> bool:
    """Whether results of attention are kept where nobody said: inputs and results of every block, both of the size of
    its tokens, and the work on one block have to fit into what is free when the first block runs."""
    return token_bytes * (2 * blocks + WORKING_SET) <= free
