"""The section loop: what each section is given, in which order, and what becomes of it."""

from __future__ import annotations

import math

import pytest
import torch

from engine.families.framepack import model, sample, tiny
from engine.families.framepack.detect import detect
from engine.families.framepack.sections import f1_layout, plain_layout
from engine.ops.sigmas import framepack_mu

from ...clips import draw_image
from .pieces import CPU, Denoiser, request, words

SIZE = (6, 8)


def inputs(*, starts=None, end=None):
    starts = {0: 0.5} if starts is None else starts
    return {
        "starts": {index: torch.full((16, 1, *SIZE), value) for index, value in starts.items()},
        "images": {index: torch.full((16, 48), value) for index, value in starts.items()},
        "end": None if end is None else torch.full((16, 1, *SIZE), end),
    }


@pytest.fixture
def seen(monkeypatch):
    """The cond of every call of the DiT."""
    found: list[dict] = []

    def velocity(dit, x_BCTHW, timestep_B, cond, *, step_cache):
        found.append(cond)
        return torch.zeros_like(x_BCTHW)

    monkeypatch.setattr(model, "velocity", velocity)
    return found


def make(asked, given=None, *, captions=("a bar",), denoiser=None):
    denoiser = denoiser or Denoiser(ask=True)
    latents = sample.video_latents(
        None, asked, texts=words(*captions, ""), inputs=given or inputs(), denoise=denoiser, device=CPU
    )
    return latents, denoiser


def test_plain_makes_the_last_section_first(seen):
    latents, denoiser = make(request(video_sections=3))
    assert latents[0, 0, :, 0, 0].tolist() == [0.5, 3, 3, 2, 2, 1, 1]  # the call that made it, in the order of time
    assert [cond["indices"][0] for cond in seen] == [list(plain_layout(n, window=2).target) for n in (2, 1, 0)]
    assert seen[0]["clean"][0, 0, :, 0, 0].tolist() == [0.5, 0]  # the start image, and nothing yet
    assert seen[2]["clean"][0, 0, :, 0, 0].tolist() == [0.5, 2]
    assert seen[2]["clean_2x"][0, 0, :, 0, 0].tolist() == [2, 1]
    assert seen[2]["clean_4x"][0, 0, :, 0, 0].tolist() == [1, *[0] * 15]
    assert [call.label for call in denoiser.calls] == ["section 1 of 3", "section 2 of 3", "section 3 of 3"]


def test_f1_goes_forward(seen):
    latents, _ = make(request(video_sections=3, f1=True))
    assert latents[0, 0, :, 0, 0].tolist() == [0.5, 1, 1, 2, 2, 3, 3]
    assert all(cond["indices"] == [list(f1_layout(window=2).target)] for cond in seen)
    assert seen[0]["clean"][0, 0, :, 0, 0].tolist() == [0.5, 0.5]  # the start, which is the newest frame too
    assert seen[2]["clean"][0, 0, :, 0, 0].tolist() == [0.5, 2]
    assert seen[2]["clean_2x"][0, 0, :, 0, 0].tolist() == [1, 2]
    assert seen[2]["clean_4x"][0, 0, -2:, 0, 0].tolist() == [0.5, 1]


def test_what_generation_gives_the_model_is_what_training_caches(seen, encoders):
    """The same latents, cut into training samples and made by a generation, give the same conditioning."""
    from engine.families.framepack.samples import f1_sections, plain_sections

    for f1, cut in ((False, plain_sections), (True, f1_sections)):
        seen.clear()
        latents, _ = make(request(video_sections=3, f1=f1))
        cached = cut(latents[0], 2)
        for cond, entry in zip(seen if f1 else reversed(seen), cached, strict=True):
            assert cond["indices"] == [entry["latent_indices"].tolist()]
            for name in ("clean", "clean_2x", "clean_4x"):
                assert torch.equal(cond[name][0], entry[f"latents_{name}"]), (f1, name)
                index = f"{name.replace('clean', 'clean_latent')}_indices"
                assert cond[f"{name}_indices"] == [entry[index].tolist()]


def test_latent_paddings_override_from_the_front(seen):
    """Fewer than there are sections crash musubi-tuner."""
    make(request(video_sections=3, latent_paddings=(5,)))
    assert [int((cond["indices"][0][0] - 1) / 2) for cond in seen] == [5, 1, 0]


def test_the_end_image_is_the_newest_history_at_first(seen):
    latents, _ = make(request(), inputs(end=9.0))
    assert seen[0]["clean"][0, 0, :, 0, 0].tolist() == [0.5, 9]
    assert seen[1]["clean_2x"][0, 0, :, 0, 0].tolist() == [1, 9]
    assert 9.0 not in latents  # it is seen, but not part of the video


def test_prompts_and_images_by_section(seen):
    asked = request(prompt="0:first;;;1:second one;;;-1:the very last", video_sections=4)
    latents, _ = make(asked, inputs(starts={0: 0.5, 2: 0.25}), captions=("first", "second one", "the very last"))
    lengths = [int(cond["text"][0].shape[0]) for cond in seen]
    assert lengths == [len("the very last"), len("first"), len("second one"), len("first")]
    assert [cond["clean"][0, 0, 0, 0, 0].item() for cond in seen] == [0.5, 0.25, 0.5, 0.5]
    assert [cond["image"][0, 0, 0].item() for cond in seen] == [0.5, 0.25, 0.5, 0.5]
    assert latents[0, 0, 0, 0, 0] == 0.5
    assert sample.texts(asked) == ["first", "second one", "the very last"]


