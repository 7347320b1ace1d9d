"""Every stage of Pocket HunyuanVideo and Pocket FramePack in little, and the ordinary commands on what they leave."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from engine.families.framepack.pocket import WINDOW
from zoo import pocket_framepack, pocket_hunyuan, pocket_hunyuan_vae, train_dit
from zoo.data import held_out_clips
from zoo.hunyuan import main
from zoo.hunyuan_guided import UNGUIDED_NAME, strength
from zoo.showing import MADE_NAME

ROOT = Path(__file__).resolve().parents[2]
MODELS = {
    "vae": pocket_hunyuan_vae.VAE_NAME,
    "text_encoder1": pocket_hunyuan.LLAMA_NAME,
    "text_encoder2": pocket_hunyuan.CLIP_NAME,
}


def run(stage: str, out: Path, *words: str) -> None:
    small = f"{stage} --out {out} --copy_to {out}/copies --device cpu --sizes small --clips 6 --vae_clips 6 --workers 2"
    small += " --picture 32 --frames 17 --vae_batch 1 --dit_batch 2 --no_compile --judged 2 --steps 2"
    main([*small.split(), *words])


def generate(family: str, folder: Path, *words: str) -> None:
    given = [word for name, file in MODELS.items() for word in (f"--{name}", str(folder / file))]
    line = f"generate {family} --prompt red --video_size 32 32 --infer_steps 2 --save_path {folder}/{family} --seed 1"
    command = [sys.executable, "-m", "engine", *line.split(), *given, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(list((folder / family).glob("*.mp4"))) == 1


@pytest.mark.slow
def test_all_stages_and_what_they_leave(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("vae", tmp_path, "--vae_minutes", "0.02")
    run("dit", tmp_path, "--dit_minutes", "0.01")
    first = torch.load(tmp_path / train_dit.state_name("t2v"), weights_only=True)
    run("dit", tmp_path, "--dit_minutes", "0.03")
    second = torch.load(tmp_path / train_dit.state_name("t2v"), weights_only=True)
    assert second["steps"] > first["steps"]
    assert f"goes on from step {first['steps']}" in capsys.readouterr().out
    run("guided", tmp_path, "--dit_minutes", "0.01")
    run("i2v", tmp_path, "--i2v_minutes", "0.01")
    run("decoder", tmp_path, "--decoder_minutes", "0.01")
    run("show", tmp_path)
    run("score", tmp_path)
    said = capsys.readouterr().out
    assert "t2v_embedded  2 held-out captions" in said and "i2v_4  2 held-out captions" in said
    own = {pocket_hunyuan.DIT_NAME, pocket_framepack.FRAMEPACK_NAME, pocket_framepack.SIGLIP_NAME, MADE_NAME}
    pictures = {"vae.png", "t2v.png", "i2v.png", "tokenizer_2"}
    assert {path.name for path in (tmp_path / "copies").iterdir()} == {*MODELS.values(), *own, *pictures}
    assert (tmp_path / UNGUIDED_NAME).exists()

    copies = tmp_path / "copies"
    dit = str(copies / pocket_hunyuan.DIT_NAME)
    generate("hunyuan-video", copies, "--dit", dit, "--video_length", "17", "--flow_shift", "3")
    clips, _ = held_out_clips(1, size=32, frames=1)
    Image.fromarray(clips[0, 0]).save(tmp_path / "first.png")
    generate(
        "framepack", copies, "--dit", str(copies / pocket_framepack.FRAMEPACK_NAME),
        "--image_encoder", str(copies / pocket_framepack.SIGLIP_NAME), "--image_path", str(tmp_path / "first.png"),
        "--latent_window_size", str(WINDOW), "--video_sections", "2",
    )  # fmt: skip


def test_embedded_guidance_begins_with_none() -> None:
    assert strength(torch.tensor([1.0, 6.0])).tolist() == [1.0, 4.0]


def test_a_bare_gpu_machine_can_train() -> None:
    """Such machines have neither PyAV nor OpenCV nor ftfy."""
    lacking = ("av", "cv2", "ftfy", "rich", "tomli_w", "diffusers", "accelerate")
    program = f"import sys; sys.modules.update(dict.fromkeys({lacking})); import zoo.hunyuan"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
