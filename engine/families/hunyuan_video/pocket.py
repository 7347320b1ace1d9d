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
STEP_CACHES = {
    "magcache": {
        "step_cache": "magcache",
        "step_cache_ratios":
        "1,1.0035,.9970,.9974,.9991,.9960,.9970,.9959,.9905,.9742,1.0011,.9836,.9878,.9893,.9877,.9840,.9870,"
        ".9886,.9842,.9860,.9852,.9862,.9863,.9829,.9869,.9847,.9855,.9870,.9878,.9854,.9908,.9889,.9888,"
        ".9886,.9886,.9904,.9878,.9893,.9864,.9896,.9868,.9871,.9836,.9844,.9825,.9773,.9724,.9595,.9306,"
        ".8582",
    },
    "teacache": {
        "step_cache": "teacache",
        "step_cache_coefficients": "-3656.19,1142.08,-102.012,3.79198,-0.00806493",
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
        "cache-text": {name: paths[name] for name in pocket.HUNYUAN_TEXTS},
        "train": {"dit": paths["dit"]},
        "generate": paths,
    }
