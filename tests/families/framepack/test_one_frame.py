"""One-frame inference: control images, masks, places in time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from engine.contract.errors import OptionError
from engine.families.framepack import image, model, one_frame, pictures, sample
from engine.tasks.requests import make_request

from ...clips import draw_image
from .pieces import CPU, Denoiser, request, words
from .test_options import FLAGS, generating

KISEKAEICHI = "target_index=1,control_index=0;10,no_post"


def controls(folder: Path) -> tuple[Path, Path]:
    return draw_image(folder / "a.png", size=(64, 48)), draw_image(folder / "b.png", size=(64, 48), number=9)


def test_places_and_zeros(encoders, tmp_path):
    asked = request(one_frame="default", control_image_path=controls(tmp_path)[:1], latent_window_size=9)
    given = one_frame.conditioning(asked, one_frame.prepare(asked, encoders))
    assert given["latent_indices"].tolist() == [9] and given["clean_latent_indices"].tolist() == [0, 10]
    assert given["clean_latent_2x_indices"].tolist() == [11, 12]
    assert given["clean_latent_4x_indices"].tolist() == list(range(13, 29))
    assert given["latents_clean"].shape == (16, 2, 6, 8) and not given["latents_clean"][:, 1].any()


def test_kisekaeichi_without_what_is_left_out(encoders, tmp_path):
    first, second = controls(tmp_path)
    asked = request(one_frame=f"no_2x,no_4x,{KISEKAEICHI}", control_image_path=(first, second))
    given = one_frame.conditioning(asked, one_frame.prepare(asked, encoders))
    assert given["latent_indices"].tolist() == [1] and given["clean_latent_indices"].tolist() == [0, 10]
    assert "clean_latent_2x_indices" not in given and "clean_latent_4x_indices" not in given
    wanted = [pictures.latent(pictures.picture(path, (64, 48)), encoders) for path in (first, second)]
    assert torch.equal(given["latents_clean"], torch.cat(wanted, dim=1))


def test_alpha_and_masks_select_what_counts(encoders, tmp_path):
    first, _ = controls(tmp_path)
    half = np.zeros((48, 64), dtype=np.uint8)
    half[:, :32] = 255
    with_alpha = Image.open(first).convert("RGB")
    with_alpha.putalpha(Image.fromarray(half))
    with_alpha.save(tmp_path / "alpha.png")
    Image.fromarray(half).save(tmp_path / "mask.png")
    plain, alpha, masked = (
        one_frame.prepare(
            request(one_frame="default", control_image_path=(path,), control_image_mask_path=masks), encoders
        )
        for path, masks in ((first, ()), (tmp_path / "alpha.png", ()), (first, (tmp_path / "mask.png",)))
    )
    assert torch.equal(alpha["controls"], masked["controls"])
    assert torch.allclose(alpha["controls"][..., :3], plain["controls"][..., :3], atol=0.02)
    assert alpha["controls"][..., 6:].abs().max() < 0.1 < plain["controls"][..., 6:].abs().max()


def test_masks_are_cut_as_their_pictures_are(tmp_path):
    """musubi-tuner squeezes a mask into shape, while the picture's sides are cut off."""
    wide = np.zeros((48, 128), dtype=np.uint8)
    wide[:, 32:64] = 255  # of the picture's middle, the left half
    Image.fromarray(wide).save(tmp_path / "wide.png")
    found = pictures.mask(tmp_path / "wide.png", (64, 48), alpha=False)
    assert found.shape == (6, 8) and found[:, :3].min() > 0.95 and found[:, 5:].max() < 0.05


def test_siglip_sees_the_first_control_where_there_is_no_start_image(encoders, tmp_path):
    """musubi-tuner shows it black, though it was trained on the first control."""
    first, second = controls(tmp_path)
    asked = request(one_frame="default", control_image_path=(first, second))
    states = image.encode(encoders.image, [pictures.picture(first, (64, 48))])[0]
    assert torch.equal(one_frame.prepare(asked, encoders)["images"][0], states)
    started = request(one_frame="default", control_image_path=(first,), image_path=((0, second),))
    assert not torch.equal(one_frame.prepare(started, encoders)["images"][0], states)


def test_auto_resize_takes_the_shape_of_the_first_control(encoders, tmp_path):
    tall = draw_image(tmp_path / "tall.png", size=(48, 96))
    asked = request(one_frame="default", one_frame_auto_resize=True, control_image_path=(tall,), width=64, height=64)
    found = one_frame.prepare(asked, encoders)
    assert found["size"] == (48, 80) and found["controls"].shape == (16, 1, 10, 6)


def test_one_latent_frame_comes_out(encoders, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(model, "velocity", lambda dit, x, t, cond, **_: seen.append(cond) or torch.zeros_like(x))
    asked = request(one_frame="default")
    latents = sample.video_latents(
        None,
        asked,
        texts=words("a bar"),
        inputs=sample.prepare(asked, encoders),
        denoise=Denoiser(ask=True),
        device=CPU,
    )
    assert latents.shape == (1, 16, 1, 6, 8)
    assert not seen[0]["clean"].any() and seen[0]["clean_4x"].shape == (1, 16, 16, 6, 8)


def test_flags_and_lines():
    flags = "--one_frame_inference default --control_image_path a.png b.png --control_image_mask_path m.png"
    made = make_request(generating(flags), FLAGS)
    assert made.frames == 1 and made.settings["video_sections"] is None
    assert made.settings["control_image_path"] == (Path("a.png"), Path("b.png"))


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--control_image_path a.png", "--one_frame_inference"),
        ("--one_frame_inference default --control_image_mask_path m.png", "1 masks for 0"),
        ("--one_frame_inference default,control_index=0;1;2 --control_image_path a.png", "3 places"),
        ("--one_frame_inference no_8x", "no_8x"),
    ],
)
def test_contradictions_are_told_before_anything_is_loaded(flags, told):
    with pytest.raises(OptionError) as caught:
        make_request(generating(flags), FLAGS)
    assert told in f"{caught.value.message} {caught.value.hint}"


def test_through_the_front_door(paths, engine, tmp_path):
    first, second = controls(tmp_path)
    models = [word for name, path in paths.items() for word in (f"--{name}", path)]
    made = engine(
        "generate", "framepack", *models, "--prompt", "a bar", "--one_frame_inference", KISEKAEICHI,
        "--control_image_path", first, second, "--video_size", 48, 64, "--infer_steps", 2, "--output_type", "images",
        "--save_path", tmp_path / "out", "--device", "cpu",
    )  # fmt: skip
    assert made.status == 0, made.err
    (found,) = (tmp_path / "out").rglob("*.png")
    assert Image.open(found).size == (64, 48)
