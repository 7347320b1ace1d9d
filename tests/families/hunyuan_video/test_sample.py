"""How a video comes about: noise, conditioning, and what it may start from."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from engine.contract.errors import DataError, OptionError
from engine.families.hunyuan_video import model, sample, tiny, vae
from engine.families.values import Request
from engine.media.images import write_image
from engine.media.writing import write_video
from engine.parts import hunyuan_vae, tiny_hunyuan_vae
from engine.sampling.guidance import guided, guided_batch

SETTINGS = {"embedded_cfg_scale": 6.0, "split_uncond": False}
CONFIG = dataclasses.replace(tiny.DIT_CONFIG, dim=64, ffn_dim=64, num_heads=2, head_dim=32)
CPU = torch.device("cpu")


def request(**more) -> Request:
    values = {
        "prompt": "a cat", "negative_prompt": "rain", "width": 64, "height": 48, "frames": 9, "steps": 2, "shift": 7.0,
        "guidance": 1.0, "seed": 5, "settings": SETTINGS,
    }  # fmt: skip
    return Request(**{**values, **more})


def texts(*prompts: str) -> dict[str, dict[str, torch.Tensor]]:
    found = {}
    for number, prompt in enumerate(prompts, 2):
        generator = torch.Generator().manual_seed(number)
        mask = torch.zeros(256, dtype=torch.int64)
        mask[:number] = 1
        found[prompt] = {
            "llm": torch.randn(256, CONFIG.text_dim, generator=generator),
            "llm_mask": mask,
            "clipL": torch.randn(CONFIG.pooled_dim, generator=generator),
            "clipL_mask": torch.ones(77, dtype=torch.int64),
        }
    return found


@pytest.fixture(scope="module")
def dit():
    made = model.build(CONFIG, device="cpu")
    made.load_state_dict(tiny.dit_tensors(1, CONFIG))
    return made


class Asked:
    """A `denoise` that asks each velocity once and remembers what it was given."""

    def __call__(self, conditional, unconditional, noise_BCTHW, **more):
        self.noise, self.more = noise_BCTHW, more
        timestep_B = torch.tensor([500.0])
        self.alone = None
        if unconditional is not None:
            self.alone = guided(conditional, unconditional, 3.0)(noise_BCTHW, timestep_B)
        both = more.get("both")
        self.together = None if both is None else guided_batch(both, 3.0)(noise_BCTHW, timestep_B)
        return conditional(noise_BCTHW, timestep_B)


def run(dit, wanted: Request, inputs=None) -> tuple[torch.Tensor, Asked]:
    asked = Asked()
    given = texts("a cat", "rain")
    return sample.video_latents(dit, wanted, texts=given, inputs=inputs or {}, denoise=asked, device=CPU), asked


def test_videos_of_one_seed_begin_alike_however_long_they_are():
    """Noise is drawn latent frame by latent frame."""
    short, long = (sample.draw_noise(request(frames=frames), CPU) for frames in (9, 33))
    assert short.shape == (1, 16, 3, 6, 8) and long.shape == (1, 16, 9, 6, 8)
    assert torch.equal(long[:, :, :3], short)
    assert not torch.equal(sample.draw_noise(request(seed=6), CPU), short)
    assert torch.equal(sample.draw_noise(request(cpu_noise=True), CPU), short)
    assert abs(long.mean()) < 0.05 and abs(long.std() - 1) < 0.05


def test_the_model_is_told_the_same_guidance_in_training_and_in_generation(dit, monkeypatch):
    """musubi-tuner trains with the scale as given and generates with a thousand times that."""
    seen = []
    real = model.velocity
    monkeypatch.setattr(model, "velocity", lambda dit, x, t, cond, **_: seen.append(cond) or real(dit, x, t, cond))
    run(dit, request())
    batch = {name: tensor[None] for name, tensor in texts("a cat")["a cat"].items()}
    trained = model.cond_from_batch(batch, guidance_scale=6.0)
    assert seen[0]["guidance"].tolist() == trained["guidance"].tolist() == [6000.0]
    assert torch.equal(seen[0]["text"][0], trained["text"][0])


def test_the_negative_prompt_is_needed_only_with_guidance(dit):
    assert sample.texts(request()) == ["a cat"] and sample.texts(request(guidance=3.0)) == ["a cat", "rain"]
    latents, asked = run(dit, request())
    assert asked.alone is None and asked.together is None
    assert latents.shape == asked.noise.shape and latents.dtype is torch.float32


def test_one_call_for_both_predictions_gives_what_two_calls_give(dit):
    _, asked = run(dit, request(guidance=3.0))
    assert torch.allclose(asked.alone, asked.together, atol=1e-5)
    _, split = run(dit, request(guidance=3.0, settings={**SETTINGS, "split_uncond": True}))
    assert split.more["both"] is None and torch.allclose(split.alone, asked.alone, atol=1e-5)


def test_embedded_guidance_matters(dit):
    one, _ = run(dit, request(settings={**SETTINGS, "embedded_cfg_scale": 1.0}))
    assert not torch.allclose(one, run(dit, request())[0], atol=1e-5)


def test_a_skyreels_image_becomes_the_first_latent_frame_and_zeros_as_in_training(monkeypatch):
    config = dataclasses.replace(CONFIG, in_dim=32)
    skyreels = model.build(config, device="cpu")
    skyreels.load_state_dict(tiny.dit_tensors(1, config))
    seen = []
    real = model.velocity
    monkeypatch.setattr(model, "velocity", lambda dit, x, t, cond, **_: seen.append(cond) or real(dit, x, t, cond))
    image = torch.randn(1, 16, 1, 6, 8, generator=torch.Generator().manual_seed(3))
    run(skyreels, request(guidance=2.0), {"image_latents": image})
    cached = torch.randn(1, 16, 3, 6, 8)
    cached[:, :, :1] = image / hunyuan_vae.SCALING_FACTOR
    batch = {**{name: tensor[None] for name, tensor in texts("a cat")["a cat"].items()}, "latents": cached}
    trained = model.cond_from_batch(batch, first_frame=True)["concat"]
    generated = [cond["concat"] for cond in seen]
    assert {len(one) for one in generated} == {1, 2}
    assert all(torch.allclose(one[:1], trained, atol=1e-6) for one in generated)
    assert trained[:, :, :1].any() and not trained[:, :, 1:].any()


@pytest.mark.parametrize(
    ("in_dim", "image", "said"),
    [
        (16, None, ""),
        (32, "a.png", ""),
        (16, "a.png", '"a cat" starts from an image, but this --dit takes text only'),
        (32, None, '"a cat" has no image to start from'),
        (33, "a.png", "33 input channels"),
    ],
)
def test_the_file_says_whether_a_prompt_may_have_an_image(in_dim, image, said):
    bare = model.build(dataclasses.replace(CONFIG, in_dim=in_dim))
    asked = request(settings={**SETTINGS, **({"image_path": image} if image else {})})
    if not said:
        sample.check_request(asked, bare)
        return
    with pytest.raises(OptionError, match=said) as caught:
        sample.check_request(asked, bare)
    assert caught.value.hint


def test_a_video_s_latents_go_to_the_solver_with_the_strength(dit):
    clean = torch.randn(1, 16, 3, 6, 8)
    settings = {**SETTINGS, "strength": 0.8}
    _, asked = run(dit, request(settings=settings), {"clean": clean})
    assert torch.equal(asked.more["clean_BCTHW"], clean) and asked.more["strength"] == 0.8
    _, asked = run(dit, request())
    assert "clean_BCTHW" not in asked.more


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    path = tmp_path_factory.mktemp("vae") / tiny.VAE_NAME
    tiny_hunyuan_vae.write_vae(path, seed=1)
    return SimpleNamespace(device=CPU, vae=vae.load(path, device="cpu", dtype=torch.float32))


def test_pictures_and_videos_are_brought_to_size_and_encoded(encoders, tmp_path):
    picture = np.full((100, 90, 3), (200, 60, 30), np.uint8)
    write_image(tmp_path / "a.png", picture)
    write_video(tmp_path / "a.mp4", iter([picture[:96]] * 12), fps=24, codec="libx264")
    image = sample.prepare(request(settings={**SETTINGS, "image_path": tmp_path / "a.png"}), encoders)
    assert set(image) == {"image_latents"} and image["image_latents"].shape == (1, 16, 1, 6, 8)
    found = sample.prepare(request(settings={**SETTINGS, "video_path": tmp_path / "a.mp4"}), encoders)
    assert set(found) == {"clean"} and found["clean"].shape == (1, 16, 3, 6, 8)
    pixels = torch.from_numpy(picture[:48, :64].copy()).permute(2, 0, 1)[None, :, None].float() / 127.5 - 1
    assert torch.allclose(image["image_latents"], vae.encode(encoders.vae, pixels), atol=1e-5)
    with pytest.raises(DataError, match="12 frames; 17 are needed") as caught:
        sample.prepare(request(frames=17, settings={**SETTINGS, "video_path": tmp_path / "a.mp4"}), encoders)
    assert "--video_length 9" in caught.value.hint


def test_without_pictures_the_vae_is_not_even_loaded():
    assert sample.prepare(request(), SimpleNamespace()) == {}
