"""A DiT's blocks, to be run a few at a time: what a step cache (sampling/step_caches.py) works on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

from torch import Tensor


class BlockStack:
    """The tokens of a video on their way through the blocks.

    `blocks` runs one block per iteration and yields the video's tokens after it; what else goes from block to block
    (text, a control) stays inside. `modulated`: the first block's input tokens -> the same, modulated by the timestep.
    Neither keeps tokens that are no longer needed, so a pass without a step cache takes no more memory than a plain
    loop.
    """

    def __init__(self, tokens_BLD: Tensor, blocks: Iterator[Tensor], *, modulated: Callable[[Tensor], Tensor]):
        self.tokens_BLD = tokens_BLD
        """After the blocks run so far."""
        self._blocks, self._modulated = blocks, modulated

    def modulated(self) -> Tensor:
        """The first block's modulated input tokens; to be called before `run`."""
        return self._modulated(self.tokens_BLD)

    def run(self, count: int | None = None) -> Tensor:
        """Run `count` more blocks (None: all that are left) and return the tokens."""
        for tokens_BLD in islice(self._blocks, count):
            self.tokens_BLD = tokens_BLD
        return self.tokens_BLD
