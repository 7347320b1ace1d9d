"""musubi-tuner's command lines mean the same here, whatever stands before their first flag."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from engine.contract import cli, toml
from engine.contract.errors import OptionError
from engine.contract.job import make_job
from engine.contract.options import Models

from .guide_lines import GUIDE_LINES
from .lines import LATENTS, LINES, TRAIN, job_of

EVERY_LINE = [*LINES, *GUIDE_LINES]


@pytest.mark.parametrize(("name", "line", "values"), EVERY_LINE, ids=[name for name, _, _ in EVERY_LINE])
def test_line_means_the_same(name: str, line: str, values: dict[str, Any]) -> None:
    resolved = job_of(shlex.split(line)).values()
    assert {key: resolved[key] for key in values} == values


@pytest.mark.parametrize(("name", "line", "values"), EVERY_LINE, ids=[name for name, _, _ in EVERY_LINE])
def test_line_prints_a_config_that_gives_the_identical_job(
    name: str, line: str, values: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = shlex.split(line)
    assert cli.parse([*words, "--print_config"]) is None
    printed = capsys.readouterr().out
    file = tmp_path / "job.toml"
    file.write_text(printed, encoding="utf-8")
    job = job_of(words)
    verb = [*job.command.verb.split(), *([job.family] if job.command.family and job.family else [])]
    again = job_of([*verb, "--config_file", str(file)])
    assert again == job and again.to_toml() == printed


@pytest.mark.parametrize(
    "before",
    [
        ["cache-latents", "wan"],
        ["cache_latents", "wan"],
        ["wan_cache_latents"],
        ["wan_cache_latents.py"],
        ["./src/musubi_tuner/wan_cache_latents.py"],
        ["C:\\tools\\musubi\\wan_cache_latents.py"],
        ["python", "wan_cache_latents.py"],
        ["python3.11", "-m", "musubi_tuner.wan_cache_latents"],
        ["venv/bin/python", "-u", "src/musubi_tuner/wan_cache_latents.py"],
        ["uv", "run", "--extra", "cu128", "src/musubi_tuner/wan_cache_latents.py"],
        ["uv", "run", "--extra", "cu128", "python", "src/musubi_tuner/wan_cache_latents.py"],
        ["accelerate", "launch", "wan_cache_latents.py"],
    ],
    ids=lambda before: " ".join(before),
)
def test_whatever_stands_before_the_first_flag(before: list[str]) -> None:
    job = job_of([*before, "--dataset_config", "d.toml", "--vae", "v.pth"])
    assert (job.command.verb, job.family, job[Models].vae) == ("cache-latents", "wan", "v.pth")


def test_dashes_count_as_underscores_and_the_last_of_a_repeated_flag_wins() -> None:
    words = shlex.split(f"{TRAIN} --network-dim 8 --network_dim=16 --learning-rate 1e-3")
    assert job_of(words).values()["network_dim"] == 16


def test_a_flag_can_be_switched_off_again(tmp_path: Path) -> None:
    file = tmp_path / "job.toml"
    file.write_text("gradient_checkpointing = true\nno_metadata = true\n", encoding="utf-8")
    values = job_of([*shlex.split(TRAIN), "--config_file", str(file)]).values()
    assert values["gradient_checkpointing"] and values["no_metadata"]
    off = ["--no_gradient_checkpointing", "--no-no-metadata"]
    values = job_of([*shlex.split(TRAIN), "--config_file", str(file), *off]).values()
    assert not values["gradient_checkpointing"] and not values["no_metadata"]


def test_flags_win_over_the_file_and_the_file_over_the_launcher(tmp_path: Path) -> None:
    file = tmp_path / "job.toml"
    file.write_text('[training]\nmixed_precision = "no"\nlearning_rate = 1e-4\n', encoding="utf-8")
    words = [*shlex.split(TRAIN), "--config_file", str(file), "--learning_rate", "2e-4"]
    values = job_of(words).values()
    assert (values["mixed_precision"], values["learning_rate"]) == ("no", 2e-4)
    assert job_of(shlex.split(TRAIN)).values()["mixed_precision"] == "bf16"


def test_a_training_config_file_is_read_with_or_without_its_suffix(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(
        'dit = "/path/to/dit"\ndataset_config = "/path/to/dataset.toml"\nnetwork_module = "networks.lora_wan"\n'
        'network_dim = 32\nnetwork_alpha = 16\nnetwork_args = ["key1=value1", "key2=value2"]\n\n[optimizer]\n'
        'optimizer_type = "AdamW"\nlearning_rate = 1e-4\n\n[training]\nmax_train_epochs = 10\nsave_every_n_epochs = 2\n'
        'mixed_precision = "bf16"\n\n[output]\noutput_dir = "/path/to/output"\noutput_name = "my_lora"\n'
        'logging_dir = "./logs"\n',
        encoding="utf-8",
    )
    for path in (tmp_path / "config.toml", tmp_path / "config"):
        values = job_of(["wan_train_network.py", "--config_file", str(path)]).values()
        assert values["network_alpha"] == 16.0 and values["output_name"] == "my_lora"
        assert values["network_args"] == ("key1=value1", "key2=value2") and values["learning_rate"] == 1e-4


def test_printing_the_config_touches_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.parse([*shlex.split(TRAIN), "--output_dir", "out", "--print_config"]) is None
    assert list(tmp_path.iterdir()) == []
    assert toml.load(_kept(tmp_path / "job.toml", capsys.readouterr().out))["output_dir"] == "out"


def _kept(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_scripts_of_families_to_come_say_so() -> None:
    with pytest.raises(OptionError, match="hv_train belongs to a part that this version does not have"):
        cli.parse(["accelerate", "launch", "src/musubi_tuner/hv_train.py", "--dit", "x"])


@pytest.mark.parametrize("flag", ["--use_deepspeed", "--use_fsdp", "--tpu", "--num_machines 2"])
def test_what_accelerate_could_do_and_the_engine_cannot_is_refused(flag: str) -> None:
    with pytest.raises(OptionError, match=f"accelerate's {flag.split()[0]} asks for") as caught:
        cli.parse(["accelerate", "launch", *flag.split(), "wan_train_network.py", "--dit", "d"])
    assert ("--shard_base" in caught.value.hint) == (flag == "--use_fsdp")


def test_a_launcher_s_precision_is_checked_like_any_other() -> None:
    with pytest.raises(OptionError, match="--mixed_precision must be no, fp16 or bf16, but is 'fp8'"):
        cli.parse(shlex.split("accelerate launch --mixed_precision fp8 wan_train_network --dit d --dataset_config c"))


def test_lines_of_unknown_scripts_name_the_nearest() -> None:
    for words in (["wan_trian_network.py"], ["accelerate", "launch", "src/wan_trian_network.py", "--dit", "d"]):
        with pytest.raises(OptionError, match="not a script that this engine knows") as caught:
            cli.parse(words)
        assert caught.value.hint == "Did you mean wan_train_network?"


@pytest.mark.parametrize(
    "script", ["qwen_image_train_network", "flux_2_generate_image", "hv_1_5_cache_latents", "zimage_train"]
)
def test_scripts_of_other_models_are_not_taken_for_ours(script: str) -> None:
    """`qwen_image_train_network` was answered with "Did you mean wan_train_network?"."""
    with pytest.raises(OptionError, match="a model that this engine does not have") as caught:
        cli.parse(["accelerate", "launch", f"src/musubi_tuner/{script}.py", "--dit", "d"])
    assert caught.value.hint == "It has framepack, hunyuan-video, wan."


def test_jobs_can_be_made_without_a_command_line() -> None:
    job = job_of(shlex.split(LATENTS))
    values = {"dataset_config": "path/to/toml", "vae": "path/to/wan_vae.safetensors"}
    assert make_job(job.command, "wan", values) == job
