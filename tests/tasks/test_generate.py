"""`generate` in every family: what command lines of the reference tools ask for and those tools get wrong."""

from __future__ import annotations

import errno
import shlex
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from engine.contract import cli, patience
from engine.contract.files import disk_error
from engine.families import part
from engine.families.framepack import tiny as framepack
from engine.families.hunyuan_video import tiny as hunyuan_video
from engine.families.wan import tiny as wan
from engine.media.latents import load_latent, save_latent
from engine.media.writing import read_metadata
from engine.tasks import studio
from engine.tasks.requests import requests_of
from tests.clips import draw_image
from tests.tasks.conftest import FAMILIES

SMALL = ("--video_size", 48, 64, "--infer_steps", 1, "--device", "cpu")


def latent_of(engine, models, family: str, out: Path, *more: object) -> torch.Tensor:
    """The latents of the one video that is made, always from the same seed."""
    words = (*SMALL, "--prompt", "a bar", "--seed", 1, "--output_type", "latent", "--save_path", out)
    result = engine("generate", family, *models[family], *words, *more)
    assert result.status == 0, result.err
    (path,) = out.glob("*_latent.safetensors")
    return load_file(path)["latent"]


@pytest.mark.parametrize("flags", [("--fp8",), ("--fp8_scaled", "--fp8_fast")], ids=" ".join)
@pytest.mark.parametrize("family", FAMILIES)
def test_fp8_is_taken_by_every_family(family, flags, models, engine, tmp_path):
    """FramePack's --fp8 without --fp8_scaled crashes in the reference; --fp8_fast is dead in two of the three."""
    plain = latent_of(engine, models, family, tmp_path / "plain")
    small = latent_of(engine, models, family, tmp_path / "fp8", *flags)
    assert small.isfinite().all() and not small.equal(plain)
    assert (small - plain).norm() < 0.5 * plain.norm()


@pytest.mark.parametrize("family", FAMILIES)
def test_no_metadata_is_honoured_in_every_file(family, models, engine, tmp_path):
    """Blissful Tuner writes them into Wan's and FramePack's latent files all the same."""
    said = "a bar that nobody else knows"
    words = (*SMALL, "--prompt", said, "--output_type", "both", "--save_path", tmp_path)
    for more, wanted in ((("--no_metadata",), False), ((), True)):
        for old in [*tmp_path.glob("*.mp4"), *tmp_path.glob("*.safetensors")]:
            old.unlink()
        assert engine("generate", family, *models[family], *words, *more).status == 0
        (video,), (latent,) = tmp_path.glob("*.mp4"), tmp_path.glob("*_latent.safetensors")
        assert (read_metadata(video).get("prompt") == said) is wanted
        assert (said.encode() in video.read_bytes()) is wanted and (said.encode() in latent.read_bytes()) is wanted
        assert bool(load_latent(latent)[1]) is wanted


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_that_is_cut_is_told(family, models, engine, tmp_path):
    """A caption of a dataset when it is cached, a prompt when a video is made of it."""
    long = "a bar " * 300
    for name, caption in (("short", "a bar"), ("long", long)):
        draw_image(tmp_path / "clips" / f"{name}.png", number=1).with_suffix(".txt").write_text(caption)
    config = tmp_path / "data.toml"
    config.write_text(
        '[general]\nresolution = [64, 64]\ncaption_extension = ".txt"\n[[datasets]]\nimage_directory = "clips"\n'
    )
    encoders = part(family, "options").TEXT_FILES
    words = [word for flag, path in pairwise(models[family]) if flag[2:] in encoders for word in (flag, path)]
    cached = engine("cache-text", family, *words, "--dataset_config", config, "--device", "cpu")
    assert cached.status == 0, cached.err
    assert "1 caption is longer than the text encoder reads (long.png)" in " ".join(cached.err.split())
    made = engine("generate", family, *models[family], *SMALL, "--prompt", long, "--save_path", tmp_path / "made")
    assert made.status == 0, made.err
    assert "tokens, of which the text encoder reads only " in " ".join(made.err.split())


