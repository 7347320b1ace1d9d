"""What a Wan DiT gets beside the noise, as tensors: masks, image latents, control latents. Pure layouts.

Caching, training and generation lay them out here, so that they agree. Channels are [mask 4, image 16] for
image-to-video, [control 16, image 16] for Fun-Control, [image 16] beside a camera, and [what stays 16, what is made
anew 16, mask 64] for VACE. Latents come from an `encode` that is handed in.
Layouts: Wan2.1 9737cba9 (i2v, flf2v, VACE), VideoX-Fun (Fun-Control), musubi-tuner 30c658c4 (end image, one frame).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .one_frame import order
from .variants import LATENT_CHANNELS, MASK_CHANNELS, SPACE_STRIDE

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


def start_condition(latent_BC1HW: Tensor | None, *, like_BCTHW: tuple[int, ...]) -> Tensor:
    """[B, 16, T, H, W] beside a camera: the latent of the start image, where there is one, then zeros."""
    found = torch.zeros(like_BCTHW)
    if latent_BC1HW is not None:
        found[:, :, :1] = latent_BC1HW
    return found


def vace_context(
    encode: Encode, clip_BCFHW: Tensor, mask_BFHW: Tensor, *, references_BCHW: Sequence[Tensor] = ()
) -> Tensor:
    """VACE's [B, 96, T, H, W]: the clip without what is made anew, that alone, and which it is.

    `mask_BFHW` in 0..1, above 0.5: made anew; a control (depth, pose …) is all of it. What is left out of either clip
    is grey (0). Each reference image is a latent frame of its own before them, which stays.
    """
    anew_B1FHW = mask_BFHW.unsqueeze(1) > 0.5
    stays_BCTHW = encode(clip_BCFHW.masked_fill(anew_B1FHW, 0.0))
    latents_BCTHW = torch.cat([stays_BCTHW, encode(clip_BCFHW.masked_fill(~anew_B1FHW, 0.0))], dim=1)
    mask_BCTHW = _pixels_of_latents(mask_BFHW, latent_frames=stays_BCTHW.shape[2]).to(latents_BCTHW)
    frames = [F.pad(encode(image_BCHW.unsqueeze(2)), (0,) * 7 + (LATENT_CHANNELS,)) for image_BCHW in references_BCHW]
    before_BCTHW = mask_BCTHW.new_zeros(len(mask_BCTHW), mask_BCTHW.shape[1], len(frames), *mask_BCTHW.shape[3:])
    return torch.cat([torch.cat([*frames, latents_BCTHW], dim=2), torch.cat([before_BCTHW, mask_BCTHW], dim=2)], dim=1)


def _pixels_of_latents(mask_BFHW: Tensor, *, latent_frames: int) -> Tensor:
    """The 8 x 8 pixels of each latent as 64 channels, row by row: of one pixel frame for each latent frame.

    As the model was trained, it is the one in the middle of as many equal parts: frames 1, 4, 7 of nine, so that the
    mask of a first frame that alone is given is that of the second.
    """
    pixels_BCFHW = F.pixel_unshuffle(mask_BFHW.unsqueeze(2), SPACE_STRIDE).transpose(1, 2)
    return F.interpolate(pixels_BCFHW, size=(latent_frames, *pixels_BCFHW.shape[3:]), mode="nearest-exact")


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
