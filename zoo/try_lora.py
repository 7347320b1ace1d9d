"""Whether a LoRA learns a concept on the pocket model, by the ordinary commands: cache, train, generate; then judge.

    python -m zoo.try_lora --models DIR --concept zigzag --out DIR

Eight clips of the concept are trained on, whose captions all use one word for it, beside ordinary clips, some of them
without captions: those keep what the base model knows, and what guidance guides away from. The clips are such as a
person would choose: one big thing, simple motions, a quiet background. Four sets of clips are generated:

    word      what the clips show, before other backgrounds and in other words, with the LoRA: the concept should show
    new       colours and motions together that no clip shows, with the LoRA: how far it reaches
    no word   held-out ordinary prompts, with the LoRA: no concept, and as true to the prompts as
    base      the same with the base model alone

Then one prompt is generated in the ways that must give the same video.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch

from engine.contract.files import write_text
from engine.media.latents import load_latent
from engine.media.video import read_frames
from engine.media.writing import write_video

from . import scenes
from .arranging import elsewhere
from .captions import read_caption
from .data import HELD_OUT_SEED
from .dice import Dice
from .facts import CONCEPTS, NEW_MOTIONS
from .generating import SHIFT, STEPS, draw_clips
from .judge import judge, shares, shows_concept
from .pace import say
from .pocket_wan import DIT_NAME, FRAMES, SIZE, TEXT_NAME, VAE_NAME

FPS = 16
WORDS = {"striped_hexagon": "striped", "zigzag": "in a zigzag", "pixel_art": "in pixel art style"}
"""The wording of each concept that all captions use, as a person would: other words are other tokens."""
_QUIET = ("plain", "gradient")  # backgrounds
_SIMPLE = ("left", "right", "up", "down", "still")
_TASK, _UNSEEN_SEED, _ORDINARY_SEED, _SHOWN = "t2v-1.3B", 1 << 20, 1 << 21, 8
_ELSEWHERE_STREAM = 6
_WORDLESS = 3  # of so many ordinary clips one has no caption
_POOL, _WORDINGS = 200, 1000  # scenes that the varied ones are picked from; wordings tried until one has the word
_DATASET = """\
[general]
resolution = [{size}, {size}]
caption_extension = ".txt"
batch_size = 4

"""
_FOLDER = """
[[datasets]]
video_directory = "{clips}"
cache_directory = "{cache}"
target_frames = [{frames}]
frame_extraction = "head"
num_repeats = {repeats}
preserve_prior = {prior}
"""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A command line of this file."""

    models: Path
    out: Path
    concept: str
    clips: int
    ordinary: int
    repeats: int
    seeds: int
    steps: int
    rank: int
    rate: float
    guidance: float
    shift: float
    prior: float


def main(words: Sequence[str] | None = None) -> None:
    try_lora(told(words))


def told(words: Sequence[str] | None = None) -> Trial:
    """What a command line says, and the settings that were found best for what it leaves out."""
    parser = argparse.ArgumentParser("python -m zoo.try_lora", description="Teach the pocket model a concept.")
    parser.add_argument("--models", type=Path, required=True, help="folder with the pocket files")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--concept", choices=CONCEPTS, required=True)
    parser.add_argument("--clips", type=int, default=8, help="of the concept")
    parser.add_argument("--ordinary", type=int, default=48, help="clips without the concept to train on as well")
    parser.add_argument("--repeats", type=int, default=6, help="of the concept's clips in an epoch")
    parser.add_argument("--seeds", type=int, default=20, help="clips to generate for each set")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--guidance", type=float, default=3.0, help="to generate with")
    parser.add_argument("--shift", type=float, default=4.0, help="of the noise levels that are trained")
    parser.add_argument("--prior", type=float, default=2.0, help="--prior_loss_weight of ordinary clips; 0: plain loss")
    return Trial(**vars(parser.parse_args(words)))


