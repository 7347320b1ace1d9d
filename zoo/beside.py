"""Clips with a LoRA beside the model's weights, and clips side by side: for trying LoRAs in a whole installation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from engine.families.wan.model import WanModel
from engine.lora.files import read_lora
from engine.lora.formats import to_default
from engine.lora.network import create_like
from engine.media.sheet import draw_sheet
from engine.media.writing import write_video
from engine.parts.weights import open_weights, write_weights
from engine.tasks.lora_targets import lora_target

_COLUMNS = 3


def put_beside(dit: WanModel, lora: Path) -> None:
    """The LoRA computes beside the weights, as while it learns."""
    given = read_lora(lora, lora_target("wan", dit), role="the LoRA")
    network = create_like(dit, given.modules)
    network.load_state(to_default(given.modules))
    network.eval()


def write_float32(source: Path, path: Path) -> Path:
    """A copy of a checkpoint with all numbers in float32."""
    file = open_weights(source, role="the model")
    write_weights(path, {name: file.read(name, dtype=torch.float32) for name in file.shapes}, metadata=file.metadata)
    return path


def draw_moving(rows: Sequence[tuple[str, Sequence[np.ndarray]]], path: Path, *, title: str, fps: int) -> Path:
    """A .gif in which all clips move: a caption and some clips [F, H, W, 3] side by side."""
    sheets = []
    for index in range(len(rows[0][1][0])):
        shown = [(label, [clip[index].repeat(2, 0).repeat(2, 1) for clip in clips]) for label, clips in rows]
        sheets.append(np.asarray(draw_sheet(shown, title=title, thumbnail=128, columns=_COLUMNS)))
    return write_video(path, sheets, fps=fps)
