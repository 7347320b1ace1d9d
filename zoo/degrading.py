"""Makes a drawn clip as poor as a small VAE or a generator makes it: wobbling outlines, blur, blocks, smear, noise.

For training and testing the judge, so that it judges what a clip shows and not how cleanly it is drawn.
"""

from __future__ import annotations

import cv2
import numpy as np

_WOBBLE_CELLS = 5  # a side: neighbouring outlines move together


def degrade(clip: np.ndarray, *, seed: int, strength: float = 1.0) -> np.ndarray:
    """[F, H, W, 3] uint8 to the same, worse; at strength 1 its PSNR is 24 to 31 dB, about 28 on average."""
    chance = np.random.default_rng(seed)
    moved = _wobbled(clip, chance, strength * chance.uniform(0.3, 0.8))
    width = strength * chance.uniform(0.4, 0.8)
    quality = int(np.clip(90 - strength * chance.uniform(25, 55), 10, 95))
    blurred = [cv2.GaussianBlur(frame, (0, 0), width) for frame in moved]
    worse = np.stack([_compressed(frame, quality) for frame in blurred]).astype(np.float32)
    before, after = np.concatenate([worse[:1], worse[:-1]]), np.concatenate([worse[1:], worse[-1:]])
    smear = strength * chance.uniform(0.0, 0.12)
    worse = (1 - 2 * smear) * worse + smear * (before + after)
    worse += strength * chance.uniform(1.0, 5.0) * chance.standard_normal(clip.shape, np.float32)
    return np.clip(worse + strength * chance.normal(0, 3, 3), 0, 255).round().astype(np.uint8)


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 arrays, in dB."""
    return float(10 * np.log10(255**2 / np.mean((one.astype(np.float64) - other) ** 2)))


def _wobbled(clip: np.ndarray, chance: np.random.Generator, pixels: float) -> np.ndarray:
    """Every place is pushed about by around so many pixels, changing slowly."""
    frames, height, width, _ = clip.shape
    still, restless = (chance.standard_normal((count, 2, _WOBBLE_CELLS, _WOBBLE_CELLS)) for count in (1, frames))
    pushes = (pixels * (0.7 * still + 0.7 * restless)).astype(np.float32)
    grid_y, grid_x = np.mgrid[:height, :width].astype(np.float32)
    moved = []
    for frame, (push_x, push_y) in zip(clip, pushes, strict=True):
        x, y = (cv2.resize(push, (width, height), interpolation=cv2.INTER_CUBIC) for push in (push_x, push_y))
        moved.append(cv2.remap(frame, grid_x + x, grid_y + y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))
    return np.stack(moved)


def _compressed(frame: np.ndarray, quality: int) -> np.ndarray:
    _, data = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_UNCHANGED))
