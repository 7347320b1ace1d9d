"""HunyuanVideo's options: musubi-tuner's command lines mean the same, and contradictions are one clear error."""

from __future__ import annotations

import shlex
from types import SimpleNamespace
from typing import Any

import pytest

from engine.contract import cli
from engine.contract.commands import FUTURE_SCRIPTS, find, sections_of
from engine.contract.errors import OptionError
from engine.contract.job import Job
from engine.contract.options import LoraStack
from engine.contract.schema import listed
from engine.families.hunyuan_video import options
from engine.sampling.prompts import GENERATE, PromptLine, parse_line

LAUNCH = "accelerate launch --num_cpu_threads_per_process 1 --mixed_precision bf16"
SCRIPTS = "src/musubi_tuner"
CKPTS = "path/to/ckpts"
DIT = f"{CKPTS}/hunyuan-video-t2v-720p/transformers/mp_rank_00_model_states.pt"
VAE = f"{CKPTS}/hunyuan-video-t2v-720p/vae/pytorch_model.pt"
TEXTS = f"--text_encoder1 {CKPTS}/text_encoder --text_encoder2 {CKPTS}/text_encoder_2"
TRAIN = f"{LAUNCH} {SCRIPTS}/hv_train_network.py --dit {DIT} --dataset_config path/to/toml"
GENERATE_LINE = (
    f"python {SCRIPTS}/hv_generate_video.py --dit {DIT} --vae {VAE} {TEXTS} --save_path path/to/save/dir --prompt cat"
)

