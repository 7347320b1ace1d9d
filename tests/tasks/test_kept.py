"""Models that stay for the next generation: the same video as ever, and nothing loaded twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from engine.contract import cli
from engine.contract.events import Control, Done, Event, Failed, Finished, Stage, read
from engine.families.wan import tiny as wan
from engine.tasks import kept as keeping
from engine.tasks.kept import Kept, Key, Stamp
from engine.tasks.studio import Studio
from tests.tasks.conftest import FAMILIES
from tests.tasks.test_generate import write_lora

PACK = Path(__file__).parents[2]
SMALL = ("--video_size", 48, 64, "--infer_steps", 2, "--device", "cpu", "--output_type", "latent")
LOADED = "Loading the "


class Server:
    """The engine's own `serve`."""

    def __init__(self, home: Path):
        self.home, self.count = home, 0
        self.process = subprocess.Popen(
            [sys.executable, "-m", "engine", "serve"], cwd=PACK, text=True, encoding="utf-8",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def generate(self, family: str, *words: object) -> tuple[torch.Tensor, list[str]]:
        """The latents of the one video, and what was loaded for it."""
        self.count += 1
        folder = self.home / str(self.count)
        said = self.run(folder, "generate", family, *words, "--save_path", folder / "out")
        assert isinstance(said[-2], Done), said[-2]
        (path,) = (folder / "out").glob("*_latent.safetensors")
        stages = [event.name for event in said if isinstance(event, Stage)]
        return load_file(path)["latent"], [name.removeprefix(LOADED) for name in stages if name.startswith(LOADED)]

    def run(self, folder: Path, *words: object) -> list[Event]:
        folder.mkdir()
        job = cli.parse([str(word) for word in words])
        assert job is not None
        (folder / "job.toml").write_text(job.to_toml(), encoding="utf-8")
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"command": "run", "job": str(folder)}) + "\n")
        self.process.stdin.flush()
        said: list[Event] = []
        while not said or not isinstance(said[-1], Finished):
            said.append(read(self.process.stdout.readline()))
        return said


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("jobs"))
    yield started
    started.process.communicate(timeout=30)
    assert started.process.returncode == 0


