"""The recipe as it is run: clips drawn by processes, both trainings, going on after an interruption, files."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from zoo import data, pace, pocket_wan, scenes, train_dit, train_vae
from zoo.__main__ import read
from zoo.recipe import LATENTS_NAME, MADE_NAME, Workshop

ROOT = Path(__file__).resolve().parents[2]


def test_words_of_captions_are_one_token_each() -> None:
    _, tokenizer = data.own_tokenizer()
    assert [word for word in scenes.VOCABULARY if len(tokenizer.ids(word)) != 2] == []
    assert len(tokenizer.ids("sks")) == 5, "a word that nobody has heard of is spelled"
    assert 2 in tokenizer.ids("色"), "signs of other scripts are unknown"


def test_processes_draw_what_one_would() -> None:
    drawn = []
    for workers in (1, 3):
        with data.Clips(7, split="train", size=32, frames=5, workers=workers) as clips:
            clips.wait_for(7, say=lambda line: None)
            drawn.append((clips.frames_NFHWC.copy(), clips.ids_NKL.copy()))
    for one, three in zip(*drawn, strict=True):
        assert np.array_equal(one, three)
    scene = scenes.random_scene(4, split="train", size=32, frames=5)
    assert np.array_equal(drawn[0][0][4], scenes.render(scene, size=32, frames=5))


def test_a_schedule_ends_with_the_time() -> None:
    clock = pace.Pace("test", 1.0, spent_s=30.0, steps=500)
    assert 0.45 < clock.rate(1.0, warm_up_steps=100) < 0.55
    assert list(pace.Pace("test", 1.0, spent_s=60.0).running()) == []


def test_an_average_begins_with_what_is_there() -> None:
    weight = torch.zeros(3)
    average = pace.Average([weight], decay=0.999)
    weight += 1.0
    average.follow(0)
    assert torch.allclose(average.values[0], torch.full((3,), 0.9))


@pytest.mark.slow
def test_all_stages_and_going_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, copies = tmp_path / "out", tmp_path / "copies"
    words = f"all --out {out} --copy_to {copies} --device cpu --sizes small --clips 6 --workers 2 --picture 32".split()
    words += "--frames 5 --vae_batch 2 --dit_batch 2 --no_compile --judged 2".split()
    plan = read([*words, "--vae_minutes", "0.02", "--dit_minutes", "0.01"])
    Workshop(plan).all()
    models = {pocket_wan.VAE_NAME, pocket_wan.TEXT_NAME, pocket_wan.DIT_NAME, MADE_NAME, "vae.png", "clips.png"}
    assert {path.name for path in copies.iterdir()} == models
    first = torch.load(out / train_dit.STATE_NAME, weights_only=True)
    encoded = (out / LATENTS_NAME).stat().st_mtime_ns
    Workshop(dataclasses.replace(plan, dit_minutes=0.03, judged=0)).all()
    second = torch.load(out / train_dit.STATE_NAME, weights_only=True)
    assert second["steps"] > first["steps"] and second["spent_s"] > first["spent_s"]
    assert (out / LATENTS_NAME).stat().st_mtime_ns == encoded, "clips were encoded a second time"
    assert f"goes on from step {first['steps']}" in capsys.readouterr().out


def test_finished_files_can_be_started_from(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = pocket_wan.new_vae(pocket_wan.SMALL)
    pocket_wan.write_vae(tmp_path / pocket_wan.VAE_NAME, vae.state_dict(), mean=[1.0] * 16, std=[2.0] * 16)
    again = pocket_wan.read_vae(tmp_path / pocket_wan.VAE_NAME)
    assert again.latent_mean == (0.0,) * 16, "training measures the tables anew"
    torch.testing.assert_close(again.state_dict(), vae.state_dict(), rtol=1e-3, atol=1e-4)
    assert all(weight.requires_grad for weight in again.parameters())


def test_psnr_is_that_of_the_engines_own_decoding() -> None:
    torch.manual_seed(0)
    vae = pocket_wan.new_vae(pocket_wan.SMALL)
    clips, _ = data.held_out_clips(2, size=32, frames=5)
    assert 0.0 < train_vae.measure(vae, clips) < 15.0


def test_a_bare_gpu_machine_can_train() -> None:
    """Only what the README names may be needed: such machines have neither PyAV nor OpenCV nor ftfy."""
    lacking = ("av", "cv2", "ftfy", "rich", "tomli_w", "diffusers", "accelerate")
    program = f"import sys; sys.modules.update(dict.fromkeys({lacking})); import zoo.__main__, zoo.recipe"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