LINES: list[tuple[str, str, dict[str, Any]]] = [
    (
        "latents",
        f"python {SCRIPTS}/cache_latents.py --dataset_config path/to/toml --vae {VAE} --vae_chunk_size 32 --vae_tiling",
        {"vae": VAE, "vae_chunk_size": 32, "vae_tiling": True, "vae_spatial_tile_sample_min_size": None},
    ),
    (
        "latents, less memory",
        f"uv run --extra cu124 {SCRIPTS}/cache_latents.py --dataset_config c --vae {VAE} --vae_dtype float16 "
        "--vae_spatial_tile_sample_min_size 128 --batch_size 1 --skip_existing",
        {"vae_spatial_tile_sample_min_size": 128, "vae_dtype": "float16", "batch_size": 1},
    ),
    (
        "text",
        f"python {SCRIPTS}/cache_text_encoder_outputs.py --dataset_config path/to/toml  {TEXTS} --batch_size 16",
        {"text_encoder1": f"{CKPTS}/text_encoder", "text_encoder2": f"{CKPTS}/text_encoder_2", "batch_size": 16,
         "text_encoder_dtype": None, "fp8_llm": False},
    ),
    (
        "text fp8",
        f"{SCRIPTS}/cache_text_encoder_outputs.py --dataset_config c {TEXTS} --fp8_llm --text_encoder_dtype bf16",
        {"fp8_llm": True, "text_encoder_dtype": "bf16"},
    ),
    (
        "train",
        f"{TRAIN} --sdpa --mixed_precision bf16 --fp8_base --optimizer_type adamw8bit --learning_rate 2e-4 "
        "--gradient_checkpointing --max_data_loader_n_workers 2 --persistent_data_loader_workers "
        "--network_module networks.lora --network_dim 32 --timestep_sampling shift --discrete_flow_shift 7.0 "
        "--max_train_epochs 16 --save_every_n_epochs 1 --seed 42 --output_dir path/to/output_dir "
        "--output_name name-of-lora",
        {"dit": DIT, "fp8_base": True, "network_module": "networks.lora", "discrete_flow_shift": 7.0,
         "guidance_scale": 1.0, "dit_in_channels": 16, "dit_dtype": None, "mixed_precision": "bf16"},
    ),
    (
        "train options",
        f"{TRAIN} --dit_dtype bfloat16 --dit_in_channels 32 --guidance_scale 6 --vae {VAE} {TEXTS} --fp8_llm "
        "--text_encoder_dtype float16 --vae_tiling --vae_chunk_size 32 --vae_spatial_tile_sample_min_size 128 "
        "--img_in_txt_in_offloading --split_attn --xformers --blocks_to_swap 36",
        {"dit_dtype": "bfloat16", "dit_in_channels": 32, "guidance_scale": 6.0, "img_in_txt_in_offloading": True,
         "split_attn": True, "xformers": True, "blocks_to_swap": 36},
    ),
    (
        "generate",
        f"python {SCRIPTS}/hv_generate_video.py --fp8 --video_size 544 960 --video_length 5 --infer_steps 30 --prompt "
        f'"A cat walks on the grass, realistic style." --save_path path/to/save/dir --output_type both --dit {DIT} '
        f"--attn_mode sdpa --split_attn --vae {VAE} --vae_chunk_size 32 --vae_spatial_tile_sample_min_size 128 "
        f"{TEXTS} --seed 1234 --lora_multiplier 1.0 --lora_weight path/to/lora.safetensors",
        {"fp8": True, "video_size": (544, 960), "video_length": 5, "infer_steps": 30, "attn_mode": "sdpa",
         "split_attn": True, "vae_chunk_size": 32, "seed": 1234, "lora_weight": ("path/to/lora.safetensors",)},
    ),
    (
        "generate, what it does by itself",
        GENERATE_LINE,
        {"video_length": 129, "infer_steps": 50, "guidance_scale": 1.0, "embedded_cfg_scale": 6.0, "flow_shift": 7.0,
         "fps": 24, "strength": 0.8, "split_uncond": False, "sample_solver": "euler", "video_size": (256, 256),
         "output_type": "video", "dit_in_channels": None, "exclude_single_blocks": False},
    ),
    (
        "skyreels",
        f"{GENERATE_LINE} --video_length 97 --guidance_scale 6.0 --embedded_cfg_scale 1.0 --split_uncond "
        '--negative_prompt "Aerial view, aerial view, overexposed" --dit_in_channels 32 --image_path path/to/image.jpg '
        "--fp8_llm --fp8_fast --img_in_txt_in_offloading --compile --compile_mode max-autotune-no-cudagraphs",
        {"guidance_scale": 6.0, "embedded_cfg_scale": 1.0, "split_uncond": True, "dit_in_channels": 32,
         "image_path": "path/to/image.jpg", "fp8_fast": True},
    ),
    (
        "video to video",
        f"{GENERATE_LINE} --video_path video.mp4 --strength 0.6",
        {"video_path": "video.mp4", "strength": 0.6},
    ),
    (
        "decode only",
        f"{GENERATE_LINE} --latent_path a_latent.safetensors b_latent.safetensors --no_metadata",
        {"latent_path": ("a_latent.safetensors", "b_latent.safetensors"), "no_metadata": True},
    ),
]  # fmt: skip


def job_of(line: str) -> Job:
    job = cli.parse(shlex.split(line))
    assert job is not None
    return job


@pytest.mark.parametrize(("line", "values"), [row[1:] for row in LINES], ids=[row[0] for row in LINES])
def test_a_line_of_musubi_tuner_s_guides_means_the_same_and_prints_a_job_file(line, values, capsys, tmp_path) -> None:
    job = job_of(line)
    assert job.family == "hunyuan_video"
    resolved = job.values()
    assert {key: resolved[key] for key in values} == values
    assert cli.parse([*shlex.split(line), "--print_config"]) is None
    file = tmp_path / "job.toml"
    file.write_text(capsys.readouterr().out, encoding="utf-8")
    assert job_of(shlex.join([job.command.verb, "hunyuan-video", "--config_file", str(file)])) == job


