"""A single image from control images: what the DiT is given (`--one_frame_inference`, kisekaeichi).

The target and the controls stand at places in time that the person gives; a frame of zeros may follow them, and zeros
may stand for the history at 2x and 4x. Training has the same (samples.py). Does not know the section loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...media.images import image_size
from ...media.resize import fit_size
from ..values import Encoders, Request
from . import image, pictures
from .conditions import IMAGE_STATES, one_frame_tensors
from .pictures import Size
from .sections import parse_one_frame
from .vae import LATENT_CHANNELS, SPACE_STRIDE


def prepare(request: Request, encoders: Encoders) -> dict[str, Any]:
    """ "controls": latents [C, N, H, W] under their masks, N = 0 without any; "images": {0: SigLIP states};
    "size": (width, height) of the image.

    SigLIP sees the start image, else the first control image, as in training (musubi-tuner shows it black then).
    """
    settings = request.settings
    controls: tuple[Path, ...] = settings["control_image_path"]
    size: Size = (request.width, request.height)
    if settings["one_frame_auto_resize"] and controls:
        size = fit_size(size, image_size(controls[0]))
    starts: dict[int, Path] = dict(settings["image_path"])
    seen = starts.get(0) or next(iter(controls), None)
    shown = pictures.black(size) if seen is None else pictures.picture(seen, size)
    latents = [_control(path, number, request, encoders, size) for number, path in enumerate(controls)]
    none = torch.zeros(LATENT_CHANNELS, 0, size[1] // SPACE_STRIDE, size[0] // SPACE_STRIDE)
    return {
        "controls": torch.cat([none, *latents], dim=1),
        "images": {0: image.encode(encoders.image, [shown])[0].cpu()},
        "size": size,
    }


def _control(path: Path, number: int, request: Request, encoders: Encoders, size: Size) -> Tensor:
    """A control image's latent [C, 1, H, W] under its mask: the one given for it, else its own alpha."""
    masks: tuple[Path, ...] = request.settings["control_image_mask_path"]
    given = masks[number] if number < len(masks) else None
    mask_HW = pictures.mask(path if given is None else given, size, alpha=given is None)
    latent_C1HW = pictures.latent(pictures.picture(path, size), encoders)
    return latent_C1HW if mask_HW is None else latent_C1HW * mask_HW


def conditioning(request: Request, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """By the names of a cache file. Without control images a frame of zeros stands in for one."""
    window, controls_CTHW = request.settings["latent_window_size"], inputs["controls"]
    layout = parse_one_frame(request.settings["one_frame"], window=window).layout(
        max(1, controls_CTHW.shape[1]), window=window
    )
    return {**one_frame_tensors(controls_CTHW, layout), IMAGE_STATES: inputs["images"][0]}
