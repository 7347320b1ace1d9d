"""Pictures that a generation starts from: read, brought to size, as latents and masks. Knows no sections."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...media.images import read_alpha, read_image
from ...media.resize import resize_to_bucket
from ..values import Encoders
from .conditions import latent_mask
from .vae import encode

Size = tuple[int, int]  # (width, height) in pixels


def picture(path: Path, size: Size) -> np.ndarray:
    """uint8 RGB [H, W, 3], scaled to cover `size` and its centre cut out. DataError for a file that cannot be read."""
    return resize_to_bucket(read_image(path), size)


def black(size: Size) -> np.ndarray:
    """What SigLIP sees where there is no picture, as in musubi-tuner."""
    return np.zeros((size[1], size[0], 3), dtype=np.uint8)


def latent(picture_HWC: np.ndarray, encoders: Encoders) -> Tensor:
    """A picture as one latent frame [C, 1, H, W], in main memory."""
    pixels_BCFHW = torch.from_numpy(np.array(picture_HWC)).permute(2, 0, 1)[None, :, None].float() / 127.5 - 1.0
    return encode(encoders.vae, pixels_BCFHW)[0].cpu()


def grey_latent(size: Size, encoders: Encoders) -> Tensor:
    """What the VAE sees where there is no picture."""
    return encode(encoders.vae, torch.zeros(1, 3, 1, size[1], size[0]))[0].cpu()


def mask(path: Path, size: Size, *, alpha: bool) -> Tensor | None:
    """How much of each latent pixel counts, 0..1 [H, W]: a picture's brightness, or its alpha (None: it has none).

    Brought to size as the pictures themselves are; musubi-tuner squeezes masks into shape instead, past the picture.
    """
    from PIL import Image

    grey_HW = read_alpha(path) if alpha else np.asarray(Image.fromarray(read_image(path)).convert("L"))
    return None if grey_HW is None else latent_mask(resize_to_bucket(grey_HW, size))
