"""What a Wan DiT gets beside the noise, as tensors: masks, image latents, control latents. Pure layouts.

Caching, training and generation lay them out here, so that they agree. Channels are [mask 4, image 16] for
image-to-video and [control 16, image 16] for Fun-Control. Latents come from an `encode` that is handed in.
Layouts: Wan2.1 9737cba9 (i2v, flf2v), VideoX-Fun (Fun-Control), musubi-tuner 30c658c4 (end image, one frame).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from .one_frame import order
from .variants import MASK_CHANNELS

Encode = Callable[[Tensor], Tensor]
"""clip_BCFHW (RGB, -1..1) -> latents_BCTHW."""


def frame_mask(frames: int, given: Iterable[int]) -> Tensor:
    """Which of so many pixel frames (4n + 1) are given, as a latent mask [4, T, 1, 1]: 1 given, 0 to be made.

    Channel c of latent frame t > 0 is pixel frame 4(t - 1) + 1 + c; latent frame 0 is one pixel frame, in all channels.
    """
    pixel_frames = torch.zeros(frames)
    pixel_frames[list(given)] = 1.0
    repeated = torch.cat([pixel_frames[:1].expand(MASK_CHANNELS), pixel_frames[1:]])
    return repeated.view(-1, MASK_CHANNELS).T[:, :, None, None]


def image_condition(encode: Encode, first_BCHW: Tensor, *, frames: int, last_BCHW: Tensor | None = None) -> Tensor:
    """[B, 20, T, H, W] for a video that begins with `first` and, where given, ends with `last` (flf2v).

    What is to be made is grey (0) when it is encoded.
    """
    given, middle = {0: first_BCHW}, first_BCHW.new_zeros(())
    if last_BCHW is not None:
        given[frames - 1] = given.get(frames - 1, last_BCHW)
    clip_BCFHW = middle.expand(*first_BCHW.shape[:2], frames, *first_BCHW.shape[2:]).clone()
    for place, image_BCHW in given.items():
        clip_BCFHW[:, :, place] = image_BCHW
    return with_mask(encode(clip_BCFHW), frame_mask(frames, given))


def with_mask(latents_BCTHW: Tensor, mask_4T11: Tensor) -> Tensor:
    """The mask in front of the latents on channels."""
    batch, _, _, height, width = latents_BCTHW.shape
    mask_B4THW = mask_4T11.to(latents_BCTHW).expand(batch, -1, -1, height, width)
    return torch.cat([mask_B4THW, latents_BCTHW], dim=1)


def append_end_image(condition_BCTHW: Tensor, end_BC1HW: Tensor) -> Tensor:
    """An image-to-video condition with one latent frame more: an end image that models without a place for it take.

    The extra frame's mask is all ones. Not official; the last frames of such a video are often spoilt.
    """
    return torch.cat([condition_BCTHW, with_mask(end_BC1HW, end_BC1HW.new_ones(MASK_CHANNELS, 1, 1, 1))], dim=2)


def control_condition(
    control_BCTHW: Tensor, image_BCTHW: Tensor | None = None, *, keep: Sequence[int] = (0,)
) -> Tensor:
    """Fun-Control's [B, 32, T, H, W]: control latents, then image latents of which only the frames `keep` count.

    Without an image its half is zeros.
    """
    image_half = torch.zeros_like(control_BCTHW)
    if image_BCTHW is not None:
        for frame in keep:
            image_half[:, :, frame] = image_BCTHW[:, :, frame].to(image_half)
    return torch.cat([control_BCTHW, image_half], dim=1)


def one_frame_condition(
    encode: Encode, controls_BCHW: Sequence[Tensor], control_indices: Sequence[int], target_index: int
) -> tuple[Tensor, Tensor, list[int], int]:
    """For one image beside control images: condition [B, 20, T, H, W], control latents in it with zeros for the
    target [B, 16, T, H, W], the frames' places in time, and which of the frames is the target.

    Each image is encoded by itself. The target's image part is grey, its mask 0; the controls' is 1.
    ValueError when two frames have one place.
    """
    ordered = order(target_index, control_indices)
    grey_BC1HW = encode(torch.zeros_like(controls_BCHW[0]).unsqueeze(2))
    frames, known, mask = [], [], []
    for _, number in ordered:
        latent_BC1HW = grey_BC1HW if number is None else encode(controls_BCHW[number].unsqueeze(2))
        frames.append(latent_BC1HW)
        known.append(torch.zeros_like(latent_BC1HW) if number is None else latent_BC1HW)
        mask.append(0.0 if number is None else 1.0)
    mask_4T11 = grey_BC1HW.new_tensor(mask).view(1, -1, 1, 1).expand(MASK_CHANNELS, -1, -1, -1)
    condition_BCTHW = with_mask(torch.cat(frames, dim=2), mask_4T11)
    target = [number for _, number in ordered].index(None)
    return condition_BCTHW, torch.cat(known, dim=2), [place for place, _ in ordered], target
