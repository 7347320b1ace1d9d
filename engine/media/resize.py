"""Bringing a picture to a bucket's size: scale until it covers the bucket, then cut the centre out.

Enlarging is Lanczos (Pillow), shrinking is area averaging (OpenCV), as musubi-tuner does it, so that caches made by
either tool agree.
"""

from __future__ import annotations

import math

import numpy as np

STEP = 16  # pixels: VAE stride 8 times patch size 2, the same in every family
Size = tuple[int, int]  # (width, height)


def resize_to_bucket(image_HWC: np.ndarray, bucket: tuple[int, int]) -> np.ndarray:
    """Scale and centre-crop a picture, uint8 RGB 0..255, to `bucket` (width, height). A fitting picture is returned."""
    height, width = image_HWC.shape[:2]
    if (width, height) == bucket:
        return image_HWC
    scale = max(bucket[0] / width, bucket[1] / height)
    covering = (int(width * scale + 0.5), int(height * scale + 0.5))
    if scale > 1:
        from PIL import Image

        scaled = np.asarray(Image.fromarray(image_HWC).resize(covering, Image.Resampling.LANCZOS))
    else:
        import cv2

        scaled = cv2.resize(image_HWC, covering, interpolation=cv2.INTER_AREA)
    left, top = (covering[0] - bucket[0]) // 2, (covering[1] - bucket[1]) // 2
    return np.ascontiguousarray(scaled[top : top + bucket[1], left : left + bucket[0]])


def fit_size(max_resolution: Size, size: Size, step: int = STEP) -> Size:
    """The size nearest in aspect ratio to `size` within the area of `max_resolution` (for control pictures)."""
    area = max_resolution[0] * max_resolution[1]
    aspect = size[0] / size[1]
    base = int(math.sqrt(area * aspect)) // step * step
    best: Size | None = None
    for width in (base + offset * step for offset in range(-2, 3)):
        if width < step:
            continue
        height = area // width // step * step
        if height < step:
            continue
        if best is None or abs(width / height - aspect) < abs(best[0] / best[1] - aspect):
            best = (width, height)
    return best or (step, step)
