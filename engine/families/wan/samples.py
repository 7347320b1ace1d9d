"""Clips -> the tensors of Wan's latent caches, by musubi-tuner's names: for every variant, and for one-frame training.

    latents           [16, T, H, W]   the clip; in one-frame training the controls and the image, by place in time
    latents_image     [20, T, H, W]   mask and image latents (conditions.py): image-to-video
    latents_control   [16, T, H, W]   the control clip: Fun-Control
    clip              [257, D]        CLIP features of the first frame; [n, 257, D] of several images
    f_indices         [T]             places in time: one frame

Does not load models and knows no options.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...contract.errors import DataError
from ..values import Clips
from . import clip as clip_vision
from . import conditions, one_frame

Sample = dict[str, Tensor]
CLIP_DTYPE = torch.float16


def clip_samples(
    encode: conditions.Encode, clips: Clips, *, image_encoder: clip_vision.ClipVision | None, i2v: bool, flf2v: bool
) -> list[Sample]:
    """One sample a clip. `i2v` keeps the first frame as its image, `flf2v` the first and the last."""
    frames_BCFHW = clips.frames_BCFHW
    columns = {"latents": encode(frames_BCFHW)}
    if i2v or flf2v:
        images = [frames_BCFHW[:, :, 0], *([frames_BCFHW[:, :, -1]] if flf2v else [])]
        columns["latents_image"] = conditions.image_condition(
            encode, images[0], frames=frames_BCFHW.shape[2], last_BCHW=images[1] if flf2v else None
        )
        if image_encoder is not None:
            columns["clip"] = _features(image_encoder, images)
    if clips.controls_BCFHW:
        columns["latents_control"] = encode(_same_size(clips.controls_BCFHW[0], frames_BCFHW))
    return _rows(columns)


def one_frame_samples(
    encode: conditions.Encode, clips: Clips, *, image_encoder: clip_vision.ClipVision
) -> list[Sample]:
    """One sample an image: it and its controls in the order of their places in time. Raises DataError."""
    _check_one_frame(clips)
    controls_BCHW = [_same_size(control, clips.frames_BCFHW)[:, :, 0] for control in clips.controls_BCFHW]
    try:
        condition_BCTHW, known_BCTHW, places, target = conditions.one_frame_condition(
            encode, controls_BCHW, clips.clean_indices or (), clips.target_index or 0
        )
    except ValueError as error:
        raise DataError(
            f"fp_1f_clean_indices {list(clips.clean_indices or ())} and fp_1f_target_index {clips.target_index}: "
            f"{error}.", "Give the image and each control a different place in the dataset file."
        ) from error  # fmt: skip
    latents_BCTHW = known_BCTHW.clone()
    latents_BCTHW[:, :, target] = encode(clips.frames_BCFHW)[:, :, 0]
    columns = {
        "latents": latents_BCTHW,
        "latents_image": condition_BCTHW,
        "clip": _features(image_encoder, controls_BCHW, always_stacked=True),
        "f_indices": torch.tensor(places, dtype=torch.int32).expand(len(latents_BCTHW), -1),
    }
    return _rows(columns)


def _check_one_frame(clips: Clips) -> None:
    count, indices = len(clips.controls_BCFHW), clips.clean_indices
    if clips.frames_BCFHW.shape[2] != 1:
        raise DataError("--one_frame takes images, and this is a video.", "Use a dataset with image_directory.")
    if not count:
        raise DataError(
            "--one_frame makes an image from control images, and this dataset has none.",
            "Set control_directory in the dataset file (or control_path in the jsonl file).",
        )
    if indices is None or clips.target_index is None:
        raise DataError(
            "--one_frame needs the places in time of the controls and of the image.",
            "Set fp_1f_clean_indices = [0] and fp_1f_target_index = 1 in the dataset file.",
        )
    if len(indices) != count or count > one_frame.MOST_CONTROLS:
        raise DataError(
            f"{count} control images and {len(indices)} fp_1f_clean_indices: Wan takes one or two, a place for each.",
            "Change fp_1f_clean_indices in the dataset file.",
        )


def _same_size(control_BCFHW: Tensor, frames_BCFHW: Tensor) -> Tensor:
    if control_BCFHW.shape[3:] != frames_BCFHW.shape[3:]:
        height, width = control_BCFHW.shape[3:]
        raise DataError(
            f"The control has {width}x{height} pixels, its clip {frames_BCFHW.shape[4]}x{frames_BCFHW.shape[3]}.",
            "Wan needs both alike: remove no_resize_control and control_resolution from the dataset file.",
        )
    return control_BCFHW


def _features(
    image_encoder: clip_vision.ClipVision, images_BCHW: Sequence[Tensor], *, always_stacked: bool = False
) -> Tensor:
    """CLIP features [B, tokens, D], of several images [B, images, tokens, D]."""
    features = [clip_vision.encode(image_encoder, image_BCHW).to(CLIP_DTYPE) for image_BCHW in images_BCHW]
    return torch.stack(features, dim=1) if len(features) > 1 or always_stacked else features[0]


def _rows(columns: dict[str, Tensor]) -> list[Sample]:
    """A dict of batches as a list of dicts."""
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
