"""Convolutions that look at past frames only, and the memory that lets a video go through them chunk by chunk.

A causal network gives the same result for a whole video and for its chunks one after the other, as long as every
temporal convolution sees the last frames of its own earlier input. `FrameMemory` holds these frames for one pass over
one batch of videos. It is passed explicitly: a network has no state of its own, so one network can serve two videos.

Knows nothing of any model. Given up: gradients through a chunk's past (nothing is trained through a video VAE here).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FrameMemory:
    """The last input frames of each temporal layer, from one chunk of a video to the next.

    With `on_cpu` they wait in main memory between chunks: slower, and less accelerator memory for large frames.
    """

    def __init__(self, *, on_cpu: bool = False) -> None:
        self._on_cpu = on_cpu
        self._frames: dict[nn.Module, Tensor] = {}
        self._visited: set[nn.Module] = set()

    def first_visit(self, layer: nn.Module) -> bool:
        """Whether `layer` asks for the first time, that is during the first chunk that reaches it."""
        first = layer not in self._visited
        self._visited.add(layer)
        return first

    def recall(self, layer: nn.Module, *, device: torch.device) -> Tensor | None:
        """What `layer` kept last, on `device`; None before it has kept anything."""
        frames_BCFHW = self._frames.get(layer)
        return None if frames_BCFHW is None else frames_BCFHW.to(device, non_blocking=True)

    def keep(self, layer: nn.Module, frames_BCFHW: Tensor) -> None:
        """Keep a copy (a view would hold the whole chunk in memory) in place of what `layer` kept before."""
        self._frames[layer] = frames_BCFHW.to("cpu", copy=True) if self._on_cpu else frames_BCFHW.clone()


class CausalConv3d(nn.Conv3d):
    """A 3D convolution: "same" padding in height and width, past frames instead of padding in time.

    Before the first frame there is black (zeros). Stride and dilation are 1.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: tuple[int, int, int] = (3, 3, 3)) -> None:
        _, height, width = kernel_size
        super().__init__(in_channels, out_channels, kernel_size, padding=(0, height // 2, width // 2))

    def forward(self, x_BCFHW: Tensor, memory: FrameMemory) -> Tensor:
        past_frames = self.kernel_size[0] - 1
        if past_frames == 0:
            return super().forward(x_BCFHW)
        past_BCFHW = memory.recall(self, device=x_BCFHW.device)
        if past_BCFHW is None:
            batch, channels, _, height, width = x_BCFHW.shape
            past_BCFHW = x_BCFHW.new_zeros(batch, channels, past_frames, height, width)
        joined_BCFHW = torch.cat([past_BCFHW, x_BCFHW], dim=2)
        memory.keep(self, joined_BCFHW[:, :, -past_frames:])
        return super().forward(joined_BCFHW)


def frames_to_batch(x_BCFHW: Tensor) -> Tensor:
    """Lay the frames along the batch, for layers that treat each frame by itself."""
    batch, channels, frames, height, width = x_BCFHW.shape
    return x_BCFHW.transpose(1, 2).reshape(batch * frames, channels, height, width)


def batch_to_frames(x_NCHW: Tensor, *, batch: int) -> Tensor:
    """The reverse of `frames_to_batch`."""
    count, channels, height, width = x_NCHW.shape
    return x_NCHW.reshape(batch, count // batch, channels, height, width).transpose(1, 2)
