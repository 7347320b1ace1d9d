"""Drawn clips in the memory of the GPU, where a batch is picked without the CPU. On a CPU they stay where they are."""

from __future__ import annotations

import torch
from torch import Tensor

from .data import Clips

_AT_ONCE = 256  # clips that are moved at one step


class Shelf:
    """The clips that are drawn so far, uint8 [N, F, H, W, 3]."""

    def __init__(self, clips: Clips, device: torch.device) -> None:
        self._clips, self._drawn = clips, torch.from_numpy(clips.frames_NFHWC)
        self._frames = self._drawn if device.type == "cpu" else torch.empty_like(self._drawn, device=device)
        self.held = 0

    def fill(self) -> None:
        """Take up what was drawn meanwhile; on a GPU a few clips at a time."""
        ready = self._clips.ready()
        if self._frames is not self._drawn:
            ready = min(ready, self.held + _AT_ONCE)
            self._frames[self.held : ready] = self._drawn[self.held : ready].to(self._frames.device)
        self.held = ready

    def draw(self, count: int, *, generator: torch.Generator) -> Tensor:
        """Random clips; of them, by chance, all are mirrored or run backwards: as good as other clips."""
        device = self._frames.device
        picked = self._frames[torch.randint(self.held, (count,), generator=generator, device=device)]
        for axis in (1, 2, 3):
            turned_B = torch.rand(count, generator=generator, device=device) < 0.5
            picked = torch.where(turned_B.view(-1, 1, 1, 1, 1), picked.flip(axis), picked)
        return picked
