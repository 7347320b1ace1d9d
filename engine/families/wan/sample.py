"""How a Wan video comes about: what its pictures become, the latent's shape, the noise, the conditioning.

`prepare` works with VAE and image encoder before the DiT is loaded; `video_latents` with the DiT. The denoising itself
is handed in, because every family uses the same one (`engine/sampling`): Wan asks for it once for a whole video.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...contract.errors import OptionError
from ...media.images import read_image
from ...parts.batching import batch_of_one
from ...parts.block_stack import BlockStack
from ..values import Denoise, Encoders, Request, StepCache, Velocity
from . import camera, clip, conditions, model, pictures, step_caches, vae
from .one_frame import OneFrame
from .vae import SPACE_STRIDE, TIME_STRIDE
from .variants import LATENT_CHANNELS, MASK_CHANNELS, VARIANTS, takes_two_images


def texts(request: Request) -> list[str]:
    """The prompt, and the negative prompt where guidance needs it."""
    return [request.prompt, *([request.negative_prompt] if request.guided else [])]


# ----------------------------------------------------------------------------------------- before the DiT is loaded


def check_request(request: Request, dit: nn.Module) -> None:
    """OptionError for what this DiT, of which only names and shapes are needed, has no place for."""
    if request.settings["reference_image_path"] is not None and not dit.config.has_ref_conv:
        raise OptionError(
            "--reference_image_path: this --dit has no place for a reference image (ref_conv).",
            "Leave it out, or use a Fun-Control V1.1 checkpoint.",
            names=("reference_image_path", "dit"),
        )
    count = dit.config.num_layers
    if any(layer >= count for layer in request.skip_layers):
        raise OptionError(
            f"--slg_layers names block {max(request.skip_layers)}, but 0 to {count - 1} can be left out.",
            "Correct --slg_layers; VACE's own blocks always run.",
            names=("slg_layers", "dit"),
        )
    step_caches.settings(request, dit)


@torch.no_grad()
def prepare(request: Request, encoders: Encoders) -> dict[str, Any]:
    """Tensors "y", "clip", "reference", "camera", "vace", "clean" (for video-to-video) and numbers "frame_indices",
    "target" (for one frame), "before" (reference frames), where they play a part; and "latent_size" (T, H, W)."""
    asked, task = request.settings, VARIANTS[request.settings["task"]]
    images = _Images(request, encoders)
    if asked["one_frame"] is not None:
        inputs = _one_frame(images, asked["one_frame"])
    elif task.takes_context:
        inputs = _vace(images)
    elif task.takes_camera:
        inputs = _camera(images)
    elif task.takes_control:
        inputs = _control(images)
    elif task.takes_image:
        inputs = {"y": images.condition()}
    else:
        inputs = {}
    if images.reference_HWC is not None:
        inputs["reference"] = images.encode(images.pixels(images.reference_HWC).unsqueeze(2))[:, :, 0]
    if task.image_encoder and images.seen_HWC:
        inputs["clip"] = images.features()
    if "y" in inputs or "vace" in inputs:
        inputs["latent_size"] = tuple(inputs["y" if "y" in inputs else "vace"].shape[2:])
    else:
        inputs["latent_size"] = latent_shape(width=images.size[0], height=images.size[1], frames=request.frames)[2:]
    if asked["video_path"] is not None:
        before = inputs.get("before", 0)
        clean_BCTHW = images.video(inputs["latent_size"][0] - before)
        references = [inputs["vace"][:, :LATENT_CHANNELS, :before]] if before else []
        inputs["clean"] = torch.cat([*references, clean_BCTHW], dim=2)
    return {name: value.cpu() if isinstance(value, Tensor) else value for name, value in inputs.items()}


class _Images:
    """The pictures of one request, read and measured; encoders are looked at only when something is encoded."""

    def __init__(self, request: Request, encoders: Encoders):
        self.request, self.encoders, self.asked = request, encoders, request.settings
        self.task = self.asked["task"]
        controls = self.asked["control_image_path"]
        first = self.asked["image_path"] or next(iter(controls), None)
        last = self.asked["end_image_path"]
        if last is None and takes_two_images(self.task):
            last = controls[-1] if len(controls) > 1 else None
        self.first_HWC = read_image(first) if first else None
        last_HWC = read_image(last) if last else None
        shaping_HWC = last_HWC if self.first_HWC is None else self.first_HWC  # VACE takes an end image alone
        self.last_HWC = None if last_HWC is None else pictures.cut_to_shape(last_HWC, shaping_HWC)
        reference = self.asked["reference_image_path"]
        self.reference_HWC = read_image(reference) if reference else None
        self.size: pictures.Size = (request.width, request.height)
        if shaping_HWC is not None:
            self.size = pictures.size_by_area(shaping_HWC, area=request.width * request.height)

    def encode(self, clip_BCFHW: Tensor) -> Tensor:
        return vae.encode(self.encoders.vae, clip_BCFHW)

    def pixels(self, picture_HWC: Any) -> Tensor:
        """A picture at the video's size, [1, 3, H, W]."""
        return pictures.as_image(pictures.stretched(picture_HWC, self.size))

    def end_latents(self) -> Tensor:
        return self.encode(self.pixels(self.last_HWC).unsqueeze(2))

    @property
    def two_ends(self) -> bool:
        """Whether the end image is part of the clip, as first-and-last-frame models have it."""
        return takes_two_images(self.task) and self.last_HWC is not None

    @property
    def extra_end(self) -> bool:
        """Whether the end image is one latent frame more, in models that have no place for it."""
        return self.last_HWC is not None and not takes_two_images(self.task)

    def condition(self) -> Tensor:
        """Mask and image latents, [1, 20, T, H, W]."""
        last_BCHW = self.pixels(self.last_HWC) if self.two_ends else None
        first_BCHW, frames = self.pixels(self.first_HWC), self.request.frames
        condition_BCTHW = conditions.image_condition(self.encode, first_BCHW, frames=frames, last_BCHW=last_BCHW)
        return conditions.append_end_image(condition_BCTHW, self.end_latents()) if self.extra_end else condition_BCTHW

    @property
    def seen_HWC(self) -> list[Any]:
        """What CLIP sees: the start image, or both ends where the model takes two; a reference image before either."""
        if self.reference_HWC is not None:
            return [self.reference_HWC]
        ends = [self.first_HWC, self.last_HWC if takes_two_images(self.task) else None]
        return [picture for picture in ends if picture is not None]

    def features(self) -> Tensor:
        """CLIP features of what it sees, [1, 257, D], or [1, 514, D] of two images."""
        encoder = self.encoders.image
        return torch.cat([clip.encode(encoder, pictures.as_image(picture)) for picture in self.seen_HWC], dim=1)

    def video(self, latent_frames: int) -> Tensor:
        """Latents of the video to start from; where there is one latent frame more, that of the end image."""
        clip_BCFHW = pictures.read_clip(
            self.asked["video_path"], size=self.size, frames=self.request.frames, flag="--video_path"
        )
        latents_BCTHW = self.encode(clip_BCFHW)
        if latents_BCTHW.shape[2] < latent_frames:
            latents_BCTHW = torch.cat([latents_BCTHW, self.end_latents()], dim=2)
        return latents_BCTHW


