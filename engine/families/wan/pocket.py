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
STEP_CACHES = {
    "magcache": {
        "step_cache": "magcache",
        "step_cache_ratios":
        "1,.9978,.9961,.9944,.9921,.9918,.9952,.9929,.9922,.9931,.9906,.9900,.9925,.9914,.9907,.9899,.9907,"
        ".9890,.9893,.9880,.9882,.9872,.9883,.9858,.9853,.9848,.9849,.9830,.9827,.9822,.9806,.9796,.9778,"
        ".9764,.9763,.9737,.9712,.9688,.9673,.9635,.9603,.9553,.9516,.9440,.9387,.9269,.9167,.9030,.8870,"
        ".8920",
    },
    "teacache": {
        "step_cache": "teacache",
        "step_cache_coefficients": "23438.8,-2846.64,169.604,-2.68376,0.0469463",
    },
    "first_block": {"step_cache": "first_block"},
}  # fmt: skip
"""What each step cache needs for this model: the mean of what --step_cache_calibrate printed for four clips in 50
steps; the polynomial is fitted to all of them."""


def pocket_model_options(folder: str | Path) -> dict[str, dict[str, Any]]:
    """What the job files of each verb must say to use the models in `folder`."""
    paths = pocket.paths(FILES, folder)
    return {
        "cache-latents": {"vae": paths["vae"]},
        "cache-text": {"t5": paths["t5"]},
        "train": {"task": TASK, "dit": paths["dit"]},
        "generate": {"task": TASK, **paths},
    }
