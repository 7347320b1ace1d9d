"""What stands beside the noise: masks and image latents as in diffusers' pipelines, Fun-Control, one frame."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from engine.families.wan import conditions

CHANNELS = 16


@pytest.fixture(scope="module")
def pictures():
    return torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1


def pipeline_condition(diffusers_vae, first, last, frames):
    """Mask and image latents as WanImageToVideoPipeline makes them."""
    from diffusers import WanImageToVideoPipeline

    parts = SimpleNamespace(
        vae=diffusers_vae, vae_scale_factor_temporal=4, vae_scale_factor_spatial=8,
        config=SimpleNamespace(expand_timesteps=False),
    )  # fmt: skip
    _, condition = WanImageToVideoPipeline.prepare_latents(
        parts, first, batch_size=1, height=32, width=48, num_frames=frames, dtype=torch.float32,
        device=torch.device("cpu"), last_image=last,
    )  # fmt: skip
    return condition


@pytest.mark.parametrize("frames", [1, 5, 13])
def test_image_condition_is_diffusers(encode, diffusers_vae, pictures, frames):
    ours = conditions.image_condition(encode, pictures[:1], frames=frames)
    theirs = pipeline_condition(diffusers_vae, pictures[:1], None, frames)
    assert torch.equal(ours[:, :4], theirs[:, :4]) and (ours - theirs).abs().max() <= 1e-5


@pytest.mark.parametrize("frames", [5, 13])
def test_first_and_last_frame_condition_is_diffusers(encode, diffusers_vae, pictures, frames):
    ours = conditions.image_condition(encode, pictures[:1], frames=frames, last_BCHW=pictures[1:])
    theirs = pipeline_condition(diffusers_vae, pictures[:1], pictures[1:], frames)
    assert torch.equal(ours[:, :4], theirs[:, :4]) and (ours - theirs).abs().max() <= 1e-5


def test_the_mask_of_the_last_frame_is_one_channel():
    """The last pixel frame is the last of the four that its latent frame stands for."""
    mask = conditions.frame_mask(9, {0, 8})[:, :, 0, 0]
    assert mask.tolist() == [[1, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 1]]
    assert conditions.frame_mask(9, {5})[:, :, 0, 0].tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_a_batch_is_what_its_images_are_alone(encode, pictures):
    together = conditions.image_condition(encode, pictures, frames=5)
    for index in range(2):
        alone = conditions.image_condition(encode, pictures[index : index + 1], frames=5)
        assert (together[index] - alone[0]).abs().max() <= 1e-5


def test_an_end_image_is_one_latent_frame_more(encode, pictures):
    condition = conditions.image_condition(encode, pictures[:1], frames=5)
    end = encode(pictures[1:].unsqueeze(2))
    longer = conditions.append_end_image(condition, end)
    assert longer.shape == (1, 20, 3, 4, 6) and torch.equal(longer[:, :, :2], condition)
    assert longer[:, :4, 2].eq(1).all() and torch.equal(longer[:, 4:, 2:], end)


def test_control_condition_keeps_single_frames_of_the_image():
    control, image = torch.randn(1, CHANNELS, 3, 2, 2), torch.randn(1, CHANNELS, 3, 2, 2)
    plain = conditions.control_condition(control)
    assert torch.equal(plain[:, :16], control) and not plain[:, 16:].any()
    started = conditions.control_condition(control, image)
    assert torch.equal(started[:, 16:, 0], image[:, :, 0]) and not started[:, 16:, 1:].any()
    ended = conditions.control_condition(control, image, keep=(0, -1))
    assert torch.equal(ended[:, 16:, 2], image[:, :, 2]) and not ended[:, 16:, 1].any()


def test_each_control_of_one_frame_keeps_its_own_place(encode, pictures):
    """musubi-tuner hands controls out in sorted order: of places 10 and 0 the first control would come to 0."""
    controls = [pictures[:1], pictures[1:]]
    condition, known, places, target = conditions.one_frame_condition(encode, controls, [10, 0], 4)
    assert (places, target) == ([0, 4, 10], 1)
    first, second = (encode(control.unsqueeze(2))[:, :, 0] for control in controls)
    assert torch.equal(condition[:, 4:, 0], second) and torch.equal(condition[:, 4:, 2], first)
    assert condition[:, :4, [0, 2]].eq(1).all() and not condition[:, :4, 1].any()
    grey = encode(torch.zeros(1, 3, 1, 32, 48))[:, :, 0]
    assert torch.equal(condition[:, 4:, 1], grey)
    assert torch.equal(known[:, :, 2], first) and not known[:, :, 1].any()
    with pytest.raises(ValueError, match="same place"):
        conditions.one_frame_condition(encode, controls, [0, 4], 4)
