"""Cameras: files and named motions as rays, and a DiT that follows them. Numbers are in tests/golden."""

from __future__ import annotations

import pytest
import torch

from engine.contract.errors import DataError
from engine.families.wan import camera, model, tiny
from engine.families.wan.variants import CAMERA_POSES

EYE = "1 0 0 0 0 1 0 0 0 0 1 0"


def written(tmp_path, *lines: str):
    path = tmp_path / "camera.txt"
    path.write_text("\n".join(["a title", *lines]))
    return path


def line(matrix: str = EYE) -> str:
    return f"0 0.5 0.9 0.5 0.5 0 0 {matrix}"


def test_a_camera_that_stays_sees_every_pixel_straight_from_the_origin():
    found = camera.rays(camera.named("static", frames=5), width=16, height=8).unflatten(1, (6, 4))
    moments, directions = found[0, :3], found[0, 3:]
    assert found.shape == (1, 6, 4, 2, 8, 16) and not moments.any()
    assert torch.allclose(directions.norm(dim=0), torch.ones(4, 2, 8, 16))
    assert directions[2].gt(0).all()  # forwards
    assert torch.equal(directions[0], -directions[0].flip(-1)) and torch.equal(directions[1], -directions[1].flip(-2))


def test_the_first_frame_stands_for_four_and_the_others_for_themselves():
    found = camera.rays(camera.named("pan_right", frames=9), width=4, height=4).unflatten(1, (6, 4))[0]
    assert torch.equal(found[:, :, 0], found[:, :1, 0].expand(-1, 4, -1, -1))
    pushed = found[1, :, :, 2, 2].T.flatten()[3:]  # moment around y: of the shift to the right, frame by frame
    assert pushed.diff().abs().min() > 0 and torch.allclose(pushed.diff(), pushed.diff()[:1].expand(8), atol=1e-5)


@pytest.mark.parametrize(("pose", "axis", "sign"), [
    ("pan_left", 0, -1), ("pan_right", 0, 1), ("pan_up", 1, -1), ("pan_down", 1, 1), ("zoom_in", 2, 1),
    ("zoom_out", 2, -1),
])  # fmt: skip
def test_named_motions_go_where_their_names_say(pose, axis, sign):
    """x to the right, y down, z forwards."""
    moved = camera.named(pose, frames=9).places_F44[-1, :3, 3]
    assert moved[axis] * sign > 0 and moved.count_nonzero() == 1
    assert torch.allclose(camera.named(pose, frames=9, speed=2.0).places_F44[-1, :3, 3], 2 * moved)


def test_a_file_is_seen_from_its_first_camera(tmp_path):
    """Its matrices lead from the world to the camera: a camera that goes left has the world go right."""
    path = written(tmp_path, line("1 0 0 5 0 1 0 0 0 0 1 0"), line("1 0 0 7 0 1 0 0 0 0 1 0"))
    found = camera.read(path, frames=2)
    assert torch.equal(found.places_F44[0], torch.eye(4)) and found.places_F44[1, :3, 3].tolist() == [-2, 0, 0]
    assert found.lens_F4[0].tolist() == pytest.approx([0.5, 0.9, 0.5, 0.5])


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ((line(), "1 2 3"), "line 3: 3 numbers, not 19"),
        ((line(), line("a" + EYE[1:])), "could not convert"),
        ((line(), line()), "2 cameras, but 5 frames"),
    ],
)
def test_a_wrong_file_is_told_so(tmp_path, lines, words):
    with pytest.raises(DataError, match=words):
        camera.read(written(tmp_path, *lines), frames=5)


def test_three_frames_are_like_any_other_number():
    """torch.cross without `dim` takes the first axis of length 3: with three frames that is the frames."""
    pose = camera.named("pan_right", frames=3)
    wide = camera.rays(pose, width=6, height=3).unflatten(1, (6, 4))[0, :, 3, 0]
    moment = torch.linalg.cross(pose.places_F44[0, :3, 3].expand(3, 6, 3), wide[3:].movedim(0, -1), dim=-1)
    assert torch.equal(wide[:3].movedim(0, -1), moment)


@pytest.mark.parametrize("given", ["clip", "camera", "y"])
def test_everything_that_is_given_reaches_the_dit(given):
    config = tiny.CONFIGS["camera-1.3B"]
    built = model.build(config, device="cpu")
    built.load_state_dict(tiny.dit_tensors(1, config))
    rays = {pose: camera.rays(camera.named(pose, frames=5), width=32, height=32) for pose in CAMERA_POSES}
    plain = {"text": [torch.ones(3, 64)], "y": torch.zeros(1, 16, 2, 4, 4), "camera": rays["static"]}
    others = {
        "clip": torch.randn(1, 257, tiny.tiny_clip.WIDTH), "camera": rays["zoom_in"], "y": torch.ones(1, 16, 2, 4, 4)
    }  # fmt: skip

    def found(cond):
        return model.velocity(built, torch.ones(1, 16, 2, 4, 4), torch.tensor([500.0]), cond)

    assert torch.equal(found(plain), found({**plain, "clip": torch.zeros(1, 257, tiny.tiny_clip.WIDTH)}))
    assert (found(plain) - found({**plain, given: others[given]})).abs().max() > 1e-5
