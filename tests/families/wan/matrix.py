"""Wan's rows of the test matrix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.families.wan import tiny
from tests.families.case import CONTROL, END, FRAMES, FROM_IMAGE, ONE_FRAME, SINGLE, START, TWO_PLACES, Case


def _case(variant: str, **more: Any) -> Case:
    return Case(family="wan", variant=variant, **more)


CONTROLLED = {"controls": 1, "generate": {"control_path": CONTROL}}
CONTROL_AND_IMAGE = {"controls": 1, "generate": {"control_path": CONTROL, "image_path": START}}
CHANGED = {"control_path": CONTROL, "src_mask": END, "src_ref_images": [START]}
MOVING = {"image_path": START, "camera_pose": "pan_left"}
EXPERTS = {"experts": 2, "train": {"timestep_boundary": 0.5}}
CASES = [
    _case("t2v-1.3B"),
    _case("t2v-1.3B", images=True),
    _case("t2v-1.3B", task="t2v-14B"),
    _case("t2v-1.3B", task="t2v-14B", images=True),
    _case("t2v-1.3B", task="t2i-14B", **SINGLE),
    _case("i2v-14B", **FROM_IMAGE),
    _case("i2v-14B", **FROM_IMAGE, **SINGLE),
    _case("i2v-14B", **SINGLE, controls=1, cache=ONE_FRAME,
          keys="fp_1f_clean_indices = [0]\nfp_1f_target_index = 1",
          generate={"one_frame_inference": "target_index=1,control_index=0", "control_image_path": [START]}),
    _case("flf2v-14B", cache={"flf2v": True}, generate={"image_path": START, "end_image_path": END}),
    _case("flf2v-14B", **SINGLE, **TWO_PLACES, cache=ONE_FRAME),
    _case("t2v-1.3B-FC", **CONTROLLED),
    _case("t2v-1.3B-FC", **CONTROLLED, images=True),
    _case("t2v-1.3B-FC", task="t2v-14B-FC", **CONTROLLED),
    _case("t2v-1.3B-FC", task="t2v-14B-FC", **CONTROLLED, images=True),
    _case("fun-v1.1", task="i2v-14B-FC", **CONTROL_AND_IMAGE),
    _case("fun-v1.1", task="i2v-14B-FC", **CONTROL_AND_IMAGE, images=True),
    _case("camera-1.3B", trained_as="i2v-14B", generate=MOVING),
    _case("camera-1.3B", trained_as="i2v-14B", generate=MOVING, **SINGLE),
    _case("vace-1.3B", trained_as="t2v-1.3B", generate=CHANGED),
    _case("vace-1.3B", trained_as="t2v-1.3B", generate=CHANGED, **SINGLE),
    _case("t2v-A14B", **EXPERTS),
    _case("t2v-A14B", **EXPERTS, **SINGLE),
    _case("i2v-A14B", **EXPERTS, **FROM_IMAGE, cache={"i2v": True}),
    _case("i2v-A14B", **EXPERTS, **FROM_IMAGE, **SINGLE, cache={"i2v": True}),
]  # fmt: skip


def write_models(folder: Path) -> None:
    for variant in tiny.CONFIGS:
        tiny.write_tiny_models(folder, variant=variant)


def models(folder: Path, case: Case, verb: str) -> dict[str, Any]:
    variant = case.trained_as if case.trained_as and verb != "generate" else case.variant
    found = tiny.tiny_model_options(folder, variant=variant)[verb]
    if case.task and verb in ("train", "generate"):
        found = found | {"task": case.task}
    return found | ({"video_length": 1 if case.picture else FRAMES} if verb == "generate" else {})
