"""Everything the demo starts from: clips with captions, a dataset file, small models, one job file a step.

The job files are ordinary ones: each repeats its step by hand, from any folder, because its paths are absolute.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from ..contract.files import clean_leftovers, write_text
from .kits import SEED, Kit, kit_of

LORA = "demo-lora"
DATASET = """\
# What to train on. Every key is described in docs/DATASET.md.
[general]
resolution = {resolution}        # area budget: each clip keeps its own shape within it
caption_extension = ".txt"
batch_size = {batch_size}
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
    def name(self) -> str:
        """What tells it from the other steps: `4_generate`."""
        return self.file.stem

    @property
    def command(self) -> list[str]:
        """What stands behind `python -m engine`."""
        return [self.verb, self.family, "--config_file", str(self.file)]


@dataclass(frozen=True)
class Prepared:
    """A prepared demo folder: where the results will be, and the steps that make them, in order."""

    folder: Path
    family: str
    kit: Kit
    steps: tuple[Step, ...]

    @property
    def lora(self) -> Path:
        return self.folder / "output" / f"{LORA}.safetensors"

    @property
    def videos(self) -> Path:
        return self.folder / "video"

    @property
    def without_lora(self) -> Path:
        """The same videos without the LoRA, where there is a concept to be seen."""
        return self.folder / "video_without_lora"

    @property
    def clips(self) -> Path:
        return self.folder / "clips" / self.kit.clips


def job_file(path: Path, verb: str, family: str, purpose: str, options: dict[str, Any]) -> Step:
    """Write one step's job file, which says how to repeat the step by hand."""
    heading = f'# {purpose}\n# By hand: python -m env_bootstrap run -- {verb} {family} --config_file "{path}"\n\n'
    write_text(path, heading + tomli_w.dumps(options))
    return Step(verb, family, path, purpose)


def prepare(folder: Path, family: str = "wan", *, trained: bool = True) -> Prepared:
    """Write the demo's inputs into `folder` (made if missing), or take up those that are complete there.

    Without `trained`, the models are random whatever the family has: what most tests run on.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    kit = kit_of(family, trained=trained)
    models, clips = folder / "models", folder / "clips" / kit.clips
    ready, complete = folder / "ready", f"The clips and the {kit.models} {family} models in this folder are complete.\n"
    if not ready.exists() or ready.read_text(encoding="utf-8") != complete:
        for place in (folder, *clips.parent.glob("**"), *models.glob("**")):
            clean_leftovers(place)  # of a demo that was killed
        kit.write_clips(clips.parent)
        kit.write_models(models)
        write_dataset(folder, clips, kit.general, kit.dataset)
    prepared = Prepared(folder, family, kit, _steps(folder, family, kit))
    write_text(ready, complete)
    return prepared


def write_dataset(folder: Path, clips: Path, general: Mapping[str, Any], more: Mapping[str, Any]) -> None:
    """Write `dataset.toml` into a folder, whose `cache` its caches go to."""
    places = {"clips": clips.as_posix(), "cache": (folder / "cache").as_posix()}
    write_text(folder / "dataset.toml", DATASET.format(**places, **general, more=tomli_w.dumps(more)))


def _steps(folder: Path, family: str, kit: Kit) -> tuple[Step, ...]:
    """The job files: four, and where a concept is learned a fifth, for the same videos without the LoRA."""
    dataset, models = {"dataset_config": str(folder / "dataset.toml")}, kit.options(folder / "models")
    training = {
        "save_every_n_steps": 50, "save_state": True, "mixed_precision": "no", "network_dim": 16,
        "network_alpha": 16.0, "seed": SEED, "output_dir": str(folder / "output"), "output_name": LORA,
        "logging_dir": str(folder / "tensorboard"), **kit.training,
    }  # fmt: skip
    generation = {
        **_prompts(folder, kit), "negative_prompt": "", "infer_steps": 20, "seed": SEED, "output_type": "both",
        **kit.generation,
    }  # fmt: skip
    generation = {name: value for name, value in generation.items() if name not in kit.without} | models["generate"]
    trained = {"lora_weight": [str(folder / "output" / f"{LORA}.safetensors")], "lora_multiplier": [1.0]}
    steps = (
        job_file(folder / "1_latents.toml", "cache-latents", family, "Clips to latents, once.",
                 {**dataset, **models["cache-latents"]}),
        job_file(folder / "2_text.toml", "cache-text", family, "Captions to text embeddings, once.",
                 {**dataset, **models["cache-text"]}),
        job_file(folder / "3_train.toml", "train", family, "Train a LoRA on the caches.",
                 {**dataset, **models["train"], **training}),
        job_file(folder / "4_generate.toml", "generate", family, "A new video with that LoRA.",
                 {**generation, **trained, "save_path": str(folder / "video")}),
    )  # fmt: skip
    if not kit.concept:
        return steps
    without = {**generation, "save_path": str(folder / "video_without_lora")}
    return (*steps, job_file(folder / "5_without.toml", "generate", family, "The same without the LoRA.", without))


def _prompts(folder: Path, kit: Kit) -> dict[str, str]:
    """One prompt as an option, several as a file, where each names the picture that its video begins with."""
    if len(kit.prompts) == 1:
        return {"prompt": kit.prompts[0]}
    pictures = [f" --i {folder / 'clips' / picture}" for picture in kit.first_frames] or [""] * len(kit.prompts)
    lines = [f"{prompt}{picture}\n" for prompt, picture in zip(kit.prompts, pictures, strict=True)]
    write_text(folder / "prompts.txt", "".join(lines))
    return {"from_file": str(folder / "prompts.txt")}