def test_what_is_denoised_is_never_lost_to_the_decoder(models, engine, tmp_path, monkeypatch):
    """Each latent is a file before the next is begun; the file goes when its video is there."""
    (tmp_path / "prompts.txt").write_text("a bar --d 1\na dot --d 2\n")
    words = (*SMALL, "--from_file", tmp_path / "prompts.txt", "--save_path")
    assert engine("generate", "wan", *models["wan"], *words, tmp_path / "good").status == 0
    assert not list((tmp_path / "good").glob("*_latent.safetensors"))
    assert len(list((tmp_path / "good").glob("*.mp4"))) == 2

    def broken(vae, latents_BCTHW, **more):
        raise RuntimeError("the decoder broke")

    monkeypatch.setattr(part("wan", "vae"), "decode_frames", broken)
    failed = engine("generate", "wan", *models["wan"], *words, tmp_path / "bad.mp4")
    first, second = tmp_path / "bad_latent.safetensors", tmp_path / "bad_1_latent.safetensors"
    assert failed.status == 70 and f"--latent_path {first}" in failed.err
    assert not torch.equal(load_latent(first)[0], load_latent(second)[0]) and not list(tmp_path.glob("*.mp4"))


@pytest.mark.parametrize(
    ("more", "told"),
    [(("--video_sections", 2), "section 2 of 2: seed 1, 64x48, 17 frames"),
     (("--one_frame_inference", "default"), "video 1 of 1: seed 1, 64x48, one frame")],
)  # fmt: skip
def test_a_person_is_told_the_length_of_the_video_not_of_its_section(more, told, models, engine, tmp_path):
    words = (*SMALL, "--prompt", "a bar", "--seed", 1, "--output_type", "latent", "--save_path", tmp_path)
    made = engine("generate", "framepack", *models["framepack"], *words, *more)
    assert made.status == 0 and told in made.err, made.err


def test_what_is_denoised_waits_for_room_on_the_disk(models, engine, tmp_path, monkeypatch):
    save, paused = studio.save_latent, []

    def on_a_full_disk(*given, **named):
        if len(paused) < 2:
            raise disk_error(tmp_path, OSError(errno.ENOSPC, "No space left on device"))
        return save(*given, **named)

    monkeypatch.setattr(studio, "save_latent", on_a_full_disk)
    monkeypatch.setattr(patience.until_written, "__kwdefaults__", {"clock": time.monotonic, "sleep": paused.append})
    words = (*SMALL, "--prompt", "a bar", "--output_type", "latent", "--save_path", tmp_path)
    result = engine("generate", "wan", *models["wan"], *words)
    assert result.status == 0, result.err
    assert paused == [patience.PAUSE_S] * 2 and len(list(tmp_path.glob("*_latent.safetensors"))) == 1
    assert "Video 1 of 1 is not saved yet." in result.err and "the disk is full" in result.err


def test_each_of_several_latents_keeps_what_it_said(models, engine, tmp_path):
    """In Blissful Tuner only the last one keeps it, and --no_metadata with --latent_path is a TypeError."""
    saved = [
        save_latent(tmp_path / f"{word}_latent.safetensors", torch.zeros(16, 1, 6, 8), metadata={"prompt": word})
        for word in ("first", "second")
    ]
    decode = ("generate", "hunyuan_video", *models["hunyuan_video"], "--latent_path", *saved, "--device", "cpu")
    assert engine(*decode, "--save_path", tmp_path / "kept").status == 0
    kept = {path.name.split("_")[-2]: read_metadata(path).get("prompt") for path in (tmp_path / "kept").glob("*.png")}
    assert kept == {"first": "first", "second": "second"}
    assert engine(*decode, "--save_path", tmp_path / "silent", "--no_metadata").status == 0
    silent = list((tmp_path / "silent").glob("*.png"))
    assert len(silent) == 2 and not any(read_metadata(path) for path in silent)


