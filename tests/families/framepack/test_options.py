"""FramePack's options: musubi-tuner's command lines, lengths, and contradictions."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine.contract.cli import parse
from engine.contract.errors import OptionError
from engine.families.framepack import options, step_caches
from engine.families.framepack.detect import fullest
from engine.sampling.prompts import PromptLine, parse_line
from engine.tasks.requests import letters, make_request

MODELS = "--vae v --text_encoder1 a --text_encoder2 b --image_encoder i"
GENERATING = f"python fpack_generate_video.py --dit d {MODELS} --save_path out"
FLAGS = PromptLine(prompt="a bar", where="--prompt")


def job(line: str):
    found = parse(shlex.split(line))
    assert found is not None
    return found


def generating(more: str = ""):
    return job(f"{GENERATING} --prompt bar {more}")


LINES = {
    "cache-latents framepack": (
        "python src/musubi_tuner/fpack_cache_latents.py --dataset_config path/to/toml --vae v --image_encoder i "
        "--vae_chunk_size 32 --vae_spatial_tile_sample_min_size 128 --f1",
        {"vae_chunk_size": 32, "f1": True, "image_encoder": "i"},
    ),
    "cache-text framepack": (
        "python src/musubi_tuner/fpack_cache_text_encoder_outputs.py --dataset_config path/to/toml "
        "--text_encoder1 a --text_encoder2 b --batch_size 16 --fp8_llm",
        {"text_encoder1": "a", "text_encoder2": "b", "fp8_llm": True},
    ),
    "train framepack": (
        "accelerate launch --num_cpu_threads_per_process 1 --mixed_precision bf16 "
        f"src/musubi_tuner/fpack_train_network.py --dit d {MODELS} --dataset_config path/to/toml --sdpa "
        "--mixed_precision bf16 --optimizer_type adamw8bit --learning_rate 2e-4 --gradient_checkpointing "
        "--timestep_sampling shift --weighting_scheme none --discrete_flow_shift 3.0 --max_data_loader_n_workers 2 "
        "--persistent_data_loader_workers --network_module networks.lora_framepack --network_dim 32 "
        "--max_train_epochs 16 --save_every_n_epochs 1 --seed 42 --output_dir o --output_name name",
        {"network_module": "networks.lora_framepack", "guidance_scale": 1.0, "latent_window_size": 9},
    ),
    "generate framepack": (
        f"{GENERATING} --prompt 'A cat walks on the grass, realistic style.' --video_size 512 768 --video_seconds 5 "
        "--fps 30 --infer_steps 25 --attn_mode sdpa --fp8_scaled --vae_chunk_size 32 "
        "--vae_spatial_tile_sample_min_size 128 --image_path start.jpg --output_type both --seed 1234 "
        "--lora_multiplier 1.0 --lora_weight lora.safetensors",
        {"video_seconds": 5.0, "fps": 30, "embedded_cfg_scale": 10.0, "latent_window_size": 9, "fp8_scaled": True},
    ),
}


@pytest.mark.parametrize("name", LINES)
def test_lines_of_the_reference_mean_the_same(name):
    line, values = LINES[name]
    found = job(line)
    assert found.name == name and {key: found.values()[key] for key in values} == values


def test_defaults_of_a_generation():
    made = make_request(generating(), FLAGS)
    assert (made.steps, made.guidance, made.shift, made.negative_prompt, made.frames) == (25, 1.0, None, "", 145)
    assert made.settings["embedded_cfg_scale"] == 10.0 and made.settings["video_sections"] == 4
    assert made.settings["solver"] == "unipc-3" and made.settings["rope_scaling"] is None


@pytest.mark.parametrize(
    ("flags", "line", "sections"),
    [
        ("--video_seconds 10", "bar", 8),
        ("--video_sections 3", "bar", 3),
        ("--video_sections 3 --fps 16", "bar", 3),
        ("--video_sections 3 --video_seconds 10", "bar", 3),
        ("--video_sections 3", "bar --f 2.5", 2),
        ("--video_seconds 10", "bar --vs 1", 1),
        ("--video_length 73", "bar", 2),
        ("--video_seconds 1 --latent_window_size 4", "bar", 2),
    ],
)
def test_sections_and_seconds_are_both_right(flags, line, sections):
    """Fault 17 of the reference: it counts sections anew from --video_seconds and --fps."""
    asked = generating(flags)
    made = make_request(asked, parse_line(line, letters=letters(asked)))
    window = made.settings["latent_window_size"]
    assert made.settings["video_sections"] == sections and made.frames == sections * 4 * window + 1
    assert options.decode_arguments(asked) == {"window": window, "bulk": False}


def test_letters_of_prompt_lines_are_those_of_the_reference():
    """`musubi.md` part 7: seconds instead of frames, sections, and MagCache's three."""
    assert options.PROMPT_LETTERS == {
        "f": "video_seconds",
        "vs": "video_sections",
        "mcrr": "magcache_retention_ratio",
        "mct": "magcache_threshold",
        "mck": "magcache_k",
    }


