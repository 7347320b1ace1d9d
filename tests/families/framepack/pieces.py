"""What FramePack's tests share: small models in files, and stand-ins for what tasks hand in."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from engine.families.framepack import image, vae
from engine.families.values import Request

CPU = torch.device("cpu")


class Encoders:
    """As tasks/encoders.py, on the CPU."""

    device = CPU

    def __init__(self, paths: dict[str, Path]):
        self._paths = paths

    @cached_property
    def vae(self) -> Any:
        return vae.load(self._paths["vae"], device=CPU, dtype=torch.float32)

    @cached_property
    def image(self) -> Any:
        return image.load({"image_encoder": str(self._paths["image_encoder"])}, device=CPU)


def request(**given: Any) -> Request:
    """A request for two sections of two latent frames, 64 x 48 pixels."""
    settings = {
        "f1": False, "video_sections": 2, "latent_window_size": 2, "latent_paddings": (), "image_path": (),
        "end_image_path": None, "embedded_cfg_scale": 10.0, "guidance_rescale": 0.0, "rope_scaling": None,
        "solver": "unipc-3", "one_frame": None, "one_frame_auto_resize": False, "control_image_path": (),
        "control_image_mask_path": (), "step_cache": None,
    }  # fmt: skip
    settings |= {name: given.pop(name) for name in list(given) if name in settings}
    values = {
        "prompt": "a bar", "negative_prompt": "", "width": 64, "height": 48, "frames": 17, "steps": 2, "shift": None,
        "guidance": 1.0, "seed": 7,
    }  # fmt: skip
    return Request(**{**values, **given}, settings=settings)


class Denoiser:
    """A `denoise` that asks the model once and gives latents that tell which call made them: all 1, all 2, …"""

    def __init__(self, *, ask: bool = False):
        self.calls: list[SimpleNamespace] = []
        self._ask = ask

    def __call__(self, conditional, unconditional, noise_BCTHW, **options):
        answer = conditional(noise_BCTHW, torch.tensor([500.0])) if self._ask else None
        self.calls.append(
            SimpleNamespace(
                conditional=conditional, unconditional=unconditional, noise=noise_BCTHW, answer=answer, **options
            )
        )
        return torch.full_like(noise_BCTHW, float(len(self.calls)))


def words(*captions: str) -> dict[str, dict[str, torch.Tensor]]:
    """What text.encode gives, made up: the caption's length in every number."""
    return {
        caption: {
            "llama_vec": torch.full((512, 64), float(len(caption))),
            "llama_attention_mask": torch.arange(512) < max(len(caption), 1),
            "clip_l_pooler": torch.full((64,), float(len(caption))),
        }
        for caption in captions
    }