def test_lines_without_a_seed_draw_one_each(models, tmp_path):
    """In Blissful Tuner they all share that of the command."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\na dog\na bar --d 7\n")
    line = ["generate", "wan", *models["wan"], "--from_file", str(prompts), "--save_path", str(tmp_path)]
    first, second, third = (request.seed for request in requests_of(cli.parse(line)))
    assert first != second and third == 7
    given = [request.seed for request in requests_of(cli.parse([*line, *shlex.split("--seed 5")]))]
    assert given == [5, 5, 7]


def write_lora(path: Path, modules: dict[str, tuple[int, int]]) -> Path:
    """A LoRA of rank 2 that changes a lot, on modules of these (rows, columns)."""
    random = torch.Generator().manual_seed(3)
    tensors = {}
    for name, (rows, columns) in modules.items():
        tensors[f"lora_unet_{name}.lora_down.weight"] = torch.randn(2, columns, generator=random) * columns**-0.5
        tensors[f"lora_unet_{name}.lora_up.weight"] = torch.randn(rows, 2, generator=random)
        tensors[f"lora_unet_{name}.alpha"] = torch.tensor(2.0)
    save_file(tensors, path)
    return path


def test_patterns_choose_what_of_a_lora_acts(models, engine, tmp_path):
    """The reference hands the list of patterns to re.compile and crashes."""
    width, inner = wan.DIT_CONFIG.dim, wan.DIT_CONFIG.ffn_dim
    attention, feed_forward = {"blocks_0_self_attn_q": (width, width)}, {"blocks_0_ffn_0": (inner, width)}
    both = write_lora(tmp_path / "both.safetensors", attention | feed_forward)
    alone = write_lora(tmp_path / "attention.safetensors", attention)

    def made(name: str, *more: object) -> torch.Tensor:
        return latent_of(engine, models, "wan", tmp_path / name, *more)

    whole, part_of_it = made("both", "--lora_weight", both), made("alone", "--lora_weight", alone)
    assert not whole.equal(part_of_it)
    assert made("excluded", "--lora_weight", both, "--exclude_patterns", "ffn").equal(part_of_it)
    assert made("included", "--lora_weight", both, "--include_patterns", "self_attn").equal(part_of_it)


ADAPTED = {  # a square layer of each family's small DiT
    "wan": ("blocks_0_self_attn_q", wan.DIT_CONFIG.dim),
    "hunyuan_video": ("double_blocks_0_img_attn_proj", hunyuan_video.DIT_CONFIG.dim),
    "framepack": ("transformer_blocks_0_attn_to_q", framepack.DIT_CONFIG.dim),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lora_reaches_a_dit_under_comfyuis_prefix(family, models, engine, tmp_path):
    """In the reference its names do not match those of such a Wan file: a warning, and a video without the LoRA."""
    layer, width = ADAPTED[family]
    lora = write_lora(tmp_path / "lora.safetensors", {layer: (width, width)})
    dit, prefixed = models[family][models[family].index("--dit") + 1], tmp_path / "prefixed.safetensors"
    with safe_open(dit, "pt") as file:
        metadata = file.metadata()
    tensors = {f"model.diffusion_model.{name}": value for name, value in load_file(dit).items()}
    save_file(tensors, prefixed, metadata=metadata)
    wanted = latent_of(engine, models, family, tmp_path / "wanted", "--lora_weight", lora)
    found = latent_of(engine, models, family, tmp_path / "found", "--lora_weight", lora, "--dit", prefixed)
    assert found.equal(wanted) and not latent_of(engine, models, family, tmp_path / "plain").equal(wanted)


def test_a_merged_model_is_written_and_generates_as_with_its_lora(models, engine, tmp_path):
    """In the reference --save_merged_model does nothing unless --lycoris is given too."""
    width = framepack.DIT_CONFIG.dim
    lora = write_lora(tmp_path / "lora.safetensors", {"transformer_blocks_0_attn_to_q": (width, width)})
    wanted = latent_of(engine, models, "framepack", tmp_path / "lora", "--lora_weight", lora)
    merged = tmp_path / "merged.safetensors"
    words = ("--prompt", "a bar", "--lora_weight", lora, "--save_merged_model", merged, "--device", "cpu")
    saved = engine("generate", "framepack", *models["framepack"], *words)
    assert saved.status == 0, saved.err
    found = latent_of(engine, models, "framepack", tmp_path / "merged", "--dit", merged)
    plain = latent_of(engine, models, "framepack", tmp_path / "plain")
    assert torch.allclose(found, wanted, atol=1e-5) and not torch.allclose(plain, wanted, atol=1e-3)