def test_full_fine_tuning_is_still_to_come() -> None:
    assert "hv_train" in FUTURE_SCRIPTS and not set(options.SCRIPTS) & set(FUTURE_SCRIPTS)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f"{GENERATE_LINE} --vae_spatial_tile_sample_min_size 100", "use 96 or 128"),
        (f"{GENERATE_LINE} --dit_in_channels 33", "take 16 or 32"),
        (f"{GENERATE_LINE} --dit_in_channels 16 --image_path a.png", "--image_path needs a DiT of 32"),
        (f"{GENERATE_LINE} --video_path a.mp4 --image_path a.png", "two ways to start"),
        (GENERATE_LINE.replace("--text_encoder2", "--negative_prompt"), "--text_encoder2 is required"),
        (f"{TRAIN} --network_module networks.lora_wan", "does not train this family"),
    ],
)
def test_contradictions_are_one_error(line: str, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        job_of(line)


def test_decoding_needs_no_text_encoder() -> None:
    job_of(f"generate hunyuan-video --vae {VAE} --latent_path a.safetensors --save_path out")


def test_what_the_job_asks_of_the_checkpoint() -> None:
    assert options.dit_arguments(job_of(TRAIN)) == {"task": "t2v", "dit_dtype": None}
    assert options.dit_arguments(job_of(f"{TRAIN} --dit_in_channels 32 --dit_dtype fp16")) == {
        "task": "skyreels-i2v", "dit_dtype": "fp16",
    }  # fmt: skip
    assert options.task(job_of(GENERATE_LINE)) is None  # a prompt line may bring an image
    assert options.task(job_of(f"{GENERATE_LINE} --image_path a.png")) == "skyreels-i2v"
    assert options.conditioning_arguments(job_of(f"{TRAIN} --guidance_scale 6")) == {
        "guidance_scale": 6.0, "first_frame": False,
    }  # fmt: skip


def test_clips_are_encoded_whole_unless_tiles_are_wanted_and_videos_decoded_in_tiles() -> None:
    tiles = {
        (more, of(job_of(f"{GENERATE_LINE} {more}"))["tile_pixels"])
        for more in ("", "--vae_tiling", "--vae_spatial_tile_sample_min_size 128")
        for of in (options.latent_settings, options.decode_arguments)
    }
    tile_128 = ("--vae_spatial_tile_sample_min_size 128", 128)
    assert tiles == {("", None), ("", 256), ("--vae_tiling", 256), tile_128}


def test_single_blocks_left_out_of_a_lora() -> None:
    line = f"{GENERATE_LINE} --lora_weight a b --exclude_patterns img_mlp --exclude_single_blocks"
    stack = job_of(line)[LoraStack]
    assert stack.exclude_patterns == ("(?:img_mlp)|single_blocks", "single_blocks")


def settings(line: str, prompt: str) -> dict[str, Any]:
    letters = {**GENERATE, **options.PROMPT_LETTERS}
    return options.request_settings(job_of(line), parse_line(prompt, letters=letters))


def test_a_prompt_line_has_embedded_guidance_and_an_image() -> None:
    plain = settings(GENERATE_LINE, "a cat")
    assert plain == {"embedded_cfg_scale": 6.0, "split_uncond": False}
    assert settings(GENERATE_LINE, "a cat --g 1.5")["embedded_cfg_scale"] == 1.5
    image = settings(GENERATE_LINE, "a cat --i a.png")
    assert image["image_path"].name == "a.png" and image["tile_pixels"] is None
    with pytest.raises(OptionError, match="takes no control_video_path"):
        settings(GENERATE_LINE, "a cat --cn a.mp4")


def test_defaults_in_help_are_those_that_are_used() -> None:
    defaults = options.generation_defaults(SimpleNamespace(), PromptLine(prompt="a", where="here"))
    shown = listed(sections_of(find("generate"), "hunyuan_video"))
    for name in ("video_length", "infer_steps", "flow_shift", "guidance_scale"):
        assert shown[name].default == getattr(defaults, name), name
