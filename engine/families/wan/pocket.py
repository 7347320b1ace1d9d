"""Pocket Wan: a Wan of a few million weights that was trained on drawn clips, and what it does well.

What pocket models know, and what is left for a LoRA to learn, stands in parts/pocket.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...parts import pocket

TASK = "t2v-1.3B"
FILES = {
    "dit": "pocket_wan_t2v.safetensors",
    "vae": "pocket_wan_vae.safetensors",
    "t5": "pocket_wan_t5.safetensors",
}
CONCEPT, DATASET, PROMPTS = pocket.CONCEPT, pocket.DATASET, pocket.PROMPTS
TRAINING = pocket.TRAINING
GENERATION = {**pocket.GENERATION, "guidance_scale": 4.0}


def pocket_model_options(folder: str | Path) -> dict[str, dict[str, Any]]:
    """What the job files of each verb must say to use the models in `folder`."""
    paths = pocket.paths(FILES, folder)
    return {
        "cache-latents": {"vae": paths["vae"]},
        "cache-text": {"t5": paths["t5"]},
        "train": {"task": TASK, "dit": paths["dit"]},
        "generate": {"task": TASK, **paths},
    }
