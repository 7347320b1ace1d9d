"""FramePack's VAE: sections with their histories, and decoding them again."""

from __future__ import annotations

import pytest
import torch

from engine.contract.errors import DataError, WeightsError
from engine.families.framepack import vae as family
from engine.families.framepack.sections import cut_clip, f1_layout, plain_layout
from engine.families.values import Clips
from engine.parts import hunyuan_vae
from engine.parts.hunyuan_vae import SCALING_FACTOR


def moving(frames: int, size: tuple[int, int] = (32, 48)) -> torch.Tensor:
    """A clip whose brightness runs through time, [1, 3, F, H, W] in -1..1, of whole numbers 0..255 as files have them:
    a draw's seed follows from these, and a pixel half-way between two of them would be rounded by its last bit."""
    time, across = torch.arange(frames) * 204 // max(frames - 1, 1), torch.arange(size[1]) * 25 // (size[1] - 1)
    bytes_F1W = 13 + time.view(-1, 1, 1) + across
    return (bytes_F1W / 127.5 - 1).expand(1, 3, frames, *size).contiguous()


def samples(encoders, frames: int, *, window: int = 2, **settings):
    clips = Clips(frames_BCFHW=moving(frames), window=window)
    return family.training_samples(
        encoders.vae, clips, dtype=torch.float32, image_encoder=encoders.image, **settings
    )[0]  # fmt: skip


def alike(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Whether two runs of the encoder gave the same draw: convolutions may sum in another order, depending on how many
    threads the machine has to spare, but another seed would show: the posterior's spread is 0.009."""
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=0, atol=1e-5)


def video(encoders, frames: int) -> torch.Tensor:
    return hunyuan_vae.seeded_latents(encoders.vae.network, moving(frames))[0] * SCALING_FACTOR


def test_plain_sections_have_what_follows_them_as_history(encoders):
    """Table 4.4: of three sections, the last in time is made first, from zeros."""
    made, whole = samples(encoders, 25), video(encoders, 25)
    assert cut_clip(25, window=2) == (8, len(made)) == (8, 3)
    for index, sample in enumerate(made):
        first = 1 + 2 * index
        layout = plain_layout(index, window=2)
        assert alike(sample["latents"], whole[:, first : first + 2])
        assert sample["latent_indices"].tolist() == list(layout.target)
        assert sample["clean_latent_indices"].tolist() == list(layout.clean)
        assert sample["clean_latent_2x_indices"].tolist() == list(layout.clean_2x)
        assert sample["clean_latent_4x_indices"].tolist() == list(layout.clean_4x)
        following = torch.cat([whole[:, first + 2 :], torch.zeros(16, 19, 4, 6)], dim=1)
        assert alike(sample["latents_clean"], torch.cat([whole[:, :1], following[:, :1]], dim=1))
        assert alike(sample["latents_clean_2x"], following[:, 1:3])
        assert alike(sample["latents_clean_4x"], following[:, 3:19])


def test_f1_sections_have_what_came_before_as_history(encoders):
    made, whole = samples(encoders, 25, f1=True), video(encoders, 25)
    layout = f1_layout(window=2)
    for index, sample in enumerate(made):
        first = 1 + 2 * index
        before = torch.cat([torch.zeros(16, 19, 4, 6), whole[:, :first]], dim=1)
        assert alike(sample["latents"], whole[:, first : first + 2])
        assert sample["latent_indices"].tolist() == list(layout.target)
        assert alike(sample["latents_clean"], torch.cat([whole[:, :1], before[:, -1:]], dim=1))
        assert alike(sample["latents_clean_2x"], before[:, -3:-1])
        assert alike(sample["latents_clean_4x"], before[:, -19:-3])


