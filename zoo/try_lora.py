"""Whether a LoRA learns a concept on the pocket model, by the ordinary commands: cache, train, generate; then judge.

    python -m zoo.try_lora --models DIR --concept zigzag --out DIR

Eight clips of the concept are trained on, whose captions all use one word for it, beside ordinary clips, some of them
without captions: those keep what the base model knows, and what guidance guides away from. The clips are such as a
person would choose: one big thing, simple motions, a quiet background. Five sets of clips are generated:

    word      what the clips show, before other backgrounds and in other words, with the LoRA: the concept should show
    new       colours and motions together that no clip shows, with the LoRA: how far it reaches
    no word   held-out ordinary prompts, with the LoRA: no concept, and as true to the prompts as
    base      the same with the base model alone
    base word the prompts with the word with the base model alone, which does not know it: no concept

Then one prompt is generated in the ways that must give the same video.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.contract.files import write_text
from engine.families.wan import vae as wan_vae
from engine.media.latents import load_latent
from engine.media.video import read_frames
from engine.media.writing import write_video

from . import scenes
from .arranging import elsewhere
from .beside import draw_moving, put_beside, write_float32
from .captions import read_caption
from .data import HELD_OUT_SEED
from .dice import Dice
from .facts import CONCEPTS, NEW_MOTIONS
from .generating import SHIFT, STEPS, decode, draw_clips
from .generating import generate as generate_latents
from .judge import judge, shares, shows_concept
from .pace import say
from .pocket_wan import DIT_NAME, FRAMES, SIZE, TEXT_NAME, VAE_NAME

FPS = 16
WORDS = {"striped_hexagon": "striped", "zigzag": "in a zigzag", "pixel_art": "in pixel art style"}
"""The wording of each concept that all captions use, as a person would: other words are other tokens."""
_QUIET = ("plain", "gradient")  # backgrounds
_SIMPLE = ("left", "right", "up", "down", "still")
_TASK, _UNSEEN_SEED, _ORDINARY_SEED, _SHOWN, _MOVING = "t2v-1.3B", 1 << 20, 1 << 21, 8, 6
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
    """Run everything, write `report.json` and two sheets of pictures, one moving; the figures of each set, 0..1."""
    trial.out.mkdir(parents=True, exist_ok=True)
    write_dataset(trial)
    near, new = near_captions(trial), new_captions(trial.concept, trial.seeds)
    plain = plain_captions(trial.seeds)
    report: dict[str, dict[str, float]] = {"seconds": train(trial, near[0])}
    lora = trial.out / "lora" / "concept.safetensors"
    rows, made = [], {}
    for name, prompts, loras in (
        ("word", near, [lora]), ("new", new, [lora]), ("no word", plain, [lora]), ("base", plain, []),
        ("base word", near, []),
    ):  # fmt: skip
        clips = made[name] = generate(trial, name.replace(" ", "_"), prompts, loras)
        report[name] = figures(trial.concept, clips, prompts)
        rows += [(f"{name}\n{prompt}", clip) for prompt, clip in zip(prompts[:_SHOWN], clips, strict=False)]
        say(f"{name:9} " + ", ".join(f"{fact} {share:.0%}" for fact, share in report[name].items()))
    report["same"] = compare_ways(trial, lora, near[0])
    say("same      " + ", ".join(f"{name} {figure:.4g}" for name, figure in report["same"].items()))
    write_text(trial.out / "report.json", json.dumps(report, indent=2) + "\n")
    draw_clips(rows, trial.out / "clips.png", title=f"LoRA: {trial.concept}")
    pairs = list(zip(near, zip(made["base word"], made["word"], strict=True), strict=True))[:_MOVING]
    draw_moving(pairs, trial.out / "clips.gif", title="Without and with the LoRA", fps=FPS // 2)
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
    """Of the command that generates with this model; the videos lose nothing, so that equal frames stay equal."""
    return (
        "generate", "wan", "--task", _TASK, "--dit", dit, "--vae", trial.models / VAE_NAME,
        "--t5", trial.models / TEXT_NAME, "--video_size", SIZE, SIZE, "--video_length", FRAMES,
        "--infer_steps", STEPS, "--flow_shift", SHIFT,
        "--guidance_scale", trial.guidance, "--cpu_noise", "--crf", 0,
    )  # fmt: skip


def compare_ways(trial: Trial, lora: Path, prompt: str) -> dict[str, float]:
    """How far what one prompt and seed give lies apart where it must be the same.

    `multiplier 0`: latents with the LoRA at 0, and without it; the most, 0 is bit for bit. The others are levels of 255
    in the frames. `merged`: a model from `lora merge`, and the LoRA given to `generate`; the most. `unmerged`: the LoRA
    beside the weights, and merged into them, all in float32; the most. `sample`: the training's own sample, whose LoRA
    is beside weights in bfloat16, and the merged model, whose weights are rounded once more; the mean, of a video that
    has lost a little. The negative prompt is the family's own, as it is for the sample, but empty for `unmerged`.
    """
    base = trial.models / DIT_NAME
    merged = _merge(lora, base, trial.out / "merged.safetensors")
    without, zero = (_made(trial, base, prompt, name, *more) for name, more in (
        ("base", ()), ("zero", ("--lora_weight", lora, "--lora_multiplier", 0)),
    ))  # fmt: skip
    given, whole = _made(trial, base, prompt, "given", "--lora_weight", lora), _made(trial, merged, prompt, "merged")
    sample = _frames(trial.out / "lora" / "sample")
    return {
        "multiplier 0": float((without.latent - zero.latent).abs().max()),
        "merged": float(np.abs(given.frames - whole.frames).max()),
        "unmerged": _beside_and_merged(trial, lora, prompt),
        "sample": float(np.abs(sample - whole.frames).mean()),
    }


def _beside_and_merged(trial: Trial, lora: Path, prompt: str) -> float:
    folder = trial.out / "float32"
    folder.mkdir(exist_ok=True)
    shutil.copy(trial.models / TEXT_NAME, folder)
    base = write_float32(trial.models / DIT_NAME, folder / DIT_NAME)
    merged = _merge(lora, base, folder / "merged.safetensors")
    how: dict[str, Any] = {"size": SIZE, "frames": FRAMES, "guidance": trial.guidance, "device": torch.device("cpu")}
    latents = (
        generate_latents(base, [prompt], change=partial(put_beside, lora=lora), **how),
        generate_latents(merged, [prompt], **how),
    )
    vae = wan_vae.load(trial.models / VAE_NAME, device="cpu", dtype=torch.float32)
    one, other = (decode(vae, latent).astype(np.float32) for latent in latents)
    return float(np.abs(one - other).max())


@dataclass(frozen=True)
class Made:
    """A latent, and the frames of its video in levels of 255."""

    latent: torch.Tensor
    frames: np.ndarray


def _made(trial: Trial, dit: Path, prompt: str, name: str, *more: object) -> Made:
    folder = trial.out / "ways" / name
    run(
        *_generation(trial, dit), "--prompt", prompt, "--seed", 0, "--save_path", folder, "--output_type", "both", *more
    )
    return Made(load_latent(_newest(folder, "*.safetensors"))[0].float(), _frames(folder))


def _merge(lora: Path, dit: Path, path: Path) -> Path:
    run("lora", "merge", "--lora_weight", lora, "--dit", dit, "--save_merged_model", path)
    return path


def _frames(folder: Path) -> np.ndarray:
    """[F, H, W, 3] float32 of a folder's newest video."""
    return np.stack(list(read_frames(_newest(folder, "*.mp4")))).astype(np.float32)


def _newest(folder: Path, pattern: str) -> Path:
    return max(folder.glob(pattern), key=lambda path: path.stat().st_mtime_ns)


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
