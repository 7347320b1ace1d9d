"""How a HunyuanVideo video comes about: noise, what the picture or video it starts from becomes, conditioning.

Noise is drawn latent frame by latent frame, so videos of one seed begin alike however long they are. The embedded
guidance has the unit that training has (model.embedded_guidance). SkyReels V1 image-to-video takes the image's latents
beside the noisy ones; any text-to-video model can start from a video under noise.

Settings of a request: "embedded_cfg_scale" (float), "split_uncond" (bool), "image_path" and "video_path" (Path or
None), "strength" (float), and "tile_pixels" (int or None) for encoding these.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...contract.errors import DataError, OptionError
from ...contract.wording import beginning
from ...media import images, video
from ...media.resize import resize_to_bucket
from ...parts.batching import batch_of_one, moved
from ...parts.block_stack import BlockStack
from ..values import Denoise, Encoders, Request, StepCache, Velocity
from . import model, step_caches, vae


def texts(request: Request) -> list[str]:
    """The prompt, and the negative prompt where there is guidance."""
    return [request.prompt, *([request.negative_prompt] if request.guided else [])]


def check_request(request: Request, dit: nn.Module) -> None:
    """OptionError where the request has an image and this DiT no place for it, or the other way round.

    Only names and shapes of the DiT are needed.
    """
    what, config = f'The prompt "{beginning(request.prompt, most=40)}"', dit.config
    if config.concat_dim not in (0, config.out_dim):
        raise OptionError(
            f"--dit is an image-to-video model of {config.in_dim} input channels, which cannot be generated with here.",
            "Use a text-to-video model, or SkyReels V1 image-to-video.",
            names=("dit",),
        )
    if request.settings.get("image_path") and not config.concat_dim:
        raise OptionError(
            f"{what} starts from an image, but this --dit takes text only.",
            "Give a SkyReels V1 image-to-video --dit, or leave out --image_path (in a prompt line: --i).",
            names=("image_path", "dit"),
        )
    if config.concat_dim and not request.settings.get("image_path"):
        raise OptionError(
            f"{what} has no image to start from, which this --dit (SkyReels V1 image-to-video) needs.",
            "Add --image_path (in a prompt line: --i).",
            names=("image_path", "dit"),
        )
    step_caches.settings(request, dit)


def prepare(request: Request, encoders: Encoders) -> dict[str, Any]:
    """The "image_latents" [1, C, 1, H, W] of the image, "clean" [1, C, T, H, W] of the video, in main memory.

    Raises DataError for a file that cannot be read, or a video that is too short.
    """
    found: dict[str, Any] = {}
    if request.settings.get("image_path"):
        picture_1HWC = images.read_image(request.settings["image_path"])[None]
        found["image_latents"] = _encoded(picture_1HWC, request, encoders)
    if request.settings.get("video_path"):
        found["clean"] = _encoded(_frames(request.settings["video_path"], request.frames), request, encoders)
    return found


def _frames(path: Path, count: int) -> list[np.ndarray]:
    """The first `count` frames of a video at its own rate, uint8 RGB at its own size."""
    info = video.probe(path)
    if info.frames < count:
        usable = (info.frames - 1) // vae.TIME_STRIDE * vae.TIME_STRIDE + 1
        raise DataError(
            f"--video_path {path.name} has {info.frames} frames; {count} are needed.", f"Use --video_length {usable}."
        )
    return list(islice(video.read_frames(path, info=info), count))


def _encoded(frames_FHWC: Any, request: Request, encoders: Encoders) -> Tensor:
    """Frames (uint8 RGB) at the request's size as latents [1, C, T, H, W] on the CPU."""
    size = request.width, request.height
    pixels_FHWC = torch.from_numpy(np.stack([resize_to_bucket(frame, size) for frame in frames_FHWC]))
    clip_1CFHW = (pixels_FHWC.permute(3, 0, 1, 2).float() / 127.5 - 1).unsqueeze(0)
    return vae.encode(encoders.vae, clip_1CFHW, tile_pixels=request.settings.get("tile_pixels")).cpu()


def latent_shape(request: Request) -> tuple[int, int, int, int, int]:
    """The latent of the video, BCTHW."""
    height, width = request.height // vae.SPACE_STRIDE, request.width // vae.SPACE_STRIDE
    return (1, vae.LATENT_CHANNELS, (request.frames - 1) // vae.TIME_STRIDE + 1, height, width)


def draw_noise(request: Request, device: torch.device) -> Tensor:
    """Standard normal noise, float32 BCTHW on `device`, one latent frame after the other from one generator.

    The device's own generator draws; the CPU's with `cpu_noise`, which gives the same video on every machine.
    """
    origin = torch.device("cpu") if request.cpu_noise else device
    generator = torch.Generator(origin).manual_seed(request.seed)
    batch, channels, count, height, width = latent_shape(request)
    frames = [
        torch.randn((batch, channels, 1, height, width), generator=generator, device=origin) for _ in range(count)
    ]
    return torch.cat(frames, dim=2).to(device)


@torch.no_grad()
def video_latents(
    dit: nn.Module,
    request: Request,
    *,
    texts: Mapping[str, Mapping[str, Tensor]],
    inputs: Mapping[str, Any],
    denoise: Denoise,
    device: torch.device,
) -> Tensor:
    """Clean latents_BCTHW of the video, float32, in the DiT's scale.

    Guidance asks for both predictions in one batch, or one after the other with the setting "split_uncond".
    """
    noise_BCTHW = draw_noise(request, device)
    concat = _first_frame(inputs.get("image_latents"), noise_BCTHW)

    def cond_of(text: str) -> dict[str, Any]:
        batch = batch_of_one(texts[text], device="cpu")  # masks are read on the CPU: nothing waits for the device
        cond = model.cond_from_batch(batch, guidance_scale=request.settings["embedded_cfg_scale"])
        return moved({**cond, **concat}, device)

    conditional = cond_of(request.prompt)
    unconditional = cond_of(request.negative_prompt) if request.guided else None
    both = None if unconditional is None or request.settings["split_uncond"] else _joined(conditional, unconditional)
    caching = step_caches.settings(request, dit)

    def under(cond: dict[str, Any] | None, label: str) -> Velocity | None:
        if cond is None:
            return None
        cache = BlockStack.run if caching is None else denoise.step_cache(caching, label=label)
        return _velocity(dit, cond, cache)

    clean_BCTHW = inputs.get("clean")
    start: dict[str, Any] = {}
    if clean_BCTHW is not None:
        start = {"clean_BCTHW": clean_BCTHW.to(device), "strength": request.settings["strength"]}
    return denoise(
        under(conditional, "conditional"),
        under(unconditional, "unconditional"),
        noise_BCTHW,
        both=under(both, "both predictions"),
        **start,
    )


def _velocity(dit: nn.Module, cond: dict[str, Any], step_cache: StepCache) -> Velocity:
    return lambda x_BCTHW, timestep_B: model.velocity(dit, x_BCTHW, timestep_B, cond, step_cache=step_cache)


def _first_frame(image_latents: Tensor | None, noise_BCTHW: Tensor) -> dict[str, Tensor]:
    """What SkyReels image-to-video has beside the noise: the image's latents, zeros after them."""
    if image_latents is None:
        return {}
    whole = torch.zeros_like(noise_BCTHW)
    whole[:, :, :1] = image_latents.to(noise_BCTHW.device)
    return {"concat": whole}


def _joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Two conditionings as one of twice the batch."""
    return {
        name: value + second[name] if isinstance(value, list) else torch.cat([value, second[name]])
        for name, value in first.items()
    }
