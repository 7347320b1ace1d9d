"""Where the camera is in each frame, and the rays of light that reach its pixels: what camera models are told.

A ray is written in Plücker coordinates, six numbers: its moment (origin x direction) and its direction of length 1. The
first camera is the origin; x goes right, y down, z forwards. File format and layout are those of VideoX-Fun 804a4258
(which took them from CameraCtrl and RealEstate10K), named motions and their lens ComfyUI's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...contract.errors import DataError
from .variants import CAMERA_POSES

LENS = (0.5, 0.5, 0.5, 0.5)  # of named motions
SHAPE = 1280 / 720  # of the pictures that a lens is told for
NUMBERS = 19  # in a line of a file
FRAMES_EACH = 4  # of a latent frame; the first stands for four


@dataclass(frozen=True)
class Trajectory:
    """A camera for each frame. `lens_F4`: focal lengths and centre (fx, fy, cx, cy) in widths and heights of a picture.

    `places_F44`: from the camera's coordinates to the first camera's.
    """

    lens_F4: Tensor
    places_F44: Tensor


def named(pose: str, *, frames: int, speed: float = 1.0) -> Trajectory:
    """One of `CAMERA_POSES`, evenly: `speed` 1 goes all its way in as many frames as there are, and would arrive in the
    next."""
    *way, turns = CAMERA_POSES[pose]
    places_F44 = torch.eye(4, dtype=torch.float64).repeat(frames, 1, 1)
    for frame, place in enumerate(places_F44):
        done = speed * frame / frames
        angle = 2 * math.pi * turns * done
        place[:2, :2] = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        place[:3, 3] = torch.tensor(way) * done
    return Trajectory(torch.tensor(LENS).expand(frames, 4), places_F44.float())


def read(path: Path, *, frames: int) -> Trajectory:
    """The first `frames` lines after the title line of a file: each has a time, fx, fy, cx, cy, two zeros, and 12
    numbers that take the world's coordinates to the camera's, row by row. DataError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()[1:]
        rows = [[float(word) for word in line.split()] for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"--control_camera_txt {path}: {error}.", "Give a text file of camera positions.") from error
    for number, row in enumerate(rows, start=2):
        if len(row) != NUMBERS:
            raise DataError(
                f"--control_camera_txt {path}, line {number}: {len(row)} numbers, not {NUMBERS}.",
                "A line has a time, fx, fy, cx, cy, 0, 0 and the 12 numbers of the camera's matrix.",
            )
    if len(rows) < frames:
        raise DataError(
            f"--control_camera_txt {path}: {len(rows)} cameras, but {frames} frames are to be made.",
            f"Use --video_length {max(1, (len(rows) - 1) // FRAMES_EACH * FRAMES_EACH + 1)} or less.",
        )
    told = torch.tensor(rows[:frames], dtype=torch.float64)
    to_camera_F44 = torch.eye(4, dtype=torch.float64).repeat(frames, 1, 1)
    to_camera_F44[:, :3] = told[:, 7:].unflatten(1, (3, 4))
    places_F44 = to_camera_F44[0] @ torch.linalg.inv(to_camera_F44)
    return Trajectory(told[:, 1:5].float(), places_F44.float())


def rays(trajectory: Trajectory, *, width: int, height: int) -> Tensor:
    """[1, 24, T, H, W] in pixels: for each of the six numbers the four pixel frames of a latent frame.

    A lens is told for pictures of 16:9 and keeps its angle along the side that is not cut.
    """
    frames = len(trajectory.places_F44)
    latent_frames = (frames - 1) // FRAMES_EACH + 1
    packed = torch.empty(6, FRAMES_EACH, latent_frames, height, width)
    scale = torch.tensor([width, height, width, height])
    wider = height * SHAPE / width
    stretch = torch.tensor([wider, 1.0, 1.0, 1.0] if wider > 1 else [1.0, 1 / wider, 1.0, 1.0])
    for place in range(FRAMES_EACH * latent_frames):
        frame = max(0, place - FRAMES_EACH + 1)
        lens_4 = trajectory.lens_F4[frame] * stretch * scale
        found = _rays(lens_4, trajectory.places_F44[frame], height, width)
        packed[:, place % FRAMES_EACH, place // FRAMES_EACH] = found
    return packed.flatten(0, 1).unsqueeze(0)


def _rays(lens_4: Tensor, place_44: Tensor, height: int, width: int) -> Tensor:
    """[6, H, W] of one camera, through the middle of each pixel; the lens in pixels."""
    focal_x, focal_y, centre_x, centre_y = lens_4
    y_HW, x_HW = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    directions = torch.stack([(x_HW - centre_x) / focal_x, (y_HW - centre_y) / focal_y, torch.ones_like(x_HW)], dim=-1)
    directions = torch.nn.functional.normalize(directions, dim=-1) @ place_44[:3, :3].T
    moments = torch.linalg.cross(place_44[:3, 3].expand_as(directions), directions, dim=-1)
    return torch.cat([moments, directions], dim=-1).permute(2, 0, 1)