def test_images_by_section():
    made = make_request(generating("--image_path '0:C:/a.png;;;-1:b.png' --end_image_path e.png"), FLAGS)
    assert made.settings["image_path"] == ((-1, Path("b.png")), (0, Path("C:/a.png")))
    assert made.settings["end_image_path"] == Path("e.png")
    line = PromptLine(prompt="a", where="line 1", image_path="C:\\x.png")
    assert make_request(generating("--image_path y.png"), line).settings["image_path"] == ((0, Path("C:\\x.png")),)


def test_rope_scaling_only_with_a_threshold():
    made = make_request(generating("--rope_scaling_timestep_threshold 800"), FLAGS)
    assert made.settings["rope_scaling"] == (0.5, 800.0)
    assert make_request(generating("--rope_scaling_factor 0.7"), FLAGS).settings["rope_scaling"] is None


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (f"{GENERATING} --prompt a --f1 --latent_paddings 1,0", "--latent_paddings"),
        (f"{GENERATING} --prompt a --f1 --end_image_path e.png", "--end_image_path"),
        (f"{GENERATING} --prompt a --video_length 81", "73 or 109"),
        (f"{GENERATING} --prompt a --video_length 73 --video_sections 2", "both"),
        (f"{GENERATING} --prompt a --video_length 5 --one_frame_inference default", "36n+1: use 1 or 37"),
        (f"{GENERATING} --prompt a --video_size 360 640", "not a multiple of 16: use 352 or 368"),
        (f"{GENERATING} --prompt a --vae_spatial_tile_sample_min_size 40", "use 32 or 64"),
        (
            "python fpack_generate_video.py --dit d --vae v --text_encoder1 a --prompt a --save_path o",
            "--text_encoder2",
        ),
        ("python fpack_cache_latents.py --dataset_config d --vae v", "--image_encoder"),
    ],
)
def test_contradictions_and_gaps_are_one_clear_error(line, told):
    with pytest.raises(OptionError) as caught:
        job(line)
    assert told in f"{caught.value.message} {caught.value.hint}"


def test_latents_are_decoded_without_text_and_image_encoders():
    """The reference's parser demands them all the same."""
    asked = job("python fpack_generate_video.py --vae v --latent_path a.safetensors --save_path o --bulk_decode")
    assert options.decode_arguments(asked)["bulk"]


def test_tiles():
    assert options.vae_arguments(generating()) == {"tile_pixels": None}
    assert options.vae_arguments(generating("--vae_tiling")) == {"tile_pixels": 256}
    assert options.vae_arguments(generating("--vae_spatial_tile_sample_min_size 64")) == {"tile_pixels": 64}


def test_f1_tells_the_model_and_the_caches():
    assert options.dit_arguments(generating("--f1")) == {"task": "f1"}
    assert options.dit_arguments(generating()) == {"task": "i2v"}
    caching = LINES["cache-latents framepack"][0]
    assert options.latent_settings(job(caching))["f1"]
    assert options.conditioning_arguments(job(LINES["train framepack"][0])) == {"guidance_scale": 1.0}


