"""What stands beside the latents that are made: history, control images and their masks, by the names of a cache file.

Training samples (samples.py) and generation (sample.py, one_frame.py) build it here, so both give the model the same.
Knows no encoders and no files.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...parts.hunyuan_vae_public import SPACE_STRIDE
from .sections import F1_HISTORY, PLAIN_HISTORY, Layout

IMAGE_STATES = "image_embeddings"
"""SigLIP's states of the start image."""


def history_tensors(start_CTHW: Tensor, history_CTHW: Tensor, layout: Layout, *, f1: bool) -> dict[str, Tensor]:
    """Beside one section: the start frame and at least 19 frames of history, of which the newest are the first for
    the first release, the last for F1."""
    newest, middle, oldest = (history_CTHW[:, part] for part in (F1_HISTORY if f1 else PLAIN_HISTORY))
    return {
        "latents_clean": torch.cat([start_CTHW, newest], dim=1),
        "latents_clean_2x": middle,
        "latents_clean_4x": oldest,
        **_places(layout),
    }


def one_frame_tensors(controls_CTHW: Tensor, layout: Layout) -> dict[str, Tensor]:
    """Beside a single image: the latents of its control images under their masks, and a frame of zeros where the
    layout has one more place. 2x and 4x are places only, which mean zeros; absent where they are left out."""
    zeros = len(layout.clean) - controls_CTHW.shape[1]
    channels, _, height, width = controls_CTHW.shape
    return {
        "latents_clean": torch.cat([controls_CTHW, controls_CTHW.new_zeros(channels, zeros, height, width)], dim=1),
        **_places(layout),
    }


def _places(layout: Layout) -> dict[str, Tensor]:
    places = {
        "latent_indices": layout.target,
        "clean_latent_indices": layout.clean,
        "clean_latent_2x_indices": layout.clean_2x,
        "clean_latent_4x_indices": layout.clean_4x,
    }
    return {name: torch.tensor(indices) for name, indices in places.items() if indices}


def latent_mask(mask_HW: np.ndarray) -> Tensor:
    """How much of each latent pixel counts, 0..1 [h, w], from a mask or an alpha channel (uint8) at picture size."""
    from PIL import Image

    height, width = mask_HW.shape
    cells = (width // SPACE_STRIDE, height // SPACE_STRIDE)
    small = Image.fromarray(np.ascontiguousarray(mask_HW)).resize(cells, Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(small)).float() / 255.0
