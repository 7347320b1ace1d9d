"""Mistakes on the command line and in job files: one clear line, the right neighbour, exit status 2."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from engine.__main__ import main
from engine.contract import cli
from engine.contract.errors import OptionError

TRAIN = "train wan --dit d.safetensors --dataset_config data.toml"
FUSED = f"{TRAIN} --fused_backward_pass --max_grad_norm 0"
GENERATE = "generate wan --dit d --vae v --t5 t --save_path out --prompt cat"

MISTAKES = [
    ("trian wan", "There is no command trian.", "Did you mean train?"),
    ("train wam", "There is no model family wam.", "Did you mean wan?"),
    ("train", "train needs a model family.", "train wan"),
    ("train --dit x", "train needs a model family.", "train wan"),
    ("dataset chekc", "There is no command dataset chekc.", "Did you mean dataset check?"),
    ("lora convert a b", "'a' belongs to no option.", "two dashes: --input … --output … --target …"),
    ("lora convert --input a --output b --target comfy", "--target must be other", "other: ComfyUI's"),
    ("plan --vram 12GB train wan", "There is no option --vram.", "`plan train wan … --vram …`"),
    ("lora convert --input a", "--output, --target are required.", "LoRA file to write."),
    ("train wan", "--dataset_config, --dit are required.", "Dataset file"),
    (f"{TRAIN} --newtork_dim 4", "There is no option --newtork_dim.", "Did you mean --network_dim?"),
    (
        f"{TRAIN} --lora_weight x",
        "There is no option --lora_weight.",
        "It is an option of `generate wan` and `lora merge`.",
    ),
    (f"{TRAIN} --learning", "There is no option --learning.", "Did you mean --learning_rate?"),
    (f"{TRAIN} -d 3", "There is no option -d.", "two dashes"),
    (f"{TRAIN} --dit", "--dit needs one value, but none follows.", "DiT file"),
    (f"{TRAIN} --learning_rate fast", "--learning_rate needs a number, but is 'fast'.", "Change --learning_rate."),
    (f"{TRAIN} --network_dim 1.5", "--network_dim needs a whole number, but is '1.5'.", "Change --network_dim."),
    (f"{TRAIN} --network_dim 0", "--network_dim must be from 1 to 4096, but is 0.", "Change --network_dim."),
    (f"{TRAIN} --task t2v-14b", "--task must be t2v-1.3B, t2v-14B", "Did you mean t2v-14B?"),
    (f"{TRAIN} --compile true", "'true' belongs to no option.", "--no_compile switches it off"),
    (f"{TRAIN} --optimizer_args weight_decay", "--optimizer_args takes key=value pairs", "weight_decay=…"),
    (f"{TRAIN} --optimizer_type ''", "--optimizer_type is empty.", "AdamW"),
    (f"{TRAIN} --fused_backward_pass", "their norm cannot be clipped (--max_grad_norm 1)", "Add --max_grad_norm 0"),
    (f"{FUSED} --gradient_accumulation_steps 2", "2 adds up the gradients", "Use --gradient_accumulation_steps 1"),
    (f"{FUSED} --num_processes 2", "--num_processes 2 adds up", "Use --num_processes 1"),
    (f"{FUSED} --mixed_precision fp16", "--mixed_precision fp16 scales the gradients", "Use --mixed_precision bf16"),
    (f"{TRAIN} --full_bf16 --mixed_precision no", "--mixed_precision no computes in another", "leave out --full_bf16"),
    (f"{TRAIN} --sage_attn", "--sage_attn cannot train", "--sdpa"),
    (f"{TRAIN} --sdpa --xformers", "--sdpa and --xformers were given", "Keep --sdpa"),
    (f"{TRAIN} --attn_8bit --sdpa", "--sdpa and --attn_8bit were given", "Keep --sdpa"),
    (f"{TRAIN} --lr_warmup_steps 100", "--lr_scheduler constant has no warmup", "constant_with_warmup"),
    (f"{TRAIN} --lr_scheduler adafactor --lr_warmup_steps 1", "adafactor has no warmup", "--lr_warmup_steps"),
    (f"{TRAIN} --lr_scheduler cosin", "--lr_scheduler cosin is unknown", "Did you mean cosine?"),
    (f"{TRAIN} --min_timestep 500 --max_timestep 100", "--min_timestep 500 must be below --max_timestep 100.", "raise"),
    (f"{TRAIN} --min_timestep 1200", "--min_timestep must be from 0 to 999, but is 1200.", "Change"),
    (f"{TRAIN} --save_every_n_steps 0", "--save_every_n_steps must be 1 or more, but is 0.", "Change"),
    (f"{TRAIN} --save_last_n_steps 3", "without --save_every_n_steps there is only one", "--save_every_n_steps"),
    (f"{TRAIN} --blocks_to_swap 2 --block_swap_h2d_only", "works only together with gradient checkpointing", "Add"),
    (f"{TRAIN} --gradient_checkpointing_blocks 4", "works only together with gradient checkpointing", "Add"),
    (f"{TRAIN} --block_swap_h2d_only --gradient_checkpointing", "says how blocks are streamed", "--blocks_to_swap"),
    (f"{TRAIN} --shard_base --blocks_to_swap 2", "--blocks_to_swap 2 in main memory", "Leave out one"),
    (f"{TRAIN} --shard_base --blocks_to_swap 2 --block_swap_from_disk", "--blocks_to_swap 2 on disk", "Leave out one"),
    (f"{TRAIN} --shard_base --memory auto --block_swap_from_disk", "--block_swap_from_disk on disk", "Leave out one"),
    (f"{TRAIN} --compile --compile_fullgraph --split_attn", "--split_attn cannot be compiled", "Leave out"),
    (f"{TRAIN} --dim_from_weights", "--network_weights, which is not given", "Add --network_weights"),
    (f"{TRAIN} --network_module networks.lora", "does not train this family; its LoRA is networks.lora_wan", "Leave"),
    (f"{TRAIN} --output_name {'猫' * 61}", "--output_name is 183 bytes long, at most 180 leave room", "shorter"),
    (f"{TRAIN} --output_name a/b", "--output_name 'a/b' is not a file name.", "--output_dir"),
    (f"{TRAIN} --log_with tensorboard", "needs a folder for the logs", "--logging_dir"),
    (f"{TRAIN} --log_tracker_config t.toml", "but nothing is logged", "--log_with wandb"),
    (f"{TRAIN} --async_upload", "no repository is named", "--huggingface_repo_id"),
    (f"{TRAIN} --resume_from_huggingface", "needs to know which state", "--resume owner/name"),
    (f"{TRAIN} --huggingface_repo_type modle", "must be model, dataset", "Did you mean model?"),
    (f"{TRAIN} --metadata_reso big", "--metadata_reso big is not a resolution.", "832,480"),
    (f"{TRAIN} --metadata_reso 1,2,3", "--metadata_reso 1,2,3 is not a resolution.", "832,480"),
    (f"{TRAIN} --base_weights a --base_weights_multiplier 1 2", "2 --base_weights_multiplier for 1", "one multiplier"),
    (f"{GENERATE} --video_length 80", "--video_length: 80 is not 4n+1: use 77 or 81.", "4 at a time"),
    (f"{GENERATE} --video_size 832 488", "a width of 488 is not a multiple of 16: use 480 or 496.", "16 x 16"),
    (f"{GENERATE} --video_size 832", "--video_size needs 2 values (height width), but was given 1: 832.", "Change"),
    (f"{GENERATE} dog", "'dog' belongs to no option.", "put quotes around the whole text"),
    (f"{GENERATE} --from_file p.txt", "--prompt and --from_file are alternative ways", "Keep only"),
    (f"{GENERATE} --lora_multiplier 1 2 --lora_weight a", "--lora_multiplier has 2 values", "one value"),
    (f"{GENERATE} --seed -1", "--seed must be from 0", "Change --seed."),
    (f"{GENERATE} --task t2i-14B --video_length 81", "--task t2i-14B makes single images", "--video_length"),
    (f"{GENERATE} --save_merged_model m", "has nothing to merge", "--lora_weight"),
    (f"{GENERATE} --compile_args inductor fast False False", "'fast' is no compile_mode", "--compile_mode"),
    ("generate wan --dit d --vae v --t5 t --save_path o", "Nothing to generate", "--prompt"),
    ("generate wan --dit d --vae v --t5 t --prompt cat", "--save_path is required", "Folder"),
    ("generate wan --vae v --t5 t --prompt cat --save_path o", "--dit is required to generate", "DiT file"),
    ("generate wan --dit d --t5 t --prompt cat --save_path o", "--vae is required to decode", "VAE file"),
    ("generate wan --dit d --vae v --prompt cat --save_path o", "--t5 is required to encode the prompt.", "UMT5"),
    ("generate wan --latent_path l --save_path o", "--vae is required to decode a latent", "VAE file"),
    ("generate wan --latent_path l --vae v --save_path o --output_type both", "decodes a latent", "video or images"),
    ("cache-latents wan --dataset_config d", "--vae is required to encode clips", "VAE file"),
    ("cache-latents wan --dataset_config d --vae v --recache --skip_existing", "contradict each other", "Leave out"),
    ("cache-text wan --dataset_config d", "--t5 is required.", "UMT5"),
    ("dataset check --dataset_config d --family wen", "There is no model family wen.", "Did you mean wan?"),
]


@pytest.mark.parametrize(("line", "message", "hint"), MISTAKES, ids=[line for line, _, _ in MISTAKES])
def test_mistake_is_answered(line: str, message: str, hint: str) -> None:
    with pytest.raises(OptionError) as caught:
        cli.parse(shlex.split(line))
    assert message in caught.value.message and hint in caught.value.hint
    assert caught.value.exit_status == 2 and "\n" not in caught.value.message


FILES = [
    ("dit = 'd'\nnetwork_dimm = 4", "There is no option network_dimm in job.toml.", "network_dim"),
    ("network_dim = '4'", "network_dim in job.toml needs a whole number, but is '4'.", "Remove the quotes"),
    ("learning_rate = 'fast'", "learning_rate in job.toml needs a number, but is 'fast'.", "Change learning_rate"),
    ("learning_rate = '2e-4'", "learning_rate in job.toml needs a number, but is '2e-4'.", "learning_rate = 2e-4"),
    ("learning_rate = true", "learning_rate in job.toml needs a number, but is True.", "Change"),
    ("output_name = 4", "output_name in job.toml needs text, but is 4.", 'output_name = "4"'),
    ("base_weights = 'a'", "base_weights in job.toml needs a list, but is 'a'.", 'base_weights = ["a"]'),
    ("task = 't2v'", "task in job.toml must be t2v-1.3B", "Did you mean t2v-14B?"),
    ("[a]\nseed = 1\n[b]\nseed = 2", "seed stands twice in job.toml: at [a] and [b].", "Keep one."),
    ("[a.b]\nseed = 1", "There is no option b in job.toml.", ""),
    ("[[a]]\nseed = 1", "There is no option a in job.toml.", ""),
    ("sdpa = true\nxformers = true", "--sdpa and --xformers were given", "(sdpa in job.toml and xformers in job.toml)"),
    ("seed = ", "job.toml is not valid TOML", ""),
    ("print_config = true", "print_config applies to a single run", "--print_config on the command line"),
    ("command = 'generate'", "job.toml is a job for `generate`, but the command is `train`.", "Run that command"),
    ("command = 'trian'", "There is no command trian.", "train"),
    ("family = 'wam'", "There is no model family wam.", "Did you mean wan?"),
    ("vae = \"C:\\foo\"", "vae in job.toml holds a control character", "single quotes"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message", "hint"), FILES, ids=[text for text, _, _ in FILES])
def test_mistake_in_a_job_file_names_key_and_file(
    text: str, message: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("job.toml").write_text(text + "\n", encoding="utf-8")
    with pytest.raises(OptionError) as caught:
        cli.parse(["train", "wan", "--dit", "d", "--dataset_config", "c", "--config_file", "job.toml"])
    assert message in caught.value.message and hint in caught.value.hint


def test_a_missing_or_unreadable_config_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="does not exist"):
        cli.parse(["train", "wan", "--config_file", str(tmp_path / "no.toml")])
    with pytest.raises(OptionError, match="is a folder"):
        cli.parse(["train", "wan", "--config_file", str(tmp_path)])
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(OptionError, match="UTF-8"):
        cli.parse(["train", "wan", "--config_file", str(tmp_path / "x.toml")])


def test_errors_go_to_stderr_with_their_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "wan", "--dti", "x"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == "error: There is no option --dti.\nhint:  Did you mean --dit?\n"


def test_a_reader_that_has_seen_enough_is_no_failure() -> None:
    """`… --help | head`: the pipe has no other end any more when the text comes."""
    theirs, ours = os.pipe()
    os.close(theirs)
    done = subprocess.run([sys.executable, "-m", "engine", "--help"], stdout=ours, stderr=subprocess.PIPE, text=True)
    os.close(ours)
    assert (done.returncode, done.stderr) == (0, "")


def test_negative_numbers_and_texts_with_dashes_are_values() -> None:
    job = cli.parse(
        shlex.split(GENERATE.replace("--prompt cat", "--prompt=--cat"))
        + ["--negative_prompt", "- a -b", "--flow_shift=3"]
    )
    assert job is not None and job.values()["prompt"] == "--cat" and job.values()["negative_prompt"] == "- a -b"
    job = cli.parse([*shlex.split(TRAIN), "--logit_mean", "-6.0", "--mode_scale", "-.5"])
    assert job is not None and job.values()["logit_mean"] == -6.0 and job.values()["mode_scale"] == -0.5


def test_fp8_scaled_needs_no_fp8_base_any_more() -> None:
    from engine.contract.options import GenerationPrecision, TrainingPrecision

    job = cli.parse([*shlex.split(TRAIN), "--fp8_scaled"])
    assert job is not None and job[TrainingPrecision].weight_format == "fp8_scaled"
    job = cli.parse([*shlex.split(GENERATE), "--fp8_base"])
    assert job is not None and job[GenerationPrecision].weight_format == "fp8"


def test_a_lora_without_a_multiplier_counts_one() -> None:
    from engine.contract.options import LoraStack

    job = cli.parse([*shlex.split(GENERATE), "--lora_weight", "a", "b", "--lora_multiplier", "0.5"])
    assert job is not None and job[LoraStack].multipliers == (0.5, 1.0)


def test_no_attention_flag_means_the_best_one() -> None:
    from engine.contract.options import Attention, AttentionMode

    job = cli.parse(shlex.split(TRAIN))
    assert job is not None and job[Attention].backend == "auto"
    job = cli.parse([*shlex.split(TRAIN), "--flash_attn"])
    assert job is not None and job[Attention].backend == "flash"
    job = cli.parse([*shlex.split(TRAIN), "--attn_8bit"])
    assert job is not None and job[Attention].backend == "8bit"
    job = cli.parse(shlex.split(GENERATE))
    assert job is not None and job[AttentionMode].backend == "auto"
