"""The recipe as it is run: clips drawn by processes, both trainings, going on after an interruption, files."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.families.wan import vae as wan_vae
from engine.parts.weights import open_weights
from zoo import data, optimizers, pace, pocket_wan, scenes, shelf, train_vae
from zoo.plan import read
from zoo.recipe import Workshop
from zoo.showing import MADE_NAME

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


def run(stage: str, out: Path, *more: str) -> None:
    """A stage as it is run, small and on the CPU."""
    words = (
        f"{stage} --out {out} --device cpu --sizes small --clips 6 --vae_clips 6 --workers 2 --picture 32 --frames 5"
    )
    words += " --vae_batch 1 --dit_batch 2 --no_compile --judged 2 --steps 2 --guidance 1,4"
    words += " --vae_minutes 0.01 --dit_minutes 0.01 --i2v_minutes 0.01 --decoder_minutes 0.01"
    getattr(Workshop(read([*words.split(), *more])), stage)()


@pytest.mark.slow
def test_all_stages_and_going_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, copies, state = tmp_path / "out", tmp_path / "copies", tmp_path / "out" / "t2v_state.pt"
    for stage in ("vae", "dit", "i2v", "show"):
        run(stage, out, "--copy_to", str(copies))
    files = {pocket_wan.VAE_NAME, pocket_wan.TEXT_NAME, pocket_wan.DIT_NAME, pocket_wan.I2V_NAME}
    assert {path.name for path in copies.iterdir()} == files | {MADE_NAME, "vae.png", "t2v.png", "i2v.png"}
    made = open_weights(out / MADE_NAME, role="--out")
    assert {name: shape[0] for name, shape in made.shapes.items()} == dict.fromkeys(
        ("t2v_1", "t2v_4", "i2v_1", "i2v_4"), 2
    )
    first = torch.load(state, weights_only=True)
    encoded = (out / "latents_t2v_0_of_1.pt").stat().st_mtime_ns
    run("dit", out, "--dit_minutes", "0.03")
    second = torch.load(state, weights_only=True)
    assert second["steps"] > first["steps"] and second["spent_s"] > first["spent_s"]
    assert (out / "latents_t2v_0_of_1.pt").stat().st_mtime_ns == encoded, "clips were encoded a second time"
    assert f"goes on from step {first['steps']}" in capsys.readouterr().out


@pytest.mark.slow
def test_what_others_rely_on_stays(tmp_path: Path) -> None:
    out, further = tmp_path / "out", tmp_path / "further"
    run("vae", out)
    before = wan_vae.load(out / pocket_wan.VAE_NAME, device="cpu", dtype=torch.float32)
    run("decoder", out)
    after = wan_vae.load(out / pocket_wan.VAE_NAME, device="cpu", dtype=torch.float32)
    assert (after.latent_mean, after.latent_std) == (before.latent_mean, before.latent_std)
    changed = {
        name.split(".")[0]
        for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True)
        if not torch.equal(old, new)
    }
    assert changed == {"decoder", "conv2"}
    run("dit", out)
    run("dit", further, "--start_from", str(out), "--text_frozen")
    texts = [(folder / pocket_wan.TEXT_NAME).read_bytes() for folder in (out, further)]
    assert texts[0] == texts[1], "image-to-video would have got other texts"
    assert (out / pocket_wan.DIT_NAME).read_bytes() != (further / pocket_wan.DIT_NAME).read_bytes()


def test_muon_goes_equally_far_in_all_directions() -> None:
    torch.manual_seed(0)
    for shape in ((3, 8, 24), (2, 24, 8)):
        values = torch.linalg.svdvals(optimizers.orthogonal(torch.randn(shape) * 1e-3))
        assert values.min() > 0.6 and values.max() < 1.3
    weight = torch.nn.Parameter(torch.zeros(8, 2, 3, 3))
    muon = optimizers.Muon([weight], lr=0.01)
    weight.grad = torch.randn(8, 2, 3, 3)
    muon.step()
    assert 0.1 < float(weight.detach().square().mean().sqrt()) / 0.01 < 0.3, (
        "an Adam step is 0.2 of the rate an element"
    )


def test_a_shelf_holds_what_is_drawn_and_turns_it() -> None:
    with data.Clips(4, split="train", size=32, frames=5, workers=1) as clips:
        clips.wait_for(4, say=lambda line: None)
        found = shelf.Shelf(clips, torch.device("cpu"))
        found.fill()
        picked = found.draw(64, generator=torch.Generator().manual_seed(0))
    turns = [axes for count in range(4) for axes in itertools.combinations((0, 1, 2), count)]
    ways = {np.flip(clip, axes).tobytes() for clip in clips.frames_NFHWC for axes in turns}
    assert {clip.numpy().tobytes() for clip in picked} <= ways
    assert len({clip.numpy().tobytes() for clip in picked}) > 8


@pytest.mark.slow
def test_processes_that_train_together_stay_alike(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(_TOGETHER)
    line = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_addr", "127.0.0.1"]
    line += ["--master_port", "29519", str(script), str(tmp_path)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    one, two = (torch.load(tmp_path / f"{number}.pt", weights_only=True) for number in range(2))
    assert one["steps"] == two["steps"] > 0
    torch.testing.assert_close(one["weight"], two["weight"], rtol=0, atol=0)
    torch.testing.assert_close(one["gradient"], torch.tensor([[1.5, 3.0]]))


_TOGETHER = """
import sys, time, torch
sys.path.insert(0, ".")
from zoo.optimizers import Optimizers
from zoo.pace import Pace
from zoo.together import Together
together = Together()
torch.manual_seed(0)
network = torch.nn.Linear(2, 1, bias=False)
steps = Optimizers(network, by_muon=lambda name, weight: False, weight_decay=0.0)
pace = Pace("test", 0.01, spent_s=0.1 * together.number, agree=together.agree)
for step in pace.running():
    network.weight.grad = torch.tensor([[1.0, 2.0]]) * (together.number + 1)
    together.average_gradients(steps.weights)
    gradient = network.weight.grad.clone()
    steps.step(pace.rate(0.1, warm_up_steps=2))
    time.sleep(0.01)
found = {"steps": pace.steps, "weight": network.weight.data, "gradient": gradient}
torch.save(found, f"{sys.argv[1]}/{together.number}.pt")
together.part()
"""


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