def _control(images: _Images) -> dict[str, Any]:
    """Fun-Control: the control video, and the start image where there is one."""
    frames, path = images.request.frames, images.asked["control_path"]
    extra = 1 if images.extra_end else 0
    clip_BCFHW = pictures.read_clip(path, size=images.size, frames=frames + extra, flag="--control_path")
    control_BCTHW = images.encode(clip_BCFHW[:, :, :frames])
    if extra:
        control_BCTHW = torch.cat([control_BCTHW, images.encode(clip_BCFHW[:, :, frames:])], dim=2)
    if images.first_HWC is None:
        return {"y": conditions.control_condition(control_BCTHW)}
    image_BCTHW = images.condition()[:, MASK_CHANNELS:]
    keep = (0, -1) if extra else (0,)
    return {"y": conditions.control_condition(control_BCTHW, image_BCTHW, keep=keep)}


def _vace(images: _Images) -> dict[str, Any]:
    """VACE: a control video or one to change, with its mask, images of what appears, and frames that are given."""
    asked, frames, (width, height) = images.asked, images.request.frames, images.size
    clip_BCFHW, mask_BFHW = torch.zeros(1, 3, frames, height, width), torch.ones(1, frames, height, width)
    if asked["control_path"] is not None:
        clip_BCFHW = pictures.read_clip(asked["control_path"], size=images.size, frames=frames, flag="--control_path")
    if asked["src_mask"] is not None:
        mask_BFHW = pictures.read_mask(asked["src_mask"], size=images.size, frames=frames, flag="--src_mask").clone()
    for place, picture_HWC in ((0, images.first_HWC), (frames - 1, images.last_HWC)):
        if picture_HWC is not None:
            clip_BCFHW[:, :, place], mask_BFHW[:, place] = images.pixels(picture_HWC), 0.0
    shown = [pictures.on_white(read_image(path), images.size) for path in asked["src_ref_images"]]
    context_BCTHW = conditions.vace_context(images.encode, clip_BCFHW, mask_BFHW, references_BCHW=shown)
    return {"vace": context_BCTHW, "vace_strength": asked["vace_strength"], "before": len(shown)}