def try_lora(trial: Trial) -> dict[str, dict[str, float]]:
    """Run everything, write `report.json` and a sheet of pictures; the figures of each set, shares 0..1."""
    trial.out.mkdir(parents=True, exist_ok=True)
    write_dataset(trial)
    near, new = near_captions(trial), new_captions(trial.concept, trial.seeds)
    plain = plain_captions(trial.seeds)
    report: dict[str, dict[str, float]] = {"seconds": train(trial, near[0])}
    lora = trial.out / "lora" / "concept.safetensors"
    rows = []
    for name, prompts, loras in (
        ("word", near, [lora]), ("new", new, [lora]), ("no word", plain, [lora]), ("base", plain, []),
    ):  # fmt: skip
        clips = generate(trial, name.replace(" ", "_"), prompts, loras)
        report[name] = figures(trial.concept, clips, prompts)
        rows += [(f"{name}\n{prompt}", clip) for prompt, clip in zip(prompts[:_SHOWN], clips, strict=False)]
        say(f"{name:8} " + ", ".join(f"{fact} {share:.0%}" for fact, share in report[name].items()))
    report["same"] = compare_ways(trial, lora, near[0])
    say("same     " + ", ".join(f"{name} {figure:.4g}" for name, figure in report["same"].items()))
    write_text(trial.out / "report.json", json.dumps(report, indent=2) + "\n")
    draw_clips(rows, trial.out / "clips.png", title=f"LoRA: {trial.concept}")
    return report


def varied_scenes(concept: str, number: int, *, first_seed: int = 0) -> list[scenes.Scene]:
    """Simple scenes of a concept, as varied as there are."""
    return _varied(simple_scenes(concept, first_seed), number)


def _varied(pool: Iterator[scenes.Scene], number: int) -> list[scenes.Scene]:
    """Scenes that repeat colours, then shapes, textures and motions as little as they can."""
    left = list(islice(pool, _POOL))
    used: Counter[tuple[str, object]] = Counter()
    picked = []
    for _ in range(number):
        best = min(left, key=lambda scene: (used[_looks(scene)[0]], sum(used[look] for look in _looks(scene))))
        left.remove(best)
        used.update(_looks(best))
        picked.append(best)
    return picked


def simple_scenes(concept: str, first_seed: int) -> Iterator[scenes.Scene]:
    """Scenes of a concept with a still camera and a quiet background, and a big thing that moves in a simple way where
    the motion is not the concept."""
    for seed in count(first_seed):
        scene = scenes.concept_scene(concept, seed)
        quiet = scene.camera == "still" and scene.background.kind in _QUIET
        simple = scene.subject.motion in (*_SIMPLE, *NEW_MOTIONS) and (
            scene.subject.size == "big" or concept == "zigzag"
        )
        if quiet and simple:
            yield scene


def _looks(scene: scenes.Scene) -> list[tuple[str, object]]:
    names = ("colour", "shape", "texture", "motion", "sense")
    return [(name, getattr(scene.subject, name)) for name in names]


def write_dataset(trial: Trial) -> None:
    """The clips with captions, and the dataset file."""
    concept = [
        (scene, _worded(trial.concept, scene, seed))
        for seed, scene in enumerate(varied_scenes(trial.concept, trial.clips))
    ]
    pool = (scenes.random_scene(seed, split="train") for seed in count(_ORDINARY_SEED))
    worded = trial.ordinary - trial.ordinary // _WORDLESS
    ordinary = [
        (scene, scenes.caption(scene, seed=_ORDINARY_SEED + number) if number < worded else "")
        for number, scene in enumerate(_varied(pool, trial.ordinary))
    ]
    text = _DATASET.format(size=SIZE)
    for name, examples, repeats in (("concept", concept, trial.repeats), ("ordinary", ordinary, 1)):
        prior = "true" if name == "ordinary" and trial.prior else "false"
        if examples:
            folder = trial.out / "clips" / name
            write_clips(folder, examples)
            clips, cache = (path.resolve().as_posix() for path in (folder, trial.out / "cache" / name))
            text += _FOLDER.format(clips=clips, cache=cache, frames=FRAMES, repeats=repeats, prior=prior)
    write_text(trial.out / "dataset.toml", text)


