"""A DiT's blocks as something that can be run in part: what a step cache (sampling/step_caches.py) is handed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

from torch import Tensor


class BlockStack:
    """The tokens of a video on their way through the blocks.

    `blocks` runs one block a turn and gives the video's tokens after it; what else goes from block to block (text, a
    control) stays inside. `modulated` gives what the timestep makes of the tokens that go into the first block. Neither
    keeps tokens that are no longer needed, so that a pass without a step cache takes no more memory than a plain loop.
    """

    def __init__(self, tokens_BLD: Tensor, blocks: Iterator[Tensor], *, modulated: Callable[[Tensor], Tensor]):
        self.tokens_BLD = tokens_BLD
        """As far as they have come."""
        self._blocks, self._modulated = blocks, modulated

    def modulated(self) -> Tensor:
        """Before anything has run."""
        return self._modulated(self.tokens_BLD)

    def run(self, count: int | None = None) -> Tensor:
        """Run `count` more blocks, None: all that are left, and give the tokens."""
        for tokens_BLD in islice(self._blocks, count):
            self.tokens_BLD = tokens_BLD
        return self.tokens_BLD