def caching_of(flags: str, line: str = "bar"):
    asked = generating(flags)
    return make_request(asked, parse_line(line, letters=letters(asked))).settings["step_cache"]


def test_magcache_is_off_unless_there_are_ratios():
    assert caching_of("") is None and caching_of("--magcache_threshold 0.5") is None
    usual = caching_of("--magcache_mag_ratios 0")
    ((*ratios,),) = usual["numbers"]
    assert usual["method"] == "magcache" and len(ratios) == 50 and ratios[:3] == [1.0, 1.06971, 1.29073]
    assert (usual["start"], usual["threshold"], usual["most_in_a_row"]) == (0.2, 0.24, 6)
    assert caching_of("--magcache_mag_ratios 1,1.1,0.9")["numbers"] == ((1.0, 1.1, 0.9),)
    assert caching_of("--magcache_calibration")["calibrate"] and "calibrate" not in usual


def test_a_line_changes_magcache_and_nothing_that_is_off():
    """The reference takes --mct without --magcache_mag_ratios and ignores it."""
    changed = caching_of("--magcache_mag_ratios 0 --magcache_k 3", "bar --mcrr 0.1 --mct 0.5")
    assert (changed["start"], changed["threshold"], changed["most_in_a_row"]) == (0.1, 0.5, 3)
    assert caching_of("--step_cache magcache", "bar --mct 0.5") == {"method": "magcache", "threshold": 0.5}
    for flags in ("", "--step_cache first_block"):
        with pytest.raises(OptionError, match="--mck") as caught:
            caching_of(flags, "bar --mck 2")
        assert "--magcache_mag_ratios 0" in caught.value.hint


def settled_for(flags: str):
    asked = generating(flags)
    request = make_request(asked, parse_line("bar", letters=letters(asked)))
    return step_caches.settings(request, SimpleNamespace(config=fullest()))


def test_both_spellings_of_magcache_mean_the_same():
    ours, theirs = settled_for("--step_cache magcache"), settled_for("--magcache_mag_ratios 0")
    assert theirs.ratios_flag == "--magcache_mag_ratios" and replace(theirs, ratios_flag=ours.ratios_flag) == ours
    assert settled_for("--step_cache magcache --magcache_mag_ratios 0 --magcache_k 3").most_in_a_row == 3
    teacache = settled_for("--step_cache teacache --step_cache_threshold 0.1")
    assert teacache.threshold == 0.1 and teacache.numbers[0][0] == 733.226126


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--magcache_mag_ratios 0 --step_cache teacache", "switches MagCache on, but --step_cache is teacache"),
        ("--magcache_calibration --step_cache first_block", "--magcache_calibration switches MagCache on"),
        ("--magcache_mag_ratios 0 --step_cache magcache --step_cache_threshold 0.1", "both say how MagCache works"),
    ],
)
def test_two_spellings_at_odds_are_one_error(flags, said):
    with pytest.raises(OptionError, match=said):
        generating(flags)


@pytest.mark.parametrize("given", ["abc", "1,,2", "1,-2", "0,0", "nan", "1,1.1;1,1.1"])
def test_ratios_that_are_no_list_of_numbers_are_refused(given):
    with pytest.raises(OptionError, match="list of numbers"):
        caching_of(f"--magcache_mag_ratios {given}")


def test_one_frame_changes_what_is_cached():
    caching = LINES["cache-latents framepack"][0]
    plain, single = job(caching), job(f"{caching} --one_frame --one_frame_no_2x")
    assert not options.takes_controls(plain) and options.takes_controls(single)
    assert options.latent_settings(single) == {"one_frame": True, "no_2x": True, "no_4x": False}
    with pytest.raises(OptionError, match="--one_frame_no_4x"):
        job(f"{caching} --one_frame_no_4x")


def test_control_videos_are_refused():
    with pytest.raises(OptionError, match="control videos"):
        make_request(generating(), PromptLine(prompt="bar", where="line 1", control_video_path="a.mp4"))
