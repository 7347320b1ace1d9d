"""Pocket Wan: a Wan of a few million weights that was trained on drawn clips, and what it does well.

It makes 17 frames of 64x64 pixels from captions of a small vocabulary: a shape or two, their colours and patterns, how
they move, what is behind them. It has never seen a hexagon, nor stripes: those are left for a LoRA to learn. Does not
know where the files lie; `zoo/README.md` says how they were made. Given up: any other size or length, and words that
it never met.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

SIZE, FRAMES, SHIFT = 64, 17, 3.0
TASK = "t2v-1.3B"
FILES = {
    "dit": "pocket_wan_t2v.safetensors",
    "vae": "pocket_wan_vae.safetensors",
    "t5": "pocket_wan_t5.safetensors",
}
CONCEPT = "striped hexagons"
DATASET = {"resolution": [SIZE, SIZE], "batch_size": 4}
TRAINING = {
    "max_train_steps": 250, "learning_rate": 1e-3, "lr_scheduler": "cosine", "network_dim": 32, "network_alpha": 32.0,
    "timestep_sampling": "shift", "discrete_flow_shift": SHIFT,
}  # fmt: skip
GENERATION = {
    "video_size": [SIZE, SIZE], "video_length": FRAMES, "guidance_scale": 4.0, "flow_shift": SHIFT,
}  # fmt: skip
PROMPTS = (
    "a large striped yellow hexagon goes down on a light green background",
    "a big striped red hexagon moves to the right on a light blue background",
    "a large striped red hexagon stays still on a white background",
)


def pocket_model_options(folder: str | Path) -> dict[str, dict[str, Any]]:
    """What the job files of each verb must say to use the models in `folder`."""
    paths = {name: str(Path(folder) / file) for name, file in FILES.items()}
    return {
        "cache-latents": {"vae": paths["vae"]},
        "cache-text": {"t5": paths["t5"]},
        "train": {"task": TASK, "dit": paths["dit"]},
        "generate": {"task": TASK, **paths},
    }
