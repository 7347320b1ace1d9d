"""Whether a LoRA learns a concept on the pocket model, by the ordinary commands: cache, train, generate; then judge.

    python -m zoo.try_lora --models DIR --concept zigzag --out DIR

Eight clips of the concept are trained on. Three sets of clips are generated from the same seeds: prompts with the
concept's word with the LoRA, prompts without it with the LoRA, and the latter with the base model alone. The first
should show the concept, the second should not, and be as true to their prompts as the third.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.contract.files import write_text
from engine.media.video import read_frames
from engine.media.writing import write_video

from . import scenes
from .captions import read_caption
from .data import HELD_OUT_SEED
from .facts import CONCEPTS
from .generating import GUIDANCE, SHIFT, STEPS, draw_clips
from .judge import judge, shares, shows_concept
from .pace import say
from .pocket_wan import DIT_NAME, FRAMES, SIZE, TEXT_NAME, VAE_NAME

FPS = 16
_TASK, _UNSEEN_SEED, _SHOWN = "t2v-1.3B", 1 << 20, 8
_DATASET = """\
[general]
resolution = [{size}, {size}]
caption_extension = ".txt"
batch_size = 4

[[datasets]]
video_directory = "{clips}"
cache_directory = "{cache}"
target_frames = [{frames}]
frame_extraction = "head"
"""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A command line of this file."""

    models: Path
    out: Path
    concept: str
    clips: int
    seeds: int
    steps: int
    rank: int
    rate: float


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m zoo.try_lora", description="Teach the pocket model a concept.")
    parser.add_argument("--models", type=Path, required=True, help="folder with the pocket files")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--concept", choices=CONCEPTS, required=True)
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=20, help="clips to generate for each of the three sets")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1e-3)
    try_lora(Trial(**vars(parser.parse_args(words))))


def try_lora(trial: Trial) -> dict[str, dict[str, float]]:
    """Run everything, write `report.json` and a sheet of pictures; the figures of each set, shares 0..1."""
    trial.out.mkdir(parents=True, exist_ok=True)
    write_dataset(trial)
    begun = time.monotonic()
    train(trial)
    report: dict[str, dict[str, float]] = {"seconds": {"caching and training": time.monotonic() - begun}}
    lora = trial.out / "lora" / "concept.safetensors"
    with_word = [_concept_caption(trial.concept, _UNSEEN_SEED + n) for n in range(trial.seeds)]
    without = [_plain_caption(HELD_OUT_SEED + n) for n in range(trial.seeds)]
    rows = []
    for name, prompts, loras in (("word", with_word, [lora]), ("no word", without, [lora]), ("base", without, [])):
        clips = generate(trial, name.replace(" ", "_"), prompts, loras)
        report[name] = figures(trial.concept, clips, prompts)
        rows += [(f"{name}\n{prompt}", clip) for prompt, clip in zip(prompts[:_SHOWN], clips, strict=False)]
        say(f"{name:8} " + ", ".join(f"{fact} {share:.0%}" for fact, share in report[name].items()))
    write_text(trial.out / "report.json", json.dumps(report, indent=2) + "\n")
    draw_clips(rows, trial.out / "clips.png", title=f"LoRA: {trial.concept}")
    return report


def write_dataset(trial: Trial) -> None:
    """The concept's clips with captions, and the dataset file."""
    folder = trial.out / "clips"
    folder.mkdir(exist_ok=True)
    for seed in range(trial.clips):
        scene = scenes.concept_scene(trial.concept, seed)
        path = folder / f"{trial.concept}_{seed}.mp4"
        write_video(path, iter(scenes.render(scene)), fps=FPS)
        write_text(path.with_suffix(".txt"), scenes.caption(scene, seed=seed) + "\n")
    places = {"clips": folder.resolve().as_posix(), "cache": (trial.out / "cache").resolve().as_posix()}
    write_text(trial.out / "dataset.toml", _DATASET.format(size=SIZE, frames=FRAMES, **places))


def train(trial: Trial) -> None:
    """Both caches and the LoRA."""
    dataset = ["--dataset_config", trial.out / "dataset.toml"]
    run("cache-latents", "wan", *dataset, "--vae", trial.models / VAE_NAME)
    run("cache-text", "wan", *dataset, "--t5", trial.models / TEXT_NAME)
    run(
        "train", "wan", *dataset, "--dit", trial.models / DIT_NAME, "--task", _TASK, "--fresh", "--seed", 1,
        "--max_train_steps", trial.steps, "--learning_rate", trial.rate, "--mixed_precision", "no",
        "--network_dim", trial.rank, "--network_alpha", trial.rank,
        "--timestep_sampling", "shift", "--discrete_flow_shift", SHIFT,
        "--output_dir", trial.out / "lora", "--output_name", "concept",
    )  # fmt: skip


def generate(trial: Trial, name: str, prompts: Sequence[str], loras: Sequence[Path]) -> list[np.ndarray]:
    """A clip for each prompt, in order, read back from the videos that the command wrote."""
    folder = trial.out / name
    lines = [f"{prompt} --d {number}" for number, prompt in enumerate(prompts)]
    write_text(trial.out / f"{name}.txt", "\n".join(lines) + "\n")
    before = set(folder.glob("*.mp4"))
    run(
        "generate", "wan", "--task", _TASK, "--dit", trial.models / DIT_NAME, "--vae", trial.models / VAE_NAME,
        "--t5", trial.models / TEXT_NAME, "--from_file", trial.out / f"{name}.txt", "--negative_prompt", "",
        "--video_size", SIZE, SIZE, "--video_length", FRAMES, "--infer_steps", STEPS, "--flow_shift", SHIFT,
        "--guidance_scale", GUIDANCE, "--save_path", folder, "--cpu_noise",
        *(["--lora_weight", *loras] if loras else []),
    )  # fmt: skip
    made = sorted(set(folder.glob("*.mp4")) - before, key=lambda path: path.stat().st_mtime_ns)
    return [np.stack(list(read_frames(path))) for path in made]


def run(*words: object) -> None:
    """One engine command, as a person runs it."""
    subprocess.run([sys.executable, "-m", "engine", *map(str, words)], check=True)


def figures(concept: str, clips: Sequence[np.ndarray], prompts: Sequence[str]) -> dict[str, float]:
    """The share of clips with the concept, and the shares that show what their prompts say."""
    verdicts = [judge(clip, read_caption(prompt)) for clip, prompt in zip(clips, prompts, strict=True)]
    return {"concept": sum(shows_concept(concept, clip) for clip in clips) / len(clips), **shares(verdicts)}


def _concept_caption(concept: str, seed: int) -> str:
    return scenes.caption(scenes.concept_scene(concept, seed), seed=seed)


def _plain_caption(seed: int) -> str:
    return scenes.caption(scenes.random_scene(seed, split="held_out"), seed=seed)


if __name__ == "__main__":
    main()
