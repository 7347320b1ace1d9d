"""How a FramePack video comes about: section after section, each beside the history that was made so far.

The first release makes the last section first and puts each new one in front of the history; F1 goes forward and puts
it behind. Prompts and start images may differ from section to section (`;;;`, see `sections`). The noise of all
sections comes from one generator on the CPU, so that a seed gives the same video on every machine.
Does not know solvers: `denoise` is handed in and called once a section. A step cache, where it is asked for, begins
anew with each section, and each of the two predictions that guidance needs has one of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...ops.sigmas import framepack_mu
from ...parts.batching import batch_of_one, moved
from ...parts.block_stack import BlockStack
from ..values import Denoise, Encoders, Request, StepCache, Velocity
from . import image, model, one_frame, pictures, step_caches
from .conditions import IMAGE_STATES, history_tensors
from .sections import HISTORY_FRAMES, Section, choose, f1_layout, parse_sections, plain_layout, plan
from .vae import LATENT_CHANNELS

PATCH_CELLS = 4  # latent pixels in a token
SHOWN_BESIDE = 27  # latent frames of earlier sections in a preview, which else would take longer and longer
Texts = Mapping[str, Mapping[str, Tensor]]
Shown = Callable[[Tensor], Tensor]


def check_request(request: Request, dit: nn.Module) -> None:
    """OptionError for a step cache that lacks numbers for this DiT, of which only names and shapes are needed."""
    step_caches.settings(request, dit)


def texts(request: Request) -> list[str]:
    """The prompts of all sections; the negative prompt only where guidance needs it."""
    wanted = list(dict.fromkeys(_prompts(request).values()))
    return [*wanted, request.negative_prompt] if request.guided else wanted


def _prompts(request: Request) -> dict[int, str]:
    return parse_sections(request.prompt) or {0: ""}


# ---------------------------------------------------------------------------------------------------------- pictures


def prepare(request: Request, encoders: Encoders) -> dict[str, Any]:
    """ "starts" and "images": latents [C, 1, H, W] and SigLIP states [L, D] for sections, keyed as in the `;;;` text;
    "end": latents of the end image, or None. For one frame see `one_frame.prepare`.

    Without a start image the VAE sees grey and SigLIP black, as in musubi-tuner.
    """
    settings, size = request.settings, (request.width, request.height)
    if settings["one_frame"] is not None:
        return one_frame.prepare(request, encoders)
    paths: dict[int, Path] = dict(settings["image_path"])
    shown = {path: pictures.picture(path, size) for path in paths.values()}
    starts = {path: pictures.latent(picture, encoders) for path, picture in shown.items()}
    states = {path: image.encode(encoders.image, [picture])[0].cpu() for path, picture in shown.items()}
    given = {
        "starts": {index: starts[path] for index, path in paths.items()},
        "images": {index: states[path] for index, path in paths.items()},
        "end": None,
    }
    if not paths:
        given["starts"] = {0: pictures.grey_latent(size, encoders)}
        given["images"] = {0: image.encode(encoders.image, [pictures.black(size)])[0].cpu()}
    if settings["end_image_path"] is not None:
        given["end"] = pictures.latent(pictures.picture(settings["end_image_path"], size), encoders)
    return given


# ---------------------------------------------------------------------------------------------------------- sections


@torch.no_grad()
def video_latents(
    dit: nn.Module,
    request: Request,
    *,
    texts: Texts,
    inputs: Mapping[str, Any],
    denoise: Denoise,
    device: torch.device,
) -> Tensor:
    """Clean latents [1, C, 1 + sections * window, H, W]: the start frame and all sections, float32 in main memory; for
    one frame [1, C, 1, H, W].
    """
    settings, prompts = request.settings, _prompts(request)
    f1, window = settings["f1"], settings["latent_window_size"]
    generator = torch.Generator("cpu").manual_seed(request.seed)
    caching = step_caches.settings(request, dit)

    def made_of(
        prompt: str, given: Mapping[str, Tensor], *, frames: int, label: str = "", shown: Shown | None = None
    ) -> Tensor:
        """One call of `denoise`: clean latents [C, T, H, W]."""
        size = given["latents_clean"].shape[2:]
        noise_BCTHW = torch.randn(1, LATENT_CHANNELS, frames, *size, generator=generator)
        shift = request.shift
        if shift is None:
            shift = math.exp(framepack_mu(frames * size[0] * size[1] // PATCH_CELLS))

        def velocity(text: str, kind: str) -> Velocity:
            cond = _conditioning(request, texts[text], given, device)
            cache = BlockStack.run if caching is None else denoise.step_cache(caching, label=kind)
            return _velocity(dit, cond, cache)

        clean_BCTHW = denoise(
            velocity(prompt, "conditional"),
            velocity(request.negative_prompt, "unconditional") if request.guided else None,
            noise_BCTHW.to(device),
            shift=shift,
            solver=settings["solver"],
            rescale=settings["guidance_rescale"],
            label=label,
            shown=shown,
        )
        return clean_BCTHW[0].float().cpu()

    if settings["one_frame"] is not None:
        return made_of(prompts[0], one_frame.conditioning(request, inputs), frames=1).unsqueeze(0)
    order = plan(settings["video_sections"], f1=f1, paddings=settings["latent_paddings"])
    made = _History(inputs, f1=f1)
    for number, section in enumerate(order, 1):
        label = f"section {number} of {len(order)}" if len(order) > 1 else ""
        given = made.conditioning(section, window)
        made.add(made_of(choose(prompts, section), given, frames=window, label=label, shown=made.with_next))
    return made.video(choose(inputs["starts"], order[-1])).unsqueeze(0)


class _History:
    """What was made so far, with zeros where nothing was; the end image, if there is one, stands right behind the end
    of a video that is made backwards."""

    def __init__(self, inputs: Mapping[str, Any], *, f1: bool):
        self._inputs, self._f1, self._made = inputs, f1, 0
        start_CTHW = inputs["starts"][0].float()
        zeros_CTHW = start_CTHW.new_zeros(LATENT_CHANNELS, HISTORY_FRAMES, *start_CTHW.shape[2:])
        if f1:
            self._latents_CTHW = torch.cat([zeros_CTHW, start_CTHW], dim=1)
        else:
            self._latents_CTHW = zeros_CTHW
            if inputs["end"] is not None:
                self._latents_CTHW[:, :1] = inputs["end"]

    def conditioning(self, section: Section, window: int) -> dict[str, Tensor]:
        """One section's conditioning by the names of a cache file."""
        start_CTHW = choose(self._inputs["starts"], section).float()
        layout = f1_layout(window=window) if self._f1 else plain_layout(section.padding, window=window)
        tensors = history_tensors(start_CTHW, self._latents_CTHW, layout, f1=self._f1)
        return {**tensors, IMAGE_STATES: choose(self._inputs["images"], section)}

    def add(self, section_CTHW: Tensor) -> None:
        parts = [self._latents_CTHW, section_CTHW] if self._f1 else [section_CTHW, self._latents_CTHW]
        self._latents_CTHW = torch.cat(parts, dim=1)
        self._made += section_CTHW.shape[1]

    def with_next(self, section_BCTHW: Tensor) -> Tensor:
        """A section in the making beside the latent frames next to it, [1, C, T, H, W] in main memory: for previews."""
        section_CTHW = section_BCTHW[0].float().cpu()
        beside = min(self._made, SHOWN_BESIDE)
        if self._f1:
            there = self._latents_CTHW.shape[1]
            return torch.cat([self._latents_CTHW[:, there - beside :], section_CTHW], dim=1).unsqueeze(0)
        return torch.cat([section_CTHW, self._latents_CTHW[:, :beside]], dim=1).unsqueeze(0)

    def video(self, start_CTHW: Tensor) -> Tensor:
        """The start frame and all sections in the order of time."""
        if self._f1:
            return self._latents_CTHW[:, HISTORY_FRAMES:]
        return torch.cat([start_CTHW.float(), self._latents_CTHW[:, : self._made]], dim=1)


def _conditioning(
    request: Request, words: Mapping[str, Tensor], given: Mapping[str, Tensor], device: torch.device
) -> dict[str, Any]:
    """One text and one section's history for the DiT. Places and lengths are read here, once, in main memory."""
    batch = batch_of_one({**words, **given}, device="cpu")
    cond = model.cond_from_batch(
        batch, guidance_scale=request.settings["embedded_cfg_scale"], rope_scaling=request.settings["rope_scaling"]
    )
    return moved(cond, device)


def _velocity(dit: nn.Module, cond: dict[str, Any], step_cache: StepCache) -> Velocity:
    return lambda x_BCTHW, timestep_B: model.velocity(dit, x_BCTHW, timestep_B, cond, step_cache=step_cache)
