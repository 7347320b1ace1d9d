"""HunyuanVideo's rows of the test matrix."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from engine.families.hunyuan_video import tiny
from tests.families.case import FRAMES, FROM_IMAGE, SINGLE, Case

SKYREELS, SKYREELS_CHANNELS = "skyreels_i2v_tiny.safetensors", 32
CASES = [
    Case(family="hunyuan_video", variant="t2v"),
    Case(family="hunyuan_video", variant="t2v", **SINGLE),
    Case(family="hunyuan_video", variant="skyreels-i2v", **FROM_IMAGE),
    Case(family="hunyuan_video", variant="skyreels-i2v", **FROM_IMAGE, **SINGLE),
]


def write_models(folder: Path) -> None:
    tiny.write_tiny_models(folder)
    tiny.write_dit(folder / SKYREELS, seed=9, config=dataclasses.replace(tiny.DIT_CONFIG, in_dim=SKYREELS_CHANNELS))


def models(folder: Path, case: Case, verb: str) -> dict[str, Any]:
    found = tiny.tiny_model_options(folder)[verb]
    if case.variant == "skyreels-i2v" and verb in ("train", "generate"):
        found = found | {"dit": folder / SKYREELS, "dit_in_channels": SKYREELS_CHANNELS}
    return found | ({"video_length": 1 if case.picture else FRAMES} if verb == "generate" else {})
