"""Clips -> the tensors of FramePack's latent caches, by musubi-tuner's names: sections of videos, and single images.

A clip is trained on in sections, each with the history that a generation would have when it comes to it: what follows
for the first release, what came before for F1. A single image stands beside its control images, each at a place in
time (one-frame training). Does not load models and knows no options.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ...contract.errors import DataError
from ...parts.hunyuan_vae_public import TIME_STRIDE
from ...parts.siglip import Siglip
from ..values import Clips
from . import image
from .conditions import IMAGE_STATES, history_tensors, latent_mask, one_frame_tensors
from .sections import HISTORY_FRAMES, f1_layout, frames_used, one_frame_layout, plain_layout, plan

Sample = dict[str, Tensor]
Encode = Callable[[Tensor], Tensor]
"""Pixels [B, 3, F, H, W] in -1..1 to scaled latents."""


# ---------------------------------------------------------------------------------------------------------- sections


def section_samples(
    draw: Encode, clips: Clips, *, dtype: torch.dtype, image_encoder: Siglip, f1: bool
) -> list[list[Sample]]:
    """For each clip its sections in the order of time. Frames behind the last whole section are left out.

    `draw` gives a draw of the VAE's posterior. `f1`: history as F1 has it.
    """
    latent_frames = (clips.frames_BCFHW.shape[2] - 1) // TIME_STRIDE + 1
    used = (frames_used(latent_frames, window=clips.window) - 1) * TIME_STRIDE + 1
    latents_BCTHW = draw(clips.frames_BCFHW[:, :, :used]).to(dtype)
    states_BLD = image.encode_pixels(image_encoder, clips.frames_BCFHW[:, :, 0]).to(dtype)
    sections_of = f1_sections if f1 else plain_sections
    return [
        [{**section, IMAGE_STATES: states_LD} for section in sections_of(latents_CTHW, clips.window)]
        for latents_CTHW, states_LD in zip(latents_BCTHW, states_BLD, strict=True)
    ]


def plain_sections(latents_CTHW: Tensor, window: int) -> list[Sample]:
    """The first release: the history of a section is what follows it in time."""
    padded_CTHW = torch.cat([latents_CTHW, _nothing_yet(latents_CTHW)], dim=1)
    samples = {}
    for section in plan((latents_CTHW.shape[1] - 1) // window):
        first = section.first_frame(window)
        layout = plain_layout(section.padding, window=window)
        conditioning = history_tensors(latents_CTHW[:, :1], padded_CTHW[:, first + window :], layout, f1=False)
        samples[section.index] = {"latents": latents_CTHW[:, first : first + window], **conditioning}
    return [samples[index] for index in sorted(samples)]


def f1_sections(latents_CTHW: Tensor, window: int) -> list[Sample]:
    """F1: the history of a section is what came before it, the start frame included."""
    padded_CTHW = torch.cat([_nothing_yet(latents_CTHW), latents_CTHW], dim=1)
    samples = []
    for section in plan((latents_CTHW.shape[1] - 1) // window, f1=True):
        first = section.first_frame(window)
        before_CTHW = padded_CTHW[:, : HISTORY_FRAMES + first]
        conditioning = history_tensors(latents_CTHW[:, :1], before_CTHW, f1_layout(window=window), f1=True)
        samples.append({"latents": latents_CTHW[:, first : first + window], **conditioning})
    return samples


def _nothing_yet(latents_CTHW: Tensor) -> Tensor:
    """History before anything was made: zeros."""
    return latents_CTHW.new_zeros(latents_CTHW.shape[0], HISTORY_FRAMES, *latents_CTHW.shape[2:])


# --------------------------------------------------------------------------------------------------------- one frame


def one_frame_samples(
    draw: Encode,
    encode: Encode,
    clips: Clips,
    *,
    dtype: torch.dtype,
    image_encoder: Siglip,
    no_2x: bool,
    no_4x: bool,
) -> list[list[Sample]]:
    """One sample an image, with its control images under their alpha channels.

    The image is a draw of the VAE's posterior (`draw`); controls are its mean (`encode`), as generation has them.
    SigLIP sees the first control. Raises DataError for clips that have no controls, or places that do not fit them.
    """
    layout = one_frame_layout(
        clips.window if clips.target_index is None else clips.target_index,
        _places(clips),
        window=clips.window,
        no_2x=no_2x,
        no_4x=no_4x,
        no_post=clips.no_post,
    )
    latents_BCTHW = draw(clips.frames_BCFHW).to(dtype)
    controls_BCTHW = torch.cat([_control(encode, clips, number) for number in range(len(clips.controls_BCFHW))], dim=2)
    states_BLD = image.encode_pixels(image_encoder, clips.controls_BCFHW[0][:, :, 0]).to(dtype)
    columns = zip(latents_BCTHW, controls_BCTHW.to(dtype), states_BLD, strict=True)
    return [
        [{"latents": latents_CTHW, **one_frame_tensors(controls_CTHW, layout), IMAGE_STATES: states_LD}]
        for latents_CTHW, controls_CTHW, states_LD in columns
    ]


def _places(clips: Clips) -> tuple[int, ...]:
    """The places in time of the control images; one alone stands at 0 where the dataset does not say."""
    count = len(clips.controls_BCFHW)
    if not count:
        raise DataError(
            "--one_frame makes an image from control images, and this dataset has none.",
            "Set control_directory in the dataset file (or control_path in the jsonl file).",
        )
    places = clips.clean_indices or (0,)
    if len(places) != count:
        raise DataError(
            f"{count} control images and {len(places)} fp_1f_clean_indices: each control has a place of its own.",
            "Change fp_1f_clean_indices in the dataset file.",
        )
    return places


def _control(encode: Encode, clips: Clips, number: int) -> Tensor:
    """The latents [B, C, 1, H, W] of one control of each image, where its alpha channel is opaque."""
    pixels_BCFHW = clips.controls_BCFHW[number]
    if pixels_BCFHW.shape[3:] != clips.frames_BCFHW.shape[3:]:
        raise DataError(
            f"A control image has {pixels_BCFHW.shape[4]}x{pixels_BCFHW.shape[3]} pixels, its image "
            f"{clips.frames_BCFHW.shape[4]}x{clips.frames_BCFHW.shape[3]}.",
            "FramePack needs both alike: remove no_resize_control and control_resolution from the dataset file.",
        )
    latents_BCTHW = encode(pixels_BCFHW)
    alpha_BHW = clips.alphas_BHW[number] if clips.alphas_BHW else None
    if alpha_BHW is None:
        return latents_BCTHW
    bytes_BHW: np.ndarray = (alpha_BHW * 255).round().to(torch.uint8).cpu().numpy()
    masks_BHW = torch.stack([latent_mask(alpha_HW) for alpha_HW in bytes_BHW])
    return latents_BCTHW * masks_BHW[:, None, None].to(latents_BCTHW.device)
