"""Rules that streaming and checkpointing follow, and that the planner uses to predict what they do.

Standard library and the contract only.
"""

from __future__ import annotations

from ..contract.errors import OptionError

WORKING_SET = 40
"""What the backward pass of one block needs at its peak, in sizes of the block's input: 33 to 38 with Wan 14B."""
ALL_OF_ONE = 30
"""What one block that is not checkpointed keeps, in the same sizes: 24 with Wan 14B, 30 with Wan 1.3B, 18 to 21 with
HunyuanVideo."""
FP8_PRODUCTS = (8, 9)
"""The first compute capability that multiplies matrices in fp8 (Ada)."""


def spread(count: int, total: int) -> list[int]:
    """`count` of the indices 0..total-1, evenly spread, ascending: the blocks that are streamed."""
    return [(2 * step + 1) * total // (2 * count) for step in range(count)]


def check_streamed(count: int, total: int) -> None:
    """OptionError unless `count` of a model's `total` blocks can be streamed."""
    if not 0 <= count <= total:
        raise OptionError(
            f"--blocks_to_swap {count}: this model has {total} blocks.",
            hint=f"Give --blocks_to_swap a number from 0 to {total}.",
            names=("blocks_to_swap",),
        )


def keeps_attention(token_bytes: int, *, blocks: int, free: int, others: int = 0) -> bool:
    """Whether "auto" keeps results of attention: inputs and results of all checkpointed `blocks`, `token_bytes` each,
    all that the `others` keep, and the work on one block have to fit into what is free when the first block runs."""
    return token_bytes * (2 * blocks + ALL_OF_ONE * others + WORKING_SET) <= free


def fp8_mode(weight_format: str, *, products: bool) -> str:
    """How weights become fp8 (ops/fp8_scales.py). With a scale per row, GPUs that have fp8 `products` can use them; on
    others, finer blocks are more exact."""
    if weight_format == "fp8":
        return "cast"
    return "channel" if products else "block"


def stays_in_file(*, changed: bool, stored_as: object | None, used_as: object) -> bool:
    """Whether a weight that waits on disk is used from the checkpoint itself; else it goes to a scratch file.

    `stored_as`: its number format there; None if no safetensors file has the tensor whole. `used_as`: the one it is
    used in.
    """
    return not changed and stored_as == used_as
