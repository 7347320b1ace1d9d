"""A tiny network that names the shape and the texture of a thing, from small pictures of it cut out of a clip.

Blur takes the corners from which plain measurements tell a star from a circle, so this is learned: from drawn clips of
the training split, made worse as a generator would. "other" is what has none of our shapes.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from .facts import NEW_SHAPE, NEW_TEXTURE, SHAPES, TEXTURES
from .seeing import SIDE, Sight, Track

SHAPE_NAMES = (*SHAPES, NEW_SHAPE, "other")
TEXTURE_NAMES = (*TEXTURES, NEW_TEXTURE)
WEIGHTS = Path(__file__).with_name("judge.safetensors")
CROP = 28  # pixels a side
_ROOT_OF_AREA = 11.5  # pixels, that every thing is brought to
_MOST_CROPS = 6
_LIGHTNESS = 0.2  # OKLab, that the second channel counts in


class ShapeNet(nn.Module):
    """Crops [N, 2, 28, 28] to logits of the shapes [N, 10] and of the textures [N, 5]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(2, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(64 * (CROP // 8) ** 2, 48), nn.ReLU(),
        )  # fmt: skip
        self.shape = nn.Linear(48, len(SHAPE_NAMES))
        self.texture = nn.Linear(48, len(TEXTURE_NAMES))

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        found = self.body(crops)
        return self.shape(found), self.texture(found)


def crops(sight: Sight, track: Track) -> np.ndarray:
    """[N, 2, 28, 28] float32: the thing in some of the frames where it is whole, all brought to one size.

    The first channel says how much of a pixel is the thing (0..1), the second how much lighter it is than the thing on
    average (-1..1, 0 outside). N is 0 where there is nothing.
    """
    if not track.seen.any():
        return np.zeros((0, 2, CROP, CROP), np.float32)
    usual = np.median(track.areas[track.seen])
    whole = np.flatnonzero(track.seen & (track.areas > 0.85 * usual))
    chosen = whole[np.linspace(0, len(whole) - 1, min(len(whole), _MOST_CROPS)).round().astype(int)]
    return np.stack([_crop(sight, track, index) for index in chosen])


def _crop(sight: Sight, track: Track, index: int) -> np.ndarray:
    mask, different, lightness = track.masks[index], sight.different[index], sight.lab[index, :, :, 0]
    full = np.percentile(different[mask], 35)
    near = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    near &= (sight.named[index] < 0) | mask
    cover = np.where(near, np.clip(different / full, 0, 1), 0).astype(np.float32)
    lighter = np.clip((lightness - lightness[mask].mean()) / _LIGHTNESS, -1, 1) * cover
    scale = np.sqrt(track.areas[index]) / _ROOT_OF_AREA
    left, top = track.centres[index] * SIDE - 0.5 - scale * (CROP - 1) / 2
    place = np.array([[scale, 0, left], [0, scale, top]])
    return np.stack(
        [
            cv2.warpAffine(np.float32(channel), place, (CROP, CROP), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
            for channel in (cover, lighter)
        ]
    )


def name_crops(net: ShapeNet, pictures: np.ndarray) -> tuple[str, str]:
    """The shape and the texture that fit crops of one thing best: ("other", "") where there are none."""
    if not len(pictures):
        return "other", ""
    with torch.no_grad():
        shapes, textures = (logits.log_softmax(1).mean(0) for logits in net(torch.from_numpy(pictures)))
    return SHAPE_NAMES[int(shapes.argmax())], TEXTURE_NAMES[int(textures.argmax())]


@lru_cache(maxsize=1)
def trained_net() -> ShapeNet:
    """The network with the weights that stand beside this file."""
    net = ShapeNet()
    net.load_state_dict({name: tensor.float() for name, tensor in load_file(WEIGHTS).items()})
    return net.eval()
