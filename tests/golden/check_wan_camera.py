"""Wan with a camera: the DiT and named motions against ComfyUI, rays of a file against VideoX-Fun."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

from engine.families.wan import camera
from engine.families.wan.model import velocity
from tests.golden.check_wan_dit import model_of
from tests.golden.kit import Golden, Row, row


def check(golden: Golden) -> Iterable[Row]:
    tensors, model = golden.tensors, model_of(golden)
    given = {name.removeprefix("forward.in."): value for name, value in tensors.items()}
    cond = {"text": [given["context"]], "y": given["y"], "clip": given["clip"], "camera": given["camera"]}
    yield row("forward", velocity(model, given["x"], given["timestep"], cond), tensors["forward.out"])
    for name, told in golden.info["poses"].items():
        trajectory = camera.named(told["pose"], frames=told["frames"], speed=told["speed"])
        found = camera.rays(trajectory, width=told["width"], height=told["height"])
        yield row(f"rays {name}", found, tensors[f"{name}.out"])
    told = golden.info["file"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "poses.txt"
        path.write_text("\n".join(told["lines"]), encoding="utf-8")
        found = camera.rays(camera.read(path, frames=5), width=told["width"], height=told["height"])
    yield row("rays of a file", found, tensors["file.out"])


CHECKS = {"wan_camera*": check}
