"""Convolutions that look at past frames only, and the memory that lets a video go through them chunk by chunk.

A causal network gives the same result for a whole video and for its chunks one after the other, as long as every
temporal convolution sees the last frames of its own earlier input. `FrameMemory` holds these frames for one pass over
one batch of videos. It is passed explicitly: a network has no state of its own, so one network can serve two videos.

Knows nothing of any model. Given up: gradients through a chunk's past (nothing is trained through a video VAE here).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..ops.convolution import conv3d

Entrance = Callable[[Tensor, Tensor], object]
_FEW, _MANY = 16, 64  # channels


class FrameMemory:
    """The last input frames of each temporal layer, from one chunk of a video to the next.

    With `on_cpu` they wait in main memory between chunks: slower, but large frames take less GPU memory.
    """

    def __init__(self, *, on_cpu: bool = False) -> None:
        self._on_cpu = on_cpu
        self._frames: dict[nn.Module, Tensor] = {}
        self._visited: set[nn.Module] = set()

    def first_visit(self, layer: nn.Module) -> bool:
        """Whether this is `layer`'s first call, i.e. the first chunk that reaches it."""
        first = layer not in self._visited
        self._visited.add(layer)
        return first

    def recall(self, layer: nn.Module, *, device: torch.device) -> Tensor | None:
        """What `layer` kept last, on `device`; None before it has kept anything."""
        frames_BCFHW = self._frames.get(layer)
        return None if frames_BCFHW is None else frames_BCFHW.to(device, non_blocking=True)

    def keep(self, layer: nn.Module, frames_BCFHW: Tensor) -> None:
        """Keep a copy (a view would hold the whole chunk in memory) in place of what `layer` kept before."""
        self._frames[layer] = frames_BCFHW.to("cpu", copy=True) if self._on_cpu else _copy(frames_BCFHW)


def _copy(x_BCFHW: Tensor) -> Tensor:
    """A copy in x's memory format, which `clone` does not keep for a slice of several videos."""
    return empty_like_order(x_BCFHW, x_BCFHW.shape).copy_(x_BCFHW)


def empty_like_order(x_BCFHW: Tensor, shape: Sequence[int]) -> Tensor:
    """An uninitialised tensor of this shape with x's dtype, device and memory format (channels last or first)."""
    channels_last = x_BCFHW.stride(1) == 1 and x_BCFHW.shape[1] > 1
    order = torch.channels_last_3d if channels_last else torch.contiguous_format
    return torch.empty(tuple(shape), dtype=x_BCFHW.dtype, device=x_BCFHW.device, memory_format=order)


def lay_channels_last(network: nn.Module) -> None:
    """Store the weights of all convolutions channels-last, so that cuDNN's fast kernels need not copy them."""
    orders = {4: torch.channels_last, 5: torch.channels_last_3d}
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            module.weight.data = module.weight.data.contiguous(memory_format=orders[module.weight.ndim])


def fill_up_channels(network: nn.Module) -> None:
    """Pad the weights of each `CausalConv3d` with input channels of zeros, up to a number that cuDNN is fast with.

    With 96 the best one is 1.6 times as slow as with 128 (benchmarks/optimisations.md). For a network that only runs:
    its weights are no longer those of its file. After `lay_channels_last`.
    """
    for module in network.modules():
        if isinstance(module, CausalConv3d):
            weight = module.weight.data
            missing = _fast_channels(weight.shape[1]) - weight.shape[1]
            filled = functional.pad(weight, (0, 0, 0, 0, 0, 0, 0, missing))
            module.weight.data = filled.contiguous(memory_format=torch.channels_last_3d)


def _fast_channels(channels: int) -> int:
    """The next larger number of input channels for which cuDNN has a dedicated kernel."""
    if channels < _FEW:
        return _FEW
    return -(-channels // _MANY) * _MANY if channels > _MANY else channels


class CausalConv3d(nn.Conv3d):
    """A 3D convolution: "same" padding in height and width, past frames instead of padding in time.

    Frames before the first are zeros. Stride and dilation are 1. The weight may have more input channels than the
    input, which then counts as zero there.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: tuple[int, int, int] = (3, 3, 3)) -> None:
        _, height, width = kernel_size
        super().__init__(in_channels, out_channels, kernel_size, padding=(0, height // 2, width // 2))

    def forward(
        self, x_BCFHW: Tensor, memory: FrameMemory, *, entrance: Entrance | None = None, with_bias: bool = True
    ) -> Tensor:
        """`entrance(x, out)` is applied to x first and writes into `out`, which saves a pass over the clip.

        `with_bias=False`: the consumer of the result adds the bias, which saves another pass.
        """
        past_frames, room = self.kernel_size[0] - 1, self.weight.shape[1]
        batch, channels, frames, height, width = x_BCFHW.shape
        joined_BCFHW = empty_like_order(x_BCFHW, (batch, room, past_frames + frames, height, width))
        if room > channels:
            joined_BCFHW[:, channels:].zero_()
        given_BCFHW = joined_BCFHW[:, :channels]
        past_BCFHW = memory.recall(self, device=x_BCFHW.device)
        if past_BCFHW is None:
            given_BCFHW[:, :, :past_frames].zero_()
        else:
            given_BCFHW[:, :, :past_frames].copy_(past_BCFHW)
        if entrance is None:
            given_BCFHW[:, :, past_frames:].copy_(x_BCFHW)
        else:
            entrance(x_BCFHW, given_BCFHW[:, :, past_frames:])
        if past_frames:
            memory.keep(self, given_BCFHW[:, :, -past_frames:])
        return conv3d(joined_BCFHW, self.weight, self.bias if with_bias else None, padding=self.padding)


def frames_to_batch(x_BCFHW: Tensor) -> Tensor:
    """Move the frames into the batch, for layers that treat each frame by itself."""
    batch, channels, frames, height, width = x_BCFHW.shape
    return x_BCFHW.transpose(1, 2).reshape(batch * frames, channels, height, width)


def batch_to_frames(x_NCHW: Tensor, *, batch: int) -> Tensor:
    """The reverse of `frames_to_batch`."""
    count, channels, height, width = x_NCHW.shape
    return x_NCHW.reshape(batch, count // batch, channels, height, width).transpose(1, 2)
