"""What a family's demo is made of: models, clips, and the options that suit both.

Two kinds. The pocket kit has small models that were trained (`pocket/`), and clips of something that they have never
seen, so that the video is real and the LoRA's effect can be seen. The random kit, for families without them, draws
clips of shapes and writes models of random weights, whose videos show colours only.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ..contract.files import whole_file
from ..families import offers, part
from .clips import SCENES, write_clips

POCKET = Path(__file__).parent / "pocket"
SEED = 42
TRAIN_STEPS, LEARNING_RATE = 300, 2e-3  # where models are random
SHAPES = "shapes"


@dataclass(frozen=True, kw_only=True)
class Kit:
    """One family's demo. `clips` names the folder of its clips; `prompts` are the videos that it generates.

    `concept`: what the models do not know before the training, "" where they know nothing. `general` and `dataset` are
    keys of the dataset file. `without`: options of the generation that the family does not have. `first_frames`: what
    the videos begin with, a picture for each prompt or none; they lie in the folder that the clips' folder is in.
    """

    models: str
    clips: str
    concept: str = ""
    prompts: tuple[str, ...]
    first_frames: tuple[str, ...] = ()
    general: Mapping[str, Any]
    dataset: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any]
    generation: Mapping[str, Any]
    without: tuple[str, ...] = ()
    options: Callable[[Path], dict[str, dict[str, Any]]]
    """For each verb what its job file must say to use the models in a folder."""
    write_models: Callable[[Path], object]
    write_clips: Callable[[Path], object]
    """Into the folder that their own folder is in."""


def kit_of(family: str, *, trained: bool = True) -> Kit:
    """The pocket kit where the family has one and `trained` models are wanted, else the random kit."""
    return _pocket_kit(family) if trained and offers(family, "pocket") else _random_kit(family)


def _pocket_kit(family: str) -> Kit:
    pocket = part(family, "pocket")
    clips, first_frames = pocket.CONCEPT.replace(" ", "_"), getattr(pocket, "FIRST_FRAMES", ())
    files = sorted(f"{clips}/{file.name}" for file in (POCKET / clips).iterdir())
    return Kit(
        models="pocket",
        clips=clips,
        concept=pocket.CONCEPT,
        prompts=pocket.PROMPTS,
        first_frames=first_frames,
        general=pocket.DATASET,
        dataset=getattr(pocket, "DATASET_KEYS", {}),
        training=pocket.TRAINING,
        generation=pocket.GENERATION,
        options=pocket.pocket_model_options,
        write_models=partial(_copy, [*pocket.FILES.values(), *getattr(pocket, "BESIDE", ())]),
        write_clips=partial(_copy, [*files, *first_frames]),
    )


def _random_kit(family: str) -> Kit:
    tiny = part(family, "tiny")
    return Kit(
        models="random",
        clips=SHAPES,
        prompts=(SCENES[0].caption,),
        general={"resolution": [96, 96], "batch_size": 1},
        dataset=getattr(tiny, "DATASET_KEYS", {}),
        training={"max_train_steps": TRAIN_STEPS, "learning_rate": LEARNING_RATE, "timestep_sampling": "uniform"},
        generation={"video_size": [96, 96], "video_length": 17, "guidance_scale": 1.0},
        without=getattr(tiny, "NOT_IN_DEMO", ()),
        options=tiny.tiny_model_options,
        write_models=partial(tiny.write_tiny_models, seed=SEED),
        write_clips=lambda folder: write_clips(folder / SHAPES),
    )


def _copy(names: list[str], folder: Path) -> None:
    """Copy these files of the pocket models, with the folders that their names say."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with whole_file(folder / name, durable=False) as temporary:
            shutil.copyfile(POCKET / name, temporary)
