"""What a request's pictures become, and what reaches the DiT under which prompt."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from engine.contract.errors import OptionError
from engine.families.values import Request
from engine.families.wan import clip, model, pictures, sample, tiny, vae
from engine.families.wan.one_frame import OneFrame
from engine.media.images import read_image
from tests.clips import draw_image, draw_video
from tests.kernels import pytorchs_kernels

CPU = {"device": "cpu", "dtype": torch.float32}
NOTHING = {
    "image_path": None, "end_image_path": None, "video_path": None, "strength": 0.8, "control_path": None,
    "control_image_path": (), "one_frame": None, "reference_image_path": None, "src_mask": None, "src_ref_images": (),
    "vace_strength": 1.0, "camera_pose": None, "camera_speed": 1.0, "control_camera_txt": None,
}  # fmt: skip


class Shelf:
    """Encoders that tell which of them was used."""

    def __init__(self, folder: Path):
        self.paths = {**tiny.write_tiny_models(folder, variant="i2v-14B")}
        self.device, self.used = torch.device("cpu"), set()
        self._vae = vae.load(self.paths["vae"], **CPU)
        self._image = clip.load(self.paths["clip"], **CPU)

    @property
    def vae(self):
        self.used.add("vae")
        return self._vae

    @property
    def image(self):
        self.used.add("image")
        return self._image


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    return Shelf(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    return {
        "start": draw_image(folder / "start.png", number=5, size=(80, 60)),
        "end": draw_image(folder / "end.png", number=60000, size=(60, 60)),
        "video": draw_video(folder / "long.mp4", size=(80, 60), frames=12, first_number=77),
    }


def request(task: str, **changed) -> Request:
    settings = {**NOTHING, "task": task, **changed.pop("settings", {})}
    given = {
        "prompt": "a", "negative_prompt": "b", "width": 64, "height": 48, "frames": 9, "steps": 2, "shift": 3.0,
        "guidance": 5.0, "seed": 1, "settings": settings,
    }  # fmt: skip
    return Request(**{**given, **changed})


def prepared(shelf, task: str, **settings):
    shelf.used.clear()
    return sample.prepare(request(task, settings=settings), shelf)


def test_words_alone_need_no_encoder(shelf):
    assert prepared(shelf, "t2v-14B") == {"latent_size": (3, 6, 8)} and not shelf.used


def test_the_negative_prompt_is_encoded_only_for_guidance():
    assert sample.texts(request("t2v-14B")) == ["a", "b"]
    assert sample.texts(request("t2v-14B", guidance=1.0)) == ["a"]


def test_an_image_gives_size_condition_and_features(shelf, media):
    found = prepared(shelf, "i2v-14B", image_path=media["start"])
    assert found["latent_size"] == (3, 6, 8) and found["y"].shape == (1, 20, 3, 6, 8)
    picture = pictures.as_image(pictures.stretched(read_image(media["start"]), (64, 48)))
    assert torch.equal(found["y"][:, 4:, :1], vae.encode(shelf.vae, picture.unsqueeze(2)))
    whole = pictures.as_image(read_image(media["start"]))
    assert torch.equal(found["clip"], clip.encode(shelf.image, whole))  # CLIP sees the image at its own size


def test_an_end_image_of_an_i2v_model_is_not_shown_to_clip(shelf, media):
    """In its batch mode musubi-tuner shows it to CLIP, in single mode not."""
    plain = prepared(shelf, "i2v-14B", image_path=media["start"])
    ended = prepared(shelf, "i2v-14B", image_path=media["start"], end_image_path=media["end"])
    assert torch.equal(ended["clip"], plain["clip"])
    assert ended["latent_size"] == (4, 6, 8) and ended["y"][:, :4, 3].eq(1).all()


def test_first_and_last_frame_are_both_shown_to_clip(shelf, media):
    found = prepared(shelf, "flf2v-14B", image_path=media["start"], end_image_path=media["end"])
    assert found["latent_size"] == (3, 6, 8) and found["clip"].shape[1] == 514
    first = prepared(shelf, "i2v-14B", image_path=media["start"])["clip"]
    assert torch.equal(found["clip"][:, :257], first)
    last = pictures.cut_to_shape(read_image(media["end"]), read_image(media["start"]))
    assert torch.equal(found["clip"][:, 257:], clip.encode(shelf.image, pictures.as_image(last)))


def test_control_video_and_images(shelf, media):
    control = {"control_path": media["video"]}
    plain = prepared(shelf, "t2v-14B-FC", **control)
    assert set(plain) == {"y", "latent_size"} and "image" not in shelf.used
    assert plain["y"].shape == (1, 32, 3, 6, 8) and not plain["y"][:, 16:].any()
    started = prepared(shelf, "i2v-14B-FC", **control, image_path=media["start"])
    assert torch.equal(started["y"][:, :16], plain["y"][:, :16])
    assert started["y"][:, 16:, 0].any() and not started["y"][:, 16:, 1:].any() and "clip" in started
    ended = prepared(shelf, "i2v-14B-FC", **control, image_path=media["start"], end_image_path=media["end"])
    assert ended["y"].shape == (1, 32, 4, 6, 8)
    assert ended["y"][:, 16:, 3].any() and not ended["y"][:, 16:, 1:3].any()


@pytorchs_kernels()  # there in a batch of two
def test_vace_makes_all_of_a_control_anew_and_keeps_frames_that_are_given(shelf, media):
    control = {"control_path": media["video"]}
    plain = prepared(shelf, "vace-14B", **control)
    assert plain["vace"].shape == (1, 96, 3, 6, 8) and plain["latent_size"] == (3, 6, 8) and plain["before"] == 0
    clip_BCFHW = pictures.read_clip(media["video"], size=(64, 48), frames=9, flag="--control_path")
    assert torch.equal(plain["vace"][:, 16:32], vae.encode(shelf.vae, clip_BCFHW)) and plain["vace"][:, 32:].eq(1).all()
    started = prepared(shelf, "vace-14B", **control, image_path=media["start"])
    assert torch.equal(started["vace"][:, 32:], plain["vace"][:, 32:])  # official: frames 1, 4, 7 speak for their fours
    grey = vae.encode(shelf.vae, torch.zeros(1, 3, 1, 48, 64))
    assert torch.equal(started["vace"][:, 16:32, :1], grey)
    picture = pictures.as_image(pictures.stretched(read_image(media["start"]), (64, 48)))
    first = vae.encode(shelf.vae, picture.unsqueeze(2))
    assert torch.equal(started["vace"][:, :16, :1], first) and "image" not in shelf.used


def test_vace_takes_an_end_image_alone_which_gives_the_shape(shelf, media):
    found = prepared(shelf, "vace-14B", end_image_path=media["end"])
    assert found["latent_size"] == (3, 6, 6)  # square, as the image is
    picture_1CHW = pictures.as_image(pictures.stretched(read_image(media["end"]), (48, 48)))
    clip_BCFHW = torch.zeros(1, 3, 9, 48, 48)
    clip_BCFHW[:, :, 8] = picture_1CHW
    assert torch.equal(found["vace"][:, :16], vae.encode(shelf.vae, clip_BCFHW))


def test_the_mask_of_vace_is_an_image_for_all_frames_or_a_video(shelf, media, tmp_path):
    half = Image.new("L", (64, 48))
    half.paste(255, (32, 0, 64, 48))
    half.save(tmp_path / "half.png")
    found = prepared(shelf, "vace-14B", control_path=media["video"], src_mask=tmp_path / "half.png")
    assert not found["vace"][:, 32:, :, :, :4].any() and found["vace"][:, 32:, :, :, 4:].eq(1).all()
    plain = prepared(shelf, "vace-14B", control_path=media["video"], src_mask=media["video"])
    assert 0 < plain["vace"][:, 32:].float().mean() < 1


def test_reference_images_of_vace_are_frames_before_the_video(shelf, media):
    shown = {"src_ref_images": (media["start"], media["end"])}
    found = prepared(shelf, "vace-14B", **shown, video_path=media["video"])
    assert found["latent_size"] == (5, 6, 8) and found["before"] == 2 and not found["vace"][:, 32:, :2].any()
    white = vae.encode(shelf.vae, pictures.on_white(read_image(media["end"]), (64, 48)).unsqueeze(2))
    assert torch.equal(found["vace"][:, :16, 1:2], white)
    assert torch.equal(found["clean"][:, :, :2], found["vace"][:, :16, :2]) and found["clean"].shape[2] == 5


def test_a_camera_comes_with_or_without_a_start_image(shelf, media):
    plain = prepared(shelf, "camera-14B", camera_pose="zoom_in")
    assert set(plain) == {"y", "camera", "latent_size"} and not plain["y"].any() and not shelf.used
    assert plain["camera"].shape == (1, 24, 3, 48, 64) and plain["latent_size"] == (3, 6, 8)
    started = prepared(shelf, "camera-14B", camera_pose="zoom_in", image_path=media["start"])
    assert started["y"][:, :, 0].any() and not started["y"][:, :, 1:].any() and "clip" in started
    other = prepared(shelf, "camera-14B", camera_pose="zoom_in", camera_speed=2.0)
    assert (other["camera"] - plain["camera"]).abs().max() > 0.1


def test_control_and_target_places_reach_the_model(shelf, media):
    found = prepared(
        shelf, "flf2v-14B", control_image_path=(media["start"], media["end"]), one_frame=OneFrame(4, (9, 0))
    )
    assert (found["frame_indices"], found["target"]) == ([[0, 4, 9]], 1)
    assert found["latent_size"] == (3, 6, 8) and found["clip"].shape[1] == 514
    assert found["y"][0, 0, :, 0, 0].tolist() == [1, 0, 1]


def test_one_frame_without_control_images_takes_the_start_image(shelf, media):
    found = prepared(shelf, "i2v-14B", image_path=media["start"], one_frame=OneFrame(3, (0,)))
    assert found["frame_indices"] == [[0, 3]] and found["clip"].shape[1] == 257


def test_a_reference_image_is_what_clip_sees_and_a_latent_of_its_own(shelf, media):
    """As VideoX-Fun's pipeline for Fun-Control V1.1, with and without a start image."""
    given = {"control_path": media["video"], "reference_image_path": media["end"]}
    features = clip.encode(shelf._image, pictures.as_image(read_image(media["end"])))
    for start in ({}, {"image_path": media["start"]}):
        found = prepared(shelf, "i2v-14B-FC" if start else "t2v-14B-FC", **given, **start)
        stretched = pictures.as_image(pictures.stretched(read_image(media["end"]), (64, 48)))
        latent = vae.encode(shelf.vae, stretched.unsqueeze(2))[:, :, 0]
        assert torch.equal(found["reference"], latent) and latent.shape == (1, 16, 6, 8)
        assert torch.equal(found["clip"], features)