def alone(engine: Any, out: Path, *words: object) -> torch.Tensor:
    """The latents of the same command line in the ordinary way."""
    result = engine("generate", *words, "--save_path", out)
    assert result.status == 0, result.err
    (path,) = out.glob("*_latent.safetensors")
    return load_file(path)["latent"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_and_the_second_video_are_those_of_the_command_line(family, models, engine, server, tmp_path):
    words, other = (*models[family], *SMALL, "--prompt", "a bar", "--seed", 1), ("--prompt", "a dot", "--seed", 2)
    wanted, wanted_other = (
        alone(engine, tmp_path / "1", family, *words), alone(engine, tmp_path / "2", family, *words, *other)
    )  # fmt: skip
    first, loaded = server.generate(family, *words)
    assert first.equal(wanted) and "DiT" in loaded
    second, loaded = server.generate(family, *words)
    assert second.equal(wanted) and not loaded
    third, loaded = server.generate(family, *words, *other)
    assert third.equal(wanted_other) and not wanted_other.equal(wanted) and not loaded


@pytest.mark.parametrize(
    "more",
    [
        ("--blocks_to_swap", 1),
        ("--blocks_to_swap", 2, "--block_swap_from_disk"),
        ("--fp8_scaled",),
        ("--compile", "--compile_backend", "eager"),
    ],
)
def test_however_the_dit_is_arranged(more, models, engine, server, tmp_path):
    width = wan.DIT_CONFIG.dim
    lora = write_lora(tmp_path / "lora.safetensors", {"blocks_0_self_attn_q": (width, width)})
    words = (*models["wan"], *SMALL, "--prompt", "a bar", "--seed", 1, "--lora_weight", lora, *more)
    wanted = alone(engine, tmp_path / "out", "wan", *words)
    for expected in (["DiT"], []):
        made, loaded = server.generate("wan", *words)
        assert made.equal(wanted)
        assert [name for name in loaded if name == "DiT"] == expected


def test_what_decides_the_dit_loads_it_anew(models, engine, server, tmp_path):
    width = wan.DIT_CONFIG.dim
    lora = write_lora(tmp_path / "lora.safetensors", {"blocks_0_self_attn_q": (width, width)})
    words = (*models["wan"], *SMALL, "--prompt", "a bar", "--seed", 1)
    with_lora = (*words, "--lora_weight", lora)
    plain, _ = server.generate("wan", *words)
    full, loaded = server.generate("wan", *with_lora)
    assert "DiT" in loaded and not full.equal(plain)
    half, loaded = server.generate("wan", *with_lora, "--lora_multiplier", 0.5)
    assert "DiT" in loaded and not half.equal(full)
    _, loaded = server.generate("wan", *with_lora, "--lora_multiplier", 0.5, "--infer_steps", 1, "--guidance_scale", 2)
    assert not loaded
    write_lora(lora, {"blocks_1_self_attn_q": (width, width)})  # another file of this name and size
    half, loaded = server.generate("wan", *with_lora, "--lora_multiplier", 0.5)
    assert "DiT" in loaded
    assert half.equal(alone(engine, tmp_path / "out", "wan", *with_lora, "--lora_multiplier", 0.5))
    _, loaded = server.generate("wan", *with_lora, "--lora_multiplier", 0.5, "--attn_mode", "math")
    assert "DiT" in loaded


def test_another_task_keeps_nothing_and_a_mistake_costs_nothing(models, server):
    words = (*models["wan"], *SMALL, "--prompt", "a bar", "--seed", 1)
    server.generate("wan", *words)
    assert isinstance(server.run(server.home / "info", "doctor")[-2], Done)
    _, loaded = server.generate("wan", *words)
    assert "DiT" in loaded
    folder = server.home / "failed"
    missing = ("--lora_weight", folder / "missing.safetensors")
    failed = server.run(folder, "generate", "wan", *words, *missing, "--save_path", folder)
    assert isinstance(failed[-2], Failed) and failed[-1] == Finished(job=str(folder), status=2)
    _, loaded = server.generate("wan", *words)
    assert not loaded


def test_all_that_a_dit_is_loaded_by_is_in_its_key(models, tmp_path, monkeypatch):
    """Whoever has the loading look at another section of the job has to put it into `Experts.key`."""
    lora = write_lora(tmp_path / "lora.safetensors", {"blocks_0_self_attn_q": (wan.DIT_CONFIG.dim, wan.DIT_CONFIG.dim)})
    words = ("generate", "wan", *models["wan"], *SMALL, "--prompt", "x", "--save_path", tmp_path, "--lora_weight", lora)
    job = cli.parse([str(word) for word in words])
    assert job is not None
    read_by: dict[str, set[str]] = {"key": set(), "load": set()}
    inner = type(job).__getitem__

    def noted(self: Any, section: Any) -> Any:
        read_by[now].add(section.__name__)
        return inner(self, section)

    monkeypatch.setattr(type(job), "__getitem__", noted)
    now = "key"
    studio = Studio(job, lambda event: None, Control(), kept=Kept())
    studio.experts.key()
    now = "load"
    assert studio.dit is not None
    assert read_by["load"] <= read_by["key"]


def test_what_has_no_room_in_main_memory_is_not_kept(monkeypatch):
    said: list[Event] = []
    free = 10 * keeping.SPARE
    monkeypatch.setattr(keeping, "main_memory", lambda: free)
    kept, model = Kept(), torch.nn.Linear(8, 8)
    small, large = Key("small"), Key("large", (Stamp("file", 10 * keeping.SPARE, 0),))
    kept.put("vae", small, model, said.append)
    assert kept.host_bytes == 4 * 72
    assert kept.take("vae", small, said.append) is model
    assert kept.take("vae", small, said.append) is None, "it is its user's now"
    kept.put("vae", small, model, said.append)
    assert kept.take("dit", large, said.append) is None
    assert kept.host_bytes == 0, "what is about to be loaded needs the room"
    free = keeping.SPARE - 1
    kept.put("vae", small, model, said.append)
    assert kept.host_bytes == 0


def test_a_model_of_another_key_goes(monkeypatch):
    monkeypatch.setattr(keeping, "main_memory", lambda: 10 * keeping.SPARE)
    kept = Kept()
    kept.put("vae", Key("one"), torch.nn.Linear(2, 2), lambda event: None)
    assert kept.take("vae", Key("two"), lambda event: None) is None
    assert kept.host_bytes == 0
