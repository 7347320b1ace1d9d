"""Pocket HunyuanVideo: a HunyuanVideo of a few million weights that was trained on drawn clips, and what it does well.

What pocket models know, and what is left for a LoRA to learn, stands in parts/pocket.py. Guidance is worked into this
one, as into the published model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...parts import pocket

FILES = {"dit": "pocket_hunyuan_t2v.safetensors", **pocket.HUNYUAN_VAE, **pocket.HUNYUAN_TEXTS}
BESIDE = (pocket.CLIP_TOKENIZER,)
CONCEPT, DATASET, PROMPTS = pocket.CONCEPT, pocket.DATASET, pocket.PROMPTS
TRAINING = pocket.TRAINING
GENERATION = {**pocket.GENERATION, "embedded_cfg_scale": 6.0}


def pocket_model_options(folder: str | Path) -> dict[str, dict[str, Any]]:
    """What the job files of each verb must say to use the models in `folder`."""
    paths = pocket.paths(FILES, folder)
    return {
        "cache-latents": {"vae": paths["vae"]},
        "cache-text": {name: paths[name] for name in pocket.HUNYUAN_TEXTS},
        "train": {"dit": paths["dit"]},
        "generate": paths,
    }
