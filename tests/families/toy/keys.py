"""The toy's weight names. There are two public layouts: plain, and with ComfyUI's prefix."""

from __future__ import annotations

LORA_BLOCKS = ("ToyBlock",)
LORA_EXCLUDE = r".*gate.*"


def dit_name(name: str) -> str | None:
    """Our name for a name in a file."""
    return name.removeprefix("diffusion_model.")


def is_fp8_weight(name: str) -> bool:
    """The matrices of the blocks may be kept in fp8."""
    return name.startswith("blocks.") and "gate" not in name