def test_more_than_four_sections_repeat_the_padding_of_two(encoders):
    made = samples(encoders, 45, window=2)  # in time: the last one is told 3 windows, the first one none
    assert [int(sample["latent_indices"][0] - 1) // 2 for sample in made] == [0, 1, 2, 2, 3]


def test_frames_behind_the_last_section_are_left_out(encoders):
    first, second = samples(encoders, 17), samples(encoders, 21)
    assert len(first) == len(second) == 2 and second[1]["latents_clean"].shape == (16, 2, 4, 6)


def test_every_section_has_the_states_of_the_first_frame(encoders):
    made = samples(encoders, 17)
    assert made[0]["image_embeddings"].shape == (16, 48)
    assert torch.equal(made[0]["image_embeddings"], made[1]["image_embeddings"])
    other = Clips(frames_BCFHW=moving(17).flip(2), window=2)
    (turned,) = family.training_samples(encoders.vae, other, dtype=torch.float32, image_encoder=encoders.image)
    assert not torch.equal(made[0]["image_embeddings"], turned[0]["image_embeddings"])


def test_caching_again_gives_the_same_latents(encoders):
    """musubi-tuner draws the posterior anew at each run, from the generator that everything else draws from too."""
    torch.manual_seed(1)
    once = samples(encoders, 17)[1]["latents"]
    torch.manual_seed(2)
    again = samples(encoders, 17)[1]["latents"]
    mean = family.encode(encoders.vae, moving(17))[0, :, 3:5]
    assert alike(once, again) and (once - mean).abs().mean() > 1e-3


def test_the_seed_of_a_clip_is_that_of_its_pixels_in_any_number_format():
    clip = (torch.arange(2 * 3 * 8 * 8).remainder(256).view(3, 2, 8, 8) / 127.5) - 1  # whole numbers, as files have
    seeds = {hunyuan_vae.pixel_seed(clip.to(dtype)) for dtype in (torch.float32, torch.float16, torch.bfloat16)}
    assert len(seeds) == 1 and hunyuan_vae.pixel_seed(-clip) not in seeds


def test_latents_are_scaled_in_caches_and_for_generation(encoders):
    plain = hunyuan_vae.encode(encoders.vae.network, moving(9)).mean_BCTHW
    assert torch.allclose(family.encode(encoders.vae, moving(9)), plain * SCALING_FACTOR)
    assert (samples(encoders, 9)[0]["latents"] - plain[0, :, 1:] * SCALING_FACTOR).abs().mean() < 0.05


@pytest.mark.parametrize(("frames", "told"), [(5, "needs 9"), (1, "image")])
def test_a_clip_that_is_too_short_says_how_long_it_must_be(frames, told):
    """musubi-tuner fails on images without a frame count."""
    with pytest.raises(DataError, match=told) as caught:
        cut_clip(frames, window=2)
    assert "9 frames" in caught.value.hint


def test_without_image_encoder_the_flag_is_named(encoders):
    with pytest.raises(DataError) as caught:
        family.training_samples(
            encoders.vae, Clips(frames_BCFHW=moving(9), window=2), dtype=torch.float16, image_encoder=None
        )
    assert "--image_encoder" in caught.value.hint


def test_section_decoding_has_every_frame_and_fades(encoders):
    """Against the published scheme, from the last section to the first; the number of sections comes from the
    latents, where musubi-tuner takes --video_seconds even if --video_sections was given (its fault 17)."""
    window, count = 3, 4
    latents = torch.randn(1, 16, 1 + window * count, 4, 6, generator=torch.Generator().manual_seed(3))
    pieces = list(family.decode_frames(encoders.vae, latents, window=window))
    made = torch.cat(pieces, dim=2)
    assert made.shape == (1, 3, 4 * window * count + 1, 32, 48) and len(pieces) == count
    overlap, wanted = 4 * window - 3, None
    for index in reversed(range(count)):
        first = 0 if index == 0 else 1 + index * window
        part = latents[:, :, first : first + 2 * window + (index == 0)] / SCALING_FACTOR
        pixels = hunyuan_vae.decode(encoders.vae.network, part, tiles=hunyuan_vae.Tiles(frames=None, pixels=None))
        if wanted is not None:
            weight = torch.linspace(1, 0, overlap).view(1, 1, -1, 1, 1)
            mixed = weight * pixels[:, :, -overlap:] + (1 - weight) * wanted[:, :, :overlap]
            pixels = torch.cat([pixels[:, :, :-overlap], mixed, wanted[:, :, overlap:]], dim=2)
        wanted = pixels
    assert (made - wanted).abs().max() < 1e-5


def test_bulk_decoding_is_one_go(encoders):
    latents = family.encode(encoders.vae, moving(17))
    (clip,) = family.decode_frames(encoders.vae, latents, window=2, bulk=True)
    assert torch.equal(clip, family.decode(encoders.vae, latents))
    assert (clip - moving(17)).abs().mean() < 0.1


def test_latents_of_another_window_are_refused(encoders):
    with pytest.raises(DataError, match="whole sections of 9") as caught:
        family.decode_frames(encoders.vae, torch.zeros(1, 16, 5, 4, 6))
    assert "--latent_window_size" in caught.value.hint


def test_tiles_in_space_only_when_asked_for(paths, encoders):
    tiled = family.load(paths["vae"], device="cpu", dtype=torch.float32, tile_pixels=32)
    latents = family.encode(tiled, moving(9, (48, 64)))
    whole = family.encode(encoders.vae, moving(9, (48, 64)))
    assert latents.shape == whole.shape and not torch.equal(latents, whole)
    with pytest.raises(DataError, match="tiles of 40 pixels"):
        family.load(paths["vae"], device="cpu", dtype=None, tile_pixels=40)


def test_another_kind_of_file_is_named(paths):
    with pytest.raises(WeightsError, match="looks like"):
        family.load(paths["image_encoder"], device="cpu", dtype=None)