def test_a_model_without_a_place_for_a_reference_image_says_so(media):
    settings = {"reference_image_path": media["end"]}
    given = request("t2v-14B-FC", settings=settings)
    sample.check_request(given, model.build(tiny.CONFIGS["fun-v1.1"]))
    with pytest.raises(OptionError, match="no place for a reference image"):
        sample.check_request(given, model.build(tiny.CONFIGS["t2v-1.3B-FC"]))


def test_a_video_to_start_from_has_the_latents_of_its_frames(shelf, media):
    found = prepared(shelf, "t2v-14B", video_path=media["video"])
    clip_BCFHW = pictures.read_clip(media["video"], size=(64, 48), frames=9, flag="--video_path")
    assert torch.equal(found["clean"], vae.encode(shelf.vae, clip_BCFHW))
    ends = {"image_path": media["start"], "end_image_path": media["end"]}
    assert prepared(shelf, "i2v-14B", video_path=media["video"], **ends)["clean"].shape[2] == 4


def latents_of(shelf, given: Request, seen: list, **inputs):
    """Run `video_latents` with a denoiser that asks once under each prompt and answers with the noise."""
    dit = model.load(shelf.paths["dit"], task="i2v-14B", device="cpu")
    texts = {"a": {"varlen_t5": torch.ones(2, 64)}, "b": {"varlen_t5": torch.zeros(1, 64)}}

    def denoise(conditional, unconditional, noise, **more):
        seen.append((conditional(noise, torch.tensor([500.0])), more))
        shown.append(more["shown"](noise))
        assert (unconditional is not None) == given.guided
        return noise

    shown: list[torch.Tensor] = []
    made = sample.video_latents(
        dit, given, texts=texts, inputs=sample.prepare(given, shelf), denoise=denoise, device=torch.device("cpu")
    )
    assert torch.equal(made, shown[0]), "a preview shows the frames that the video will have"
    return made


def test_places_in_time_change_what_the_model_says(shelf, media):
    """musubi-tuner passes them when sampling but not when training; here both go through one function."""
    seen: list = []
    for target in (1, 30):
        settings = {"image_path": media["start"], "one_frame": OneFrame(target, (0,))}
        found = latents_of(shelf, request("i2v-14B", settings=settings), seen)
        assert found.shape == (1, 16, 1, 6, 8)
    assert (seen[0][0] - seen[1][0]).abs().max() > 1e-4


def test_the_noise_is_drawn_for_all_latent_frames(shelf, media):
    seen: list = []
    given = request("i2v-14B", settings={"image_path": media["start"]}, guidance=1.0, cpu_noise=True)
    found = latents_of(shelf, given, seen)
    wanted = torch.randn((1, 16, 3, 6, 8), generator=torch.Generator().manual_seed(1))
    told = {name: value for name, value in seen[0][1].items() if name != "shown"}
    assert torch.equal(found, wanted) and told == {"skipped": None, "clean_BCTHW": None, "strength": 0.8}
