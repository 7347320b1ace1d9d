"""`--block_swap_from_disk` through the front door: trainings and videos are what they are without it."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine.contract.cli import parse
from engine.contract.errors import OptionError
from engine.contract.options import Memory
from engine.families import names, part
from engine.families.wan import tiny as wan
from engine.parts import mapped_files
from engine.parts.weights import write_weights
from tests.tasks.conftest import FAMILIES
from tests.tasks.test_generate import write_lora
from tests.tasks.test_prior import values_of
from tests.tasks.test_step_caching import SMALL

ROOT = Path(__file__).parents[2]
STREAMED = ("--blocks_to_swap", "2")
ON_DISK = (*STREAMED, "--block_swap_from_disk")


@pytest.fixture(autouse=True)
def _scratch(tmp_path, monkeypatch):
    monkeypatch.setenv("MUSUBI_SCRATCH", str(tmp_path / "scratch"))


@pytest.fixture
def made(models, engine, tmp_path):
    """The latents of a family's small model under more flags, and what was said."""

    def run(family: str, *words: object) -> tuple[torch.Tensor, str]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        out = ("--save_path", folder / "out", "--job_dir", folder / "job")
        result = engine("generate", family.replace("_", "-"), *models[family], *SMALL, *out, *words)
        assert result.status == 0, result.err
        (path,) = (folder / "out").glob("*_latent.safetensors")
        return load_file(path)["latent"], (folder / "job" / "events.jsonl").read_text(encoding="utf-8")

    return run


@pytest.mark.parametrize("family", FAMILIES)
def test_videos_are_the_same(family, made):
    wanted, _ = made(family, "--infer_steps", 2)
    found, told = made(family, "--infer_steps", 2, *ON_DISK)
    assert torch.equal(found, wanted) and "2 blocks wait on disk" in told


def test_videos_with_merged_loras_in_fp8_are_the_same_and_nothing_is_left(made, tmp_path):
    width = wan.DIT_CONFIG.dim
    lora = write_lora(
        tmp_path / "lora.safetensors", {f"blocks_{number}_self_attn_q": (width, width) for number in range(2)}
    )
    for words in (("--lora_weight", lora), ("--lora_weight", lora, "--fp8_scaled")):
        wanted, _ = made("wan", "--infer_steps", 2, *words)
        found, told = made("wan", "--infer_steps", 2, *words, *ON_DISK)
        assert torch.equal(found, wanted)
        assert f"in {tmp_path / 'scratch'}" in told.replace("\\\\", "\\")
    assert not list((tmp_path / "scratch").iterdir())


@pytest.mark.parametrize("family", names(extra=False))
@pytest.mark.parametrize("how", [(), ("--gradient_checkpointing", "--gradient_checkpointing_cpu_offload")], ids=str)
def test_a_training_takes_the_same_steps(family, how, tmp_path):
    part(family, "tiny").write_tiny_models(tmp_path / "models")
    losses = [
        [values["loss/current"] for values in values_of(family, tmp_path, name, *how, *words)]
        for name, words in (("streamed", STREAMED), ("disk", ON_DISK))
    ]
    assert losses[0] == losses[1]


def test_a_disk_that_is_full_is_one_clear_error(models, engine, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(mapped_files, "_reserve", full)
    words = (*models["wan"], *SMALL, *ON_DISK, "--fp8_scaled", "--save_path", tmp_path / "out")
    result = engine("generate", "wan", *words, "--job_dir", tmp_path / "job")
    assert result.status == 4 and "MUSUBI_SCRATCH" in result.err and "Traceback" not in result.err
    assert not list(Path(tmp_path / "scratch").iterdir())
    assert json.loads((tmp_path / "job" / "events.jsonl").read_text().splitlines()[-1])["kind"] == "disk"


LOADING = """
import sys, threading, time, torch
from engine.contract.cli import parse
from engine.tasks.denoiser import arrange_blocks, load_dit

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) >> 10 for line in status if line.startswith("RssAnon"))

def watch():
    while not done:
        seen.append(anonymous())
        time.sleep(0.002)

path, weight_format, *words = sys.argv[1:]
cpu, done, seen = torch.device("cpu"), False, [anonymous()]
job = parse(["train", "wan", "--dit", path, "--dataset_config", "x", *words])
watcher = threading.Thread(target=watch)
watcher.start()
dit = load_dit(job, path, device=cpu, weight_format=weight_format, say=lambda event: None)
stream = arrange_blocks(job, dit, device=cpu)
done = True
watcher.join()
print(max(seen) - seen[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("weight_format", ["stored", "fp8_scaled"])
def test_main_memory_is_not_filled_while_loading(weight_format, tmp_path):
    """A model of 270 MiB. In fp8 it passes through main memory on a CPU, bit by bit; on a GPU it would not."""
    config = dataclasses.replace(wan.DIT_CONFIG, dim=512, ffn_dim=2048, num_layers=32, num_heads=4)
    dit = part("wan", "model").build(config, device="cpu", dtype=torch.bfloat16)
    for parameter in dit.parameters():
        parameter.data.normal_(std=0.02)
    write_weights(tmp_path / "dit.safetensors", dit.state_dict(), metadata={"head_dim": "128"})
    taken = {}
    for how in ((), ("--block_swap_from_disk",)):
        words = [str(tmp_path / "dit.safetensors"), weight_format, "--blocks_to_swap", "32", *how]
        child = subprocess.run([sys.executable, "-c", LOADING, *words], capture_output=True, text=True, cwd=ROOT)
        assert child.returncode == 0, child.stderr
        taken[bool(how)] = int(child.stdout)
    print(f"MiB of main memory while loading {weight_format}: {taken[False]}, from disk {taken[True]}")
    assert taken[True] < (60 if weight_format == "stored" else 200) < taken[False]


@pytest.mark.parametrize("words", [("train", "wan", "--dataset_config", "x"), ("generate", "wan")])
def test_it_needs_streamed_blocks(words):
    for more in ((), ("--memory", "off")):
        with pytest.raises(OptionError, match="none is streamed") as caught:
            parse([*words, "--dit", "x", "--block_swap_from_disk", *more])
        assert "--blocks_to_swap" in caught.value.hint and "--memory auto" in caught.value.hint


def test_how_many_may_be_left_to_the_plan_and_then_there_may_be_none(made):
    job = parse(["train", "wan", "--dataset_config", "x", "--dit", "x", "--block_swap_from_disk", "--memory", "auto"])
    assert job[Memory].block_swap_from_disk and not job[Memory].streams_from_disk
    wanted, _ = made("wan", "--infer_steps", 1)
    found, told = made("wan", "--infer_steps", 1, "--block_swap_from_disk", "--memory", "auto")
    assert torch.equal(found, wanted) and "wait on disk" not in told, "nothing is planned for a CPU"
