"""Packages that the engine can use and does without: the sentence that says how one gets into its environment.

The twin of `env_bootstrap/extras.py`, which knows versions and systems; a test holds the two together. An error about a
missing package takes its hint from here and nowhere else.
"""

from __future__ import annotations

import sys

RUN = "python -m env_bootstrap run --"
"""What stands before a verb where a person types it: the engine in its own environment."""

# module -> what `python -m env_bootstrap add` calls it
OPTIONAL = {
    "bitsandbytes": "bitsandbytes",
    "came_pytorch": "came-pytorch",
    "dadaptation": "dadaptation",
    "flash_attn": "flash-attn",
    "lion_pytorch": "lion-pytorch",
    "pillow_jxl": "pillow-jxl-plugin",
    "prodigyopt": "prodigyopt",
    "prodigyplus": "prodigy-plus-schedule-free",
    "pytorch_optimizer": "pytorch-optimizer",
    "sageattention": "sageattention",
    "schedulefree": "schedulefree",
    "triton": "triton-windows",
    "wandb": "wandb",
    "xformers": "xformers",
}

OWN = (
    "torch", "accelerate", "safetensors", "transformers", "numpy", "PIL", "av", "tqdm", "rich", "tomli_w", "psutil",
    "lycoris", "einops", "toml",
)  # fmt: skip
"""Modules that the environment always has. One is missing in another Python, and in a broken environment."""


def is_own(error: ModuleNotFoundError) -> bool:
    """Whether what is missing belongs to the environment."""
    return (error.name or "").partition(".")[0] in OWN


def how_to_install(module: str) -> str:
    """The sentence for a package that is not there, by the module (or a module inside) that was to be imported."""
    package = module.partition(".")[0]
    if package in OPTIONAL:
        return f"Install it with: python -m env_bootstrap add {OPTIONAL[package]}"
    return f'Install it into the engine\'s environment: "{sys.executable}" -m pip install {package}'
