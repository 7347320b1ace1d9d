"""accelerate's launcher: its flags, the variables by which it passes them on, and the options that have their names."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from engine.contract import cli
from engine.contract.errors import OptionError
from engine.contract.launch import surrounding
from engine.contract.options.accepted import ACCEPTED

SCRIPT = "src/musubi_tuner/wan_train_network.py --dit d --dataset_config c"
TRAIN = "train wan --dit d --dataset_config c"


def values(line: str) -> dict[str, Any]:
    job = cli.parse(shlex.split(line))
    assert job is not None
    return job.values()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("", {"num_processes": 1, "gpu_ids": None, "device": None}),
        ("--num_processes 2", {"num_processes": 2, "gpu_ids": None, "device": None}),
        ("--multi_gpu --num_processes=4 --gpu_ids=0,1,2,3", {"num_processes": 4, "gpu_ids": "0,1,2,3"}),
        ("--multi_gpu --gpu_ids 2,3", {"num_processes": 2, "gpu_ids": "2,3"}),
        ("--num-processes 2 --main-process-port 29501", {"num_processes": 2, "main_process_port": 29501}),
        ("--num_processes 1 --main_process_port 29501", {"num_processes": 1, "main_process_port": None}),
        ("--gpu_ids 1", {"num_processes": 1, "gpu_ids": None, "device": "cuda:1"}),
        ("--num_processes 1 --gpu_ids 3,4", {"gpu_ids": None, "device": "cuda:3"}),
        ("--gpu_ids all", {"gpu_ids": None, "device": None}),
        ("--cpu --num_processes 2", {"num_processes": 2, "device": "cpu"}),
        ("--cpu --gpu_ids 0", {"device": "cpu"}),
        (
            "--dynamo_backend inductor --dynamo_mode max-autotune --dynamo_use_fullgraph --dynamo_use_dynamic",
            {
                "compile": True, "compile_backend": "inductor", "compile_mode": "max-autotune",
                "compile_fullgraph": True, "compile_dynamic": "true", "dynamo_backend": "INDUCTOR",
            },
        ),
        ("--dynamo_backend no --dynamo_mode default", {"compile": False, "compile_mode": "default"}),
    ],
)  # fmt: skip
def test_its_flags_mean_the_same(flags: str, expected: dict[str, Any]) -> None:
    found = values(f"accelerate launch {flags} {SCRIPT}")
    assert {name: found[name] for name in expected} == expected


def test_one_gpu_of_a_launcher_is_the_device_of_any_command() -> None:
    line = "accelerate launch --gpu_ids 1 wan_cache_latents.py --dataset_config c --vae v"
    assert values(line)["device"] == "cuda:1"


def test_several_gpus_without_a_number_are_refused() -> None:
    """accelerate counts the GPUs; that takes torch, and a training on all of them that nobody asked for."""
    with pytest.raises(OptionError, match="--multi_gpu needs to know how many") as caught:
        cli.parse(shlex.split(f"accelerate launch --multi_gpu {SCRIPT}"))
    assert "--num_processes" in caught.value.hint


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({}, {}),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, {"mixed_precision": "bf16"}),
        ({"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "NO"}, {}),
        ({"ACCELERATE_USE_CPU": "True", "ACCELERATE_DYNAMO_MODE": "max-autotune"}, {"device": "cpu"}),
        (
            {
                "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR", "ACCELERATE_DYNAMO_MODE": "default",
                "ACCELERATE_DYNAMO_USE_FULLGRAPH": "True", "ACCELERATE_DYNAMO_USE_DYNAMIC": "False",
            },
            {"dynamo_backend": "INDUCTOR", "dynamo_fullgraph": "True"},
        ),
    ],
)  # fmt: skip
def test_what_a_launcher_around_us_passes_on(told: dict[str, str], expected: dict[str, str]) -> None:
    assert surrounding(told) == expected


def test_a_launcher_around_us_counts_less_than_any_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    assert values(TRAIN)["mixed_precision"] == "fp16"
    assert values(f"{TRAIN} --mixed_precision bf16")["mixed_precision"] == "bf16"
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(OptionError, match="accelerate launch asks for FSDP"):
        values(TRAIN)


def test_dynamo_is_compile_under_accelerate_s_name(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"{TRAIN} --dynamo_backend AOT_EAGER --dynamo_fullgraph"
    found = values(line)
    expected = {"compile": True, "compile_backend": "aot_eager", "compile_mode": "default", "compile_fullgraph": True,
                "compile_dynamic": "auto"}  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    assert values(f"{line} --compile --compile_backend aot_eager") == found
    cli.parse([*shlex.split(line), "--print_config"])
    file = tmp_path / "job.toml"
    file.write_text(capsys.readouterr().out)
    assert values(f"train wan --config_file {file}") == {**found, "config_file": str(file)}
    off = values(f"{TRAIN} --dynamo_backend NO --dynamo_mode max-autotune")
    assert not off["compile"] and off["compile_mode"] == "default"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--dynamo_backend INDUCTOR --compile_backend eager", "--dynamo_backend INDUCTOR and --compile_backend eager"),
        ("--dynamo_backend EAGER --dynamo_mode max-autotune --compile_mode reduce-overhead", "--dynamo_mode max-auto"),
        ("--dynamo_backend EAGER --dynamo_dynamic --compile_dynamic false", "--dynamo_dynamic True and --compile_dyn"),
        ("--dynamo_backend EAGER --dynamo_fullgraph --split_attn", "--split_attn cannot be compiled as one graph"),
        ("--num_processes 3 --gpu_ids 0,1", "--num_processes 3 needs as many GPUs, but --gpu_ids names 2"),
        ("--num_processes 2 --gpu_ids 1,1", "--gpu_ids 1,1 names 1 twice"),
        ("--gpu_ids '0;1'", "'0;1' is no GPU"),
        ("--num_processes 2 --device cuda:1", "--device cuda:1 is one GPU, but --num_processes 2 needs one for each"),
    ],
)
def test_what_contradicts_is_one_error(flags: str, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        values(f"{TRAIN} {flags}")
    assert message in caught.value.message and caught.value.names and caught.value.hint


def test_options_of_distributed_data_parallel_are_accepted_with_a_reason() -> None:
    found = values(f"{TRAIN} --num_processes 2 --ddp_gradient_as_bucket_view --ddp_static_graph --ddp_timeout 60")
    assert found["ddp_gradient_as_bucket_view"] and found["ddp_static_graph"] and found["ddp_timeout"] == 60
    assert ACCEPTED["ddp_gradient_as_bucket_view"] and ACCEPTED["ddp_static_graph"]