def test_guidance_needs_the_negative_prompt_and_nothing_else_does(seen):
    assert sample.texts(request()) == ["a bar"]
    guided = request(guidance=2.0, negative_prompt="blurry", guidance_rescale=0.7)
    assert sample.texts(guided) == ["a bar", "blurry"]
    denoiser = Denoiser()
    make(guided, captions=("a bar", "blurry"), denoiser=denoiser)
    assert denoiser.calls[0].unconditional is not None and denoiser.calls[0].rescale == 0.7
    denoiser.calls[0].unconditional(denoiser.calls[0].noise, torch.tensor([500.0]))
    assert seen[-1]["text"][0].shape[0] == len("blurry")
    plain = Denoiser()
    make(request(), denoiser=plain)
    assert plain.calls[0].unconditional is None


def test_the_shift_follows_the_size_unless_it_is_given():
    denoiser = Denoiser()
    make(request(), denoiser=denoiser)
    assert denoiser.calls[0].shift == pytest.approx(math.exp(framepack_mu(2 * 6 * 8 // 4)))
    assert denoiser.calls[0].solver == "unipc-3"
    fixed = Denoiser()
    make(request(shift=3.0), denoiser=fixed)
    assert fixed.calls[0].shift == 3.0


def test_noise_of_all_sections_comes_from_one_generator():
    denoiser = Denoiser()
    make(request(), denoiser=denoiser)
    generator = torch.Generator().manual_seed(7)
    for call in denoiser.calls:
        assert torch.equal(call.noise, torch.randn(1, 16, 2, *SIZE, generator=generator))


def test_guidance_has_one_unit_in_training_and_generation(seen):
    make(request(embedded_cfg_scale=6.0, rope_scaling=(0.5, 800.0)))
    assert seen[0]["guidance"] == 6.0 and seen[0]["rope_scaling"] == (0.5, 800.0)
    batch = {name: value[None] for name, value in words("a")["a"].items()} | {
        "image_embeddings": torch.zeros(1, 16, 48), "latent_indices": torch.zeros(1, 2),
        "latents_clean": torch.zeros(1, 16, 2, *SIZE), "clean_latent_indices": torch.zeros(1, 2),
    }  # fmt: skip
    assert model.cond_from_batch(batch, guidance_scale=6.0)["guidance"] == 6.0


def test_embedded_guidance_reaches_the_model_times_1000():
    shapes = {name: tuple(value.shape) for name, value in tiny.dit_tensors(1).items()}
    dit = model.build(detect(shapes, {"head_dim": "32"}).config, device="cpu")
    dit.load_state_dict(tiny.dit_tensors(1))
    told = []
    dit.time_text_embed.guidance_embedder.register_forward_pre_hook(lambda _, given: told.append(given[0]))
    make_with = sample.video_latents(
        dit, request(video_sections=1, embedded_cfg_scale=6.0), texts=words("a bar"), inputs=inputs(),
        denoise=Denoiser(ask=True), device=CPU,
    )  # fmt: skip
    from engine.parts.mmdit import sine_features

    assert make_with.shape == (1, 16, 3, *SIZE)
    assert torch.equal(told[0], sine_features(torch.tensor([6000.0])))


def test_pictures_are_brought_to_size_and_seen_by_both_encoders(encoders, tmp_path):
    first, last = draw_image(tmp_path / "a.png", size=(100, 60)), draw_image(tmp_path / "b.png", number=9)
    asked = request(image_path=((-1, last), (0, first), (1, first)), end_image_path=last)
    given = sample.prepare(asked, encoders)
    assert set(given["starts"]) == set(given["images"]) == {-1, 0, 1}
    assert given["starts"][0].shape == (16, 1, *SIZE) and given["images"][0].shape == (16, 48)
    assert torch.equal(given["starts"][0], given["starts"][1]) and torch.equal(given["end"], given["starts"][-1])
    assert not torch.equal(given["starts"][0], given["starts"][-1])


def test_without_an_image_the_vae_sees_grey_and_siglip_black(encoders):
    from engine.families.framepack import image, vae

    given = sample.prepare(request(), encoders)
    assert torch.equal(given["starts"][0], vae.encode(encoders.vae, torch.zeros(1, 3, 1, 48, 64))[0])
    assert torch.equal(given["images"][0], image.encode_pixels(encoders.image, -torch.ones(1, 3, 48, 64))[0])
    assert given["end"] is None


@pytest.mark.parametrize("f1", [False, True])
def test_a_preview_shows_a_section_where_it_belongs(f1):
    """And no more of those beside it than a few seconds, or previews of a long video would take longer and longer."""
    start_CTHW = torch.zeros(16, 1, 2, 2)
    made = sample._History({"starts": {0: start_CTHW}, "end": None}, f1=f1)
    numbered = [torch.full((16, 9, 2, 2), float(number)) for number in range(1, 6)]
    for section_CTHW in numbered[:-1]:
        made.add(section_CTHW)
    shown_BCTHW = made.with_next(numbered[-1].unsqueeze(0))
    order = [2.0, 3.0, 4.0, 5.0] if f1 else [5.0, 4.0, 3.0, 2.0]
    assert shown_BCTHW[0, 0, :, 0, 0].tolist() == [number for number in order for _ in range(9)]
