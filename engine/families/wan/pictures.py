"""Images and videos that a generation starts from: read, brought to size, as tensors of RGB in -1..1.

Sizes follow the official code: the area is the person's, the shape the start image's (or that of an end image alone).
Does not know models.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ...contract.errors import DataError
from ...media import images, suffixes, video
from ...media.resize import resize_to_bucket
from .vae import SPACE_STRIDE

PATCH = 2  # latents a side in one patch of the DiT
Size = tuple[int, int]  # (width, height)


def size_by_area(picture_HWC: np.ndarray, *, area: int) -> Size:
    """(width, height) of at most so many pixels in the picture's shape, multiples of 16.

    Source: Wan2.1 `image2video.py`, facts only.
    """
    height, width = picture_HWC.shape[:2]
    step = SPACE_STRIDE * PATCH
    sides = math.sqrt(area * width / height), math.sqrt(area * height / width)
    return tuple(max(1, int(side // SPACE_STRIDE // PATCH)) * step for side in sides)


def stretched(picture_HWC: np.ndarray, size: Size) -> np.ndarray:
    """Scaled to `size` without cutting: by area when it gets lower, else bicubic; as musubi-tuner does it.

    (For an end image it compares the height with the width; here both images go by the same rule.)
    """
    import cv2

    method = cv2.INTER_AREA if size[1] < picture_HWC.shape[0] else cv2.INTER_CUBIC
    return cv2.resize(picture_HWC, size, interpolation=method)


def cut_to_shape(picture_HWC: np.ndarray, like_HWC: np.ndarray) -> np.ndarray:
    """The middle of a picture that has the shape (not the size) of another one."""
    height, width = picture_HWC.shape[:2]
    shape = like_HWC.shape[1] / like_HWC.shape[0]
    wanted = min(width, round(height * shape)), min(height, round(width / shape))
    left, top = (width - wanted[0]) // 2, (height - wanted[1]) // 2
    return picture_HWC[top : top + max(1, wanted[1]), left : left + max(1, wanted[0])]


def as_image(picture_HWC: np.ndarray) -> Tensor:
    """uint8 0..255 -> [1, 3, H, W] in -1..1."""
    return torch.from_numpy(np.array(picture_HWC)).permute(2, 0, 1)[None].float() / 127.5 - 1.0


def on_white(picture_HWC: np.ndarray, size: Size) -> Tensor:
    """A whole picture as large as `size` allows, in the middle of white: [1, 3, H, W] in -1..1. Bilinear, as VACE."""
    width, height = size
    scale = min(height / picture_HWC.shape[0], width / picture_HWC.shape[1])
    inner = int(picture_HWC.shape[0] * scale), int(picture_HWC.shape[1] * scale)
    shown = functional.interpolate(as_image(picture_HWC), size=inner, mode="bilinear", align_corners=False)
    canvas = torch.ones(1, 3, height, width)
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    canvas[:, :, top : top + inner[0], left : left + inner[1]] = shown
    return canvas


def read_mask(path: Path, *, size: Size, frames: int, flag: str) -> Tensor:
    """A mask for each frame, [1, F, H, W] in 0..1: as `read_clip`, but one image is for all of them."""
    if not path.is_dir() and path.suffix.lower() in suffixes.images():
        mask_1HW = as_image(resize_to_bucket(images.read_image(path), size))[:, 0]
        return (mask_1HW.unsqueeze(1) + 1.0).expand(-1, frames, -1, -1) / 2.0
    return (read_clip(path, size=size, frames=frames, flag=flag)[:, 0] + 1.0) / 2.0


def read_clip(path: Path, *, size: Size, frames: int, flag: str) -> Tensor:
    """The first `frames` frames of a video, or of a folder of images sorted by name: [1, 3, F, H, W] in -1..1.

    Each is scaled to cover `size` and its centre cut out. DataError when there are fewer frames.
    """
    found = [resize_to_bucket(picture, size) for picture in islice(_pictures(path, frames), frames)]
    if len(found) < frames:
        raise DataError(
            f"{flag} {path}: {len(found)} frames, but {frames} are needed.",
            f"Use --video_length {max(1, (len(found) - 1) // 4 * 4 + 1)} or less, or a longer video.",
        )
    clip_FHWC = torch.from_numpy(np.stack(found))
    return clip_FHWC.permute(3, 0, 1, 2)[None].float() / 127.5 - 1.0


def _pictures(path: Path, frames: int) -> Iterator[np.ndarray]:
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in suffixes.images())
        return (images.read_image(file) for file in files)
    info = video.probe(path)
    return video.read_frames(path, indices=range(min(frames, info.frames)), info=info)
