"""Pocket FramePack: a FramePack of a few million weights that was trained on drawn clips, and what it does well.

What pocket models know, and what is left for a LoRA to learn, stands in parts/pocket.py. This one is shown a striped
hexagon, and keeps it in many videos without a LoRA, but not in those of its prompts. Its sections are short.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...parts import pocket

IMAGE = {"image_encoder": "pocket_framepack_siglip.safetensors"}
FILES = {"dit": "pocket_framepack_i2v.safetensors", **pocket.HUNYUAN_VAE, **pocket.HUNYUAN_TEXTS, **IMAGE}
BESIDE = (pocket.CLIP_TOKENIZER,)
WINDOW = 2  # latent frames in a section
CONCEPT, DATASET = pocket.CONCEPT, pocket.DATASET
DATASET_KEYS = {"fp_latent_window_size": WINDOW}
TRAINING = {**pocket.TRAINING, "guidance_scale": 10.0}  # embedded: it was told no other, and is by default
GENERATION = {
    "video_size": [pocket.SIZE, pocket.SIZE], "video_sections": (pocket.FRAMES - 1) // 4 // WINDOW,
    "guidance_scale": 2.0,
}  # fmt: skip
"""More guidance breaks what the LoRA has taught."""
PROMPTS = (
    "a large striped orange hexagon moves to the left on a white background",
    "a large striped red hexagon moves to the right on a light green background",
    "a large striped green hexagon moves to the left on a light blue background",
)
FIRST_FRAMES = ("first_frames/orange_left.png", "first_frames/red_right.png", "first_frames/green_left.png")
STEP_CACHES = {
    "magcache": {
        "step_cache": "magcache",
        "step_cache_ratios":
        "1,.9735,.9713,.9702,.9675,.9697,.9679,.9727,.9715,.9698,.9696,.9716,.9683,.9673,.9682,.9627,.9601,"
        ".9588,.9533,.9475,.9382,.9261,.9092,.8777,.8610",
    },
    "teacache": {
        "step_cache": "teacache",
        "step_cache_coefficients": "1088.75,-737.507,124.084,-3.93065,0.0636193",
    },
    "first_block": {"step_cache": "first_block"},
}  # fmt: skip
"""What each step cache needs for this model: the mean of what --step_cache_calibrate printed for four clips in 25
steps; the polynomial is fitted to all of them."""


def pocket_model_options(folder: str | Path) -> dict[str, dict[str, Any]]:
    """What the job files of each verb must say to use the models in `folder`."""
    paths = pocket.paths(FILES, folder)
    return {
        "cache-latents": {name: paths[name] for name in ("vae", *IMAGE)},
        "cache-text": {name: paths[name] for name in pocket.HUNYUAN_TEXTS},
        "train": {"dit": paths["dit"]},
        "generate": {**paths, "latent_window_size": WINDOW},
    }
