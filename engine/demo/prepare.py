"""Everything the demo starts from: clips with captions, a dataset file, small models, one job file a step.

The job files are ordinary ones: each repeats its step by hand, from any folder, because its paths are absolute.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from ..contract.files import clean_leftovers, write_text
from ..families import part
from .clips import SCENES, write_clips

SEED = 42
TRAIN_STEPS = 300
LEARNING_RATE = 2e-3
DATASET = """\
# What to train on. Every key is described in docs/DATASET.md.
[general]
resolution = [96, 96]        # area budget: each clip keeps its own shape within it
caption_extension = ".txt"
batch_size = 1
enable_bucket = true

[[datasets]]
video_directory = "{clips}"
cache_directory = "{cache}"
target_frames = [17]         # latent frames are groups of four: always 4n + 1
frame_extraction = "head"
{more}"""


@dataclass(frozen=True)
class Step:
    """One command of the demo: its verb, its job file and what it is for."""

    verb: str
    family: str
    file: Path
    purpose: str

    @property
    def command(self) -> list[str]:
        """What stands behind `python -m engine`."""
        return [self.verb, self.family, "--config_file", str(self.file)]


@dataclass(frozen=True)
class Prepared:
    """A prepared demo folder: where the results will be, and the steps that make them, in order."""

    folder: Path
    family: str
    steps: tuple[Step, ...]

    @property
    def lora(self) -> Path:
        return self.folder / "output" / "demo-lora.safetensors"

    @property
    def videos(self) -> Path:
        return self.folder / "video"

    @property
    def clips(self) -> Path:
        return self.folder / "clips"


def job_file(path: Path, verb: str, family: str, purpose: str, options: dict[str, Any]) -> Step:
    """Write one step's job file, which says how to repeat the step by hand."""
    heading = f'# {purpose}\n# By hand: python -m env_bootstrap run -- {verb} {family} --config_file "{path}"\n\n'
    write_text(path, heading + tomli_w.dumps(options))
    return Step(verb, family, path, purpose)


def prepare(folder: Path, family: str = "wan") -> Prepared:
    """Write the demo's inputs into `folder` (made if missing), or take up those that are complete there."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    tiny = part(family, "tiny")
    models_folder = folder / "models"
    ready, complete = folder / "ready", f"The clips and the {family} models in this folder are complete.\n"
    if not ready.exists() or ready.read_text(encoding="utf-8") != complete:
        for place in (folder, folder / "clips", models_folder):
            clean_leftovers(place)  # of a demo that was killed
        write_clips(folder / "clips")
        tiny.write_tiny_models(models_folder, seed=SEED)
        clips, cache = (folder / "clips").as_posix(), (folder / "cache").as_posix()
        more = tomli_w.dumps(getattr(tiny, "DATASET_KEYS", {}))
        write_text(folder / "dataset.toml", DATASET.format(clips=clips, cache=cache, more=more))
    without = getattr(tiny, "NOT_IN_DEMO", ())
    prepared = Prepared(folder, family, _steps(folder, family, tiny.tiny_model_options(models_folder), without))
    write_text(ready, complete)
    return prepared


def _steps(folder: Path, family: str, models: dict[str, dict[str, Any]], without: tuple[str, ...]) -> tuple[Step, ...]:
    """The four job files. `models` holds, for each verb, what the family says; `without` names what it cannot say."""
    dataset = {"dataset_config": str(folder / "dataset.toml")}
    trained = folder / "output" / "demo-lora.safetensors"
    training = {
        "max_train_steps": TRAIN_STEPS, "save_every_n_steps": 50, "save_state": True,
        "learning_rate": LEARNING_RATE, "mixed_precision": "no",
        "network_dim": 16, "network_alpha": 16.0, "timestep_sampling": "uniform", "seed": SEED,
        "output_dir": str(folder / "output"), "output_name": "demo-lora", "logging_dir": str(folder / "tensorboard"),
    }  # fmt: skip
    generation = {
        "prompt": SCENES[0].caption, "negative_prompt": "", "video_size": [96, 96], "video_length": 17,
        "guidance_scale": 1.0, "infer_steps": 20, "seed": SEED, "save_path": str(folder / "video"),
        "output_type": "both",
        "lora_weight": [str(trained)], "lora_multiplier": [1.0],
    }  # fmt: skip
    generation = {name: value for name, value in generation.items() if name not in without}
    return (
        job_file(folder / "1_latents.toml", "cache-latents", family, "Clips to latents, once.",
                 {**dataset, **models["cache-latents"]}),
        job_file(folder / "2_text.toml", "cache-text", family, "Captions to text embeddings, once.",
                 {**dataset, **models["cache-text"]}),
        job_file(folder / "3_train.toml", "train", family, "Train a LoRA on the caches.",
                 {**dataset, **models["train"], **training}),
        job_file(folder / "4_generate.toml", "generate", family, "A new video with that LoRA.",
                 {**generation, **models["generate"]}),
    )  # fmt: skip
