"""FramePack's rows of the test matrix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.families.framepack import tiny
from tests.families.case import FROM_IMAGE, ONE_FRAME, SINGLE, TWO_PLACES, Case

WINDOW = f"fp_latent_window_size = {tiny.DEMO_WINDOW}\n"  # a clip of 9 frames is one section
F1 = {"f1": True}
CASES = [
    Case(family="framepack", variant="i2v", keys=WINDOW, **FROM_IMAGE),
    Case(family="framepack", variant="f1", keys=WINDOW, cache=F1, train=F1, generate=F1 | FROM_IMAGE["generate"]),
    Case(family="framepack", variant="i2v", cache=ONE_FRAME, train=ONE_FRAME, **SINGLE,
         **TWO_PLACES | {"keys": WINDOW + TWO_PLACES["keys"]}),
]  # fmt: skip


def write_models(folder: Path) -> None:
    tiny.write_tiny_models(folder)


def models(folder: Path, case: Case, verb: str) -> dict[str, Any]:
    length = {"video_sections": None if case.picture else 1}
    return tiny.tiny_model_options(folder)[verb] | (length if verb == "generate" else {})
