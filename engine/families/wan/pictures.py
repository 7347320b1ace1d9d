"""Images and videos that a generation starts from: read, brought to size, as tensors of RGB in -1..1.

Sizes follow the official code: the area is the person's, the shape the start image's. Does not know models.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...contract.errors import DataError
from ...media import images, video
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
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in images.suffixes())
        return (images.read_image(file) for file in files)
    info = video.probe(path)
    return video.read_frames(path, indices=range(min(frames, info.frames)), info=info)
