"""Checks of all video VAEs here: shapes of clips and latents. The DataError says which shapes would be right."""

from __future__ import annotations

from torch import Tensor

from ..contract.errors import DataError


def check_clip(clip_BCFHW: Tensor, *, family: str, time_stride: int, space_stride: int) -> None:
    """DataError unless this is an RGB clip of n * time_stride + 1 frames whose sides are multiples of space_stride."""
    if clip_BCFHW.ndim != 5 or clip_BCFHW.shape[1] != 3:
        raise DataError(f"The VAE takes RGB clips [batch, 3, frames, height, width], not {list(clip_BCFHW.shape)}.")
    frames, height, width = clip_BCFHW.shape[2:]
    if frames % time_stride != 1:
        below = max(1, (frames - 1) // time_stride * time_stride + 1)
        raise DataError(
            f"The {family} VAE takes {time_stride}n+1 frames; this clip has {frames}.",
            hint=f"Use {below} or {below + time_stride}: target_frames in the dataset file, or --video_length.",
        )
    if height % space_stride or width % space_stride:
        nearest = [max(1, round(size / space_stride)) * space_stride for size in (width, height)]
        raise DataError(
            f"The {family} VAE takes widths and heights that are multiples of {space_stride}; "
            f"this clip is {width}x{height}.",
            hint=f"Nearest: {nearest[0]}x{nearest[1]}. Change resolution in the dataset file, or --video_size.",
        )


def check_latents(latents_BCTHW: Tensor, *, channels: int) -> None:
    """DataError unless these are latents with this many channels."""
    if latents_BCTHW.ndim != 5 or latents_BCTHW.shape[1] != channels:
        raise DataError(
            f"This VAE decodes latents [batch, {channels}, latent frames, height, width], "
            f"not {list(latents_BCTHW.shape)}."
        )
