"""Training samples of clips: what each kind of cache holds, and what cannot be made into one."""

from __future__ import annotations

import pytest
import torch

from engine.contract.errors import DataError
from engine.families.values import Clips
from engine.families.wan import clip, tiny, vae
from engine.families.wan.model import check_cache, cond_from_batch

CPU = {"device": "cpu", "dtype": torch.float32}


@pytest.fixture(scope="module")
def coder(tmp_path_factory):
    return vae.load(tiny.write_tiny_models(tmp_path_factory.mktemp("models"))["vae"], **CPU)


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    return clip.load(tiny.write_tiny_models(tmp_path_factory.mktemp("models"), variant="i2v-14B")["clip"], **CPU)


def pixels(count: int = 1, frames: int = 5, seed: int = 1) -> torch.Tensor:
    return torch.rand(count, 3, frames, 32, 48, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def samples(coder, clips: Clips, **settings):
    found = vae.training_samples(coder, clips, dtype=torch.bfloat16, **settings)
    assert all(len(one) == 1 for one in found)
    return [one[0] for one in found]


def test_text_to_video_keeps_the_latents_only(coder):
    first, second = samples(coder, Clips(frames_BCFHW=pixels(2)))
    assert list(first) == ["latents"] and first["latents"].dtype == torch.bfloat16
    alone = vae.encode(coder, pixels(2)[1:])[0]
    assert (second["latents"].float() - alone).abs().max() < 0.05


def test_the_clip_features_are_those_of_the_first_frame(coder, tower):
    clips = pixels(2)
    for sample, frames in zip(
        samples(coder, Clips(frames_BCFHW=clips), image_encoder=tower, i2v=True), clips, strict=True
    ):
        assert sample["clip_bfloat16"].dtype == torch.float16  # the format's key does not tell its type
        wanted = clip.encode(tower, frames[None, :, 0])[0]
        assert (sample["clip_bfloat16"].float() - wanted).abs().max() < 0.02


def test_without_an_image_encoder_the_image_latents_are_kept(coder):
    (sample,) = samples(coder, Clips(frames_BCFHW=pixels()), i2v=True)
    assert set(sample) == {"latents", "latents_image"} and sample["latents_image"].shape == (20, 2, 4, 6)


def test_first_and_last_frame_can_be_trained(coder, tower):
    """musubi-tuner's clips cannot: its caches know one image and no mask at the end."""
    (sample,) = samples(coder, Clips(frames_BCFHW=pixels()), image_encoder=tower, flf2v=True)
    assert sample["clip_bfloat16"].shape == (2, 257, tiny.tiny_clip.WIDTH)
    last = clip.encode(tower, pixels()[:, :, -1])[0]
    assert (sample["clip_bfloat16"][1].float() - last).abs().max() < 0.02
    assert sample["latents_image"][:4, 1, 0, 0].tolist() == [0, 0, 0, 1]


def test_a_control_of_another_size_is_refused(coder):
    smaller = Clips(frames_BCFHW=pixels(), controls_BCFHW=(pixels()[..., :32, :32],))
    with pytest.raises(DataError, match="32x32 pixels, its clip 48x32"):
        samples(coder, smaller)


def one_frame(**changed) -> Clips:
    given = {
        "frames_BCFHW": pixels(frames=1), "controls_BCFHW": (pixels(frames=1, seed=2),), "is_image": True,
        "clean_indices": (0,), "target_index": 1,
    }  # fmt: skip
    return Clips(**{**given, **changed})


def test_one_frame_of_a_batch(coder, tower):
    clips = one_frame(
        frames_BCFHW=pixels(2, 1), controls_BCFHW=(pixels(2, 1, seed=2),), clean_indices=(7,), target_index=3
    )
    for index, sample in enumerate(samples(coder, clips, image_encoder=tower, one_frame=True)):
        assert sample["f_indices"].tolist() == [3, 7] and sample["f_indices"].dtype == torch.int32
        target, control = vae.encode(coder, pixels(2, 1))[index], vae.encode(coder, pixels(2, 1, seed=2))[index]
        assert (sample["latents"].float() - torch.cat([target, control], dim=1)).abs().max() < 0.05
        assert sample["latents_image"][0, :, 0, 0].tolist() == [0, 1]
        assert (sample["latents_image"][4:, 1].float() - control[:, 0]).abs().max() < 0.05
        assert sample["clip_bfloat16"].shape == (1, 257, tiny.tiny_clip.WIDTH)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"controls_BCFHW": ()}, "this dataset has none"),
        ({"clean_indices": None}, "needs the places in time"),
        ({"target_index": None}, "needs the places in time"),
        ({"clean_indices": (0, 2)}, "1 control images and 2"),
        ({"clean_indices": (1,)}, "same place"),
        ({"frames_BCFHW": pixels()}, "this is a video"),
    ],
)
def test_one_frame_says_what_it_lacks(coder, tower, changed, words):
    with pytest.raises(DataError, match=words):
        samples(coder, one_frame(**changed), image_encoder=tower, one_frame=True)


def batch(**tensors):
    return {"t5": [torch.zeros(2, 4)], **tensors}


def test_a_task_takes_what_its_checkpoint_knows():
    """Caches made for one task may hold more than another one takes."""
    image, control = torch.randn(1, 20, 3, 2, 2), torch.randn(1, 16, 3, 2, 2)
    two = torch.randn(1, 2, 257, 8)
    full = batch(latents_image=image, latents_control=control, clip=two, f_indices=torch.tensor([[0, 1, 5]]))
    assert set(cond_from_batch(full, task="t2v-14B")) == {"text"}
    told = cond_from_batch(full, task="i2v-14B")
    assert told["y"] is image and torch.equal(told["clip"], two[:, 0])
    assert told["frame_indices"] == [[0, 1, 5]]  # musubi-tuner caches them and trains without
    assert cond_from_batch(full, task="flf2v-14B")["clip"].shape == (1, 514, 8)
    assert cond_from_batch(full, task="t2v-14B-FC")["y"].shape == (1, 32, 3, 2, 2)
    assert "clip" not in cond_from_batch(full, task="i2v-A14B")


@pytest.mark.parametrize(
    ("task", "shapes", "words"),
    [
        ("i2v-14B", {}, "--i2v --clip"),
        ("i2v-14B", {"latents_image": (20, 1, 2, 2)}, "CLIP features"),
        ("i2v-A14B", {}, "--i2v."),
        ("flf2v-14B", {"latents_image": (20, 1, 2, 2), "clip": (257, 8)}, "--flf2v --clip"),
        ("t2v-14B-FC", {}, "control video"),
        ("i2v-14B-FC", {"latents_control": (16, 1, 2, 2)}, "latents of its image"),
    ],
)
def test_caches_of_another_task_are_named(task, shapes, words):
    assert words in check_cache({"latents": (16, 1, 2, 2), **shapes}, task=task)


def test_caches_that_will_do():
    whole = {"latents_image": (20, 1, 2, 2), "clip": (2, 257, 8), "latents_control": (16, 1, 2, 2)}
    for task in ("t2v-14B", "t2v-14B-FC", "i2v-14B", "i2v-14B-FC", "flf2v-14B"):
        assert check_cache(whole, task=task) == ""