def _camera(images: _Images) -> dict[str, Any]:
    """Fun-Control with a camera: where it is in each frame, and the start image where there is one."""
    asked, frames, (width, height) = images.asked, images.request.frames, images.size
    if asked["control_camera_txt"] is not None:
        trajectory = camera.read(asked["control_camera_txt"], frames=frames)
    else:
        trajectory = camera.named(asked["camera_pose"], frames=frames, speed=asked["camera_speed"])
    shape = latent_shape(width=width, height=height, frames=frames)
    latent = None if images.first_HWC is None else images.encode(images.pixels(images.first_HWC).unsqueeze(2))
    return {
        "y": conditions.start_condition(None if latent is None else latent.cpu(), like_BCTHW=shape),
        "camera": camera.rays(trajectory, width=width, height=height),
    }


def _one_frame(images: _Images, one_frame: OneFrame) -> dict[str, Any]:
    """A single image beside the control images (or the start image, where there are none)."""
    paths = images.asked["control_image_path"]
    shown = [pictures.resize_to_bucket(read_image(path), images.size) for path in paths]
    controls_BCHW = [pictures.as_image(picture) for picture in shown] or [images.pixels(images.first_HWC)]
    condition_BCTHW, _, places, target = conditions.one_frame_condition(
        images.encode, controls_BCHW, one_frame.control_indices, one_frame.target_index
    )
    return {"y": condition_BCTHW, "frame_indices": [places], "target": target}


# -------------------------------------------------------------------------------------------------- with the DiT


def latent_shape(*, width: int, height: int, frames: int) -> tuple[int, int, int, int, int]:
    """The latent of one video, BCTHW. `width`, `height` in pixels, multiples of 16; `frames` = 4n + 1."""
    return (1, LATENT_CHANNELS, (frames - 1) // TIME_STRIDE + 1, height // SPACE_STRIDE, width // SPACE_STRIDE)


def draw_noise(shape: tuple[int, ...], *, seed: int, device: torch.device, on_cpu: bool = False) -> Tensor:
    """Standard normal noise, float32, on `device`.

    Drawn by the device's own generator, as the reference does; `on_cpu` draws by the CPU's, which gives the same video
    on every machine and is what ComfyUI does.
    """
    origin = torch.device("cpu") if on_cpu else device
    generator = torch.Generator(origin).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=origin, dtype=torch.float32).to(device)


def velocity_for(dit: nn.Module, cond: dict[str, Any], *, step_cache: StepCache = BlockStack.run) -> Velocity:
    """The DiT under one conditioning, as solvers want it."""

    def velocity(x_BCTHW: Tensor, timestep_B: Tensor) -> Tensor:
        return model.velocity(dit, x_BCTHW, timestep_B, cond, step_cache=step_cache)

    return velocity


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
    """The clean latents of one video, BCTHW float32; of one-frame inference the wanted frame alone, with VACE without
    its reference images."""
    shared = {name: inputs[name].to(device) for name in ("y", "clip", "reference", "vace") if name in inputs}
    shared |= {name: inputs[name] for name in ("frame_indices", "vace_strength") if name in inputs}
    if "camera" in inputs:  # as large as a clip, so not in more bits than the DiT takes
        shared["camera"] = inputs["camera"].to(device, dit.dtype)

    caching = step_caches.settings(request, dit)

    def under(text: str, label: str, **more: Any) -> Velocity:
        batch = batch_of_one(texts[text], device=device)
        cache = BlockStack.run if caching is None else denoise.step_cache(caching, label=label)
        return velocity_for(dit, {"text": batch["t5"], **shared, **more}, step_cache=cache)

    def wanted(latents_BCTHW: Tensor) -> Tensor:
        target = inputs.get("target")
        if target is not None:
            return latents_BCTHW[:, :, target : target + 1]
        return latents_BCTHW[:, :, inputs.get("before", 0) :]

    clean = inputs.get("clean")
    shape = (1, LATENT_CHANNELS, *inputs["latent_size"])
    latents_BCTHW = denoise(
        under(request.prompt, "conditional"),
        under(request.negative_prompt, "unconditional") if request.guided else None,
        draw_noise(shape, seed=request.seed, device=device, on_cpu=request.cpu_noise),
        skipped=under(request.negative_prompt, "with blocks skipped", skip_blocks=request.skip_layers)
        if request.skip_layers
        else None,
        clean_BCTHW=None if clean is None else clean.to(device),
        strength=request.settings["strength"],
        shown=wanted,
    )
    return wanted(latents_BCTHW)
