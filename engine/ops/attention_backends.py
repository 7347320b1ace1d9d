"""The attention backends by name, and which of them are installed. Without torch; ops/attention.py runs them."""

from __future__ import annotations

import importlib.util

BACKENDS = ("auto", "sdpa", "torch", "math", "flash", "flash2", "flash3", "xformers", "sageattn", "8bit")
PACKAGES = {
    "flash2": ("flash_attn", "flash_attn_func", "flash-attn"),
    "flash3": ("flash_attn_interface", "flash_attn_func", "flash-attn 3 (its hopper folder)"),
    "xformers": ("xformers.ops", "memory_efficient_attention", "xformers"),
    "sageattn": ("sageattention", "sageattn", "sageattention"),
}
"""Of a backend that has a package: its module, the function in it, and what to install."""


def installed_backends() -> list[str]:
    """PyTorch's own, and those whose package is installed; not `8bit`, which has to be tried out on the GPU."""
    absent = {
        name for name, (module, _, _) in PACKAGES.items() if importlib.util.find_spec(module.split(".")[0]) is None
    }
    if {"flash2", "flash3"} <= absent:
        absent.add("flash")
    return [name for name in BACKENDS if name not in {*absent, "8bit"}]