def write_clips(folder: Path, examples: Sequence[tuple[scenes.Scene, str]]) -> None:
    """A video of each scene, and its caption beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (scene, caption) in enumerate(examples):
        path = folder / f"{number:03}.mp4"
        write_video(path, iter(scenes.render(scene)), fps=FPS)
        write_text(path.with_suffix(".txt"), caption + "\n")


def train(trial: Trial, sample: str) -> dict[str, float]:
    """Both caches and the LoRA, with a sample of this prompt at the end; the seconds that they took."""
    dataset = ["--dataset_config", trial.out / "dataset.toml"]
    size = f"--w {SIZE} --h {SIZE} --f {FRAMES} --s {STEPS} --l {trial.guidance} --fs {SHIFT} --d 0"
    write_text(trial.out / "sample.txt", f"{sample} {size}\n")
    begun = time.monotonic()
    run("cache-latents", "wan", *dataset, "--vae", trial.models / VAE_NAME)
    run("cache-text", "wan", *dataset, "--t5", trial.models / TEXT_NAME)
    cached = time.monotonic()
    run(
        "train", "wan", *dataset, "--dit", trial.models / DIT_NAME, "--task", _TASK, "--fresh", "--seed", 1,
        "--max_train_steps", trial.steps, "--learning_rate", trial.rate, "--lr_scheduler", "cosine",
        "--mixed_precision", "no", "--network_dim", trial.rank, "--network_alpha", trial.rank,
        "--timestep_sampling", "shift", "--discrete_flow_shift", trial.shift, "--prior_loss_weight", trial.prior,
        "--vae", trial.models / VAE_NAME, "--t5", trial.models / TEXT_NAME,
        "--sample_prompts", trial.out / "sample.txt", "--sample_every_n_steps", trial.steps,
        "--output_dir", trial.out / "lora", "--output_name", "concept",
    )  # fmt: skip
    return {"caching": cached - begun, "training": time.monotonic() - cached}


def generate(trial: Trial, name: str, prompts: Sequence[str], loras: Sequence[Path]) -> list[np.ndarray]:
    """A clip for each prompt, in order, read back from the videos that the command wrote."""
    folder = trial.out / name
    lines = [f"{prompt} --d {number}" for number, prompt in enumerate(prompts)]
    write_text(trial.out / f"{name}.txt", "\n".join(lines) + "\n")
    before = set(folder.glob("*.mp4"))
    run(
        *_generation(trial, trial.models / DIT_NAME), "--from_file", trial.out / f"{name}.txt", "--save_path", folder,
        "--negative_prompt", "", *(["--lora_weight", *loras] if loras else []),
    )  # fmt: skip
    made = sorted(set(folder.glob("*.mp4")) - before, key=lambda path: path.stat().st_mtime_ns)
    return [np.stack(list(read_frames(path))) for path in made]


def _generation(trial: Trial, dit: Path) -> tuple[object, ...]:
    return (
        "generate", "wan", "--task", _TASK, "--dit", dit, "--vae", trial.models / VAE_NAME,
        "--t5", trial.models / TEXT_NAME, "--video_size", SIZE, SIZE, "--video_length", FRAMES,
        "--infer_steps", STEPS, "--flow_shift", SHIFT,
        "--guidance_scale", trial.guidance, "--cpu_noise",
    )  # fmt: skip


def compare_ways(trial: Trial, lora: Path, prompt: str) -> dict[str, float]:
    """How far the latents of one prompt and seed lie apart at most in what must be the same: 0 is bit for bit.

    `multiplier 0`: the LoRA at 0, and no LoRA. `merged`: a model from `lora merge`, and the LoRA given to `generate`.
    `unmerged`: the video of the training's own sample, whose LoRA is beside the weights, and of the merged model; the
    mean difference in levels of 255. The negative prompt is the family's own, as it is for the sample.
    """
    merged = trial.out / "merged.safetensors"
    run("lora", "merge", "--lora_weight", lora, "--dit", trial.models / DIT_NAME, "--save_merged_model", merged)
    base, with_lora = trial.models / DIT_NAME, ("--lora_weight", lora)
    ways = {
        "base": (base, ()),
        "zero": (base, (*with_lora, "--lora_multiplier", 0)),
        "given": (base, with_lora),
        "merged": (merged, ()),
    }
    latents, clips = {}, {}
    for name, (dit, more) in ways.items():
        folder = trial.out / "ways" / name
        run(
            *_generation(trial, dit), "--prompt", prompt, "--seed", 0, "--save_path", folder,
            "--output_type", "both", *more,
        )  # fmt: skip
        latents[name] = load_latent(_newest(folder, "*.safetensors"))[0]
        clips[name] = np.stack(list(read_frames(_newest(folder, "*.mp4"))))
    sample = np.stack(list(read_frames(_newest(trial.out / "lora" / "sample", "*.mp4"))))
    return {
        "multiplier 0": _furthest(latents["base"], latents["zero"]),
        "merged": _furthest(latents["given"], latents["merged"]),
        "unmerged": float(np.abs(sample.astype(np.float32) - clips["merged"]).mean()),
    }


def _newest(folder: Path, pattern: str) -> Path:
    return max(folder.glob(pattern), key=lambda path: path.stat().st_mtime_ns)


def _furthest(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.float() - other.float()).abs().max())


def run(*words: object) -> None:
    """One engine command, as a person runs it."""
    subprocess.run([sys.executable, "-m", "engine", *map(str, words)], check=True)


def figures(concept: str, clips: Sequence[np.ndarray], prompts: Sequence[str]) -> dict[str, float]:
    """The share of clips with the concept, and the shares that show what their prompts say."""
    verdicts = [judge(clip, read_caption(prompt)) for clip, prompt in zip(clips, prompts, strict=True)]
    return {"concept": sum(shows_concept(concept, clip) for clip in clips) / len(clips), **shares(verdicts)}


def near_captions(trial: Trial) -> list[str]:
    """What the clips show, one after the other, before another background and in another wording."""
    clips = varied_scenes(trial.concept, trial.clips)
    seeds = range(_UNSEEN_SEED, _UNSEEN_SEED + trial.seeds)
    scenes_ = [_elsewhere(clips[number % len(clips)], seed) for number, seed in enumerate(seeds)]
    return [_worded(trial.concept, scene, seed) for scene, seed in zip(scenes_, seeds, strict=True)]


def _elsewhere(scene: scenes.Scene, seed: int) -> scenes.Scene:
    dice = Dice(seed, stream=_ELSEWHERE_STREAM)
    return next(found for _ in count() if (found := elsewhere(scene, dice)).background.kind in _QUIET)


def new_captions(concept: str, number: int) -> list[str]:
    """Other scenes of the concept, as varied as the clips."""
    found = varied_scenes(concept, number, first_seed=_UNSEEN_SEED)
    return [_worded(concept, scene, _UNSEEN_SEED + index) for index, scene in enumerate(found)]


def _worded(concept: str, scene: scenes.Scene, seed: int) -> str:
    wordings = (scenes.caption(scene, seed=seed + (number << 32)) for number in range(_WORDINGS))
    return next(text for text in wordings if f" {WORDS[concept]} " in f" {text} ")


def plain_captions(number: int) -> list[str]:
    """Held-out ordinary prompts."""
    seeds = range(HELD_OUT_SEED, HELD_OUT_SEED + number)
    return [scenes.caption(scenes.random_scene(seed, split="held_out"), seed=seed) for seed in seeds]


if __name__ == "__main__":
    main()
