"""The toy's weight names. There are two public layouts: plain, and with ComfyUI's prefix."""

from __future__ import annotations

from collections.abc import Mapping

from ...parts.arrangement import Rows, renamed

LORA_BLOCKS = ("ToyBlock",)
LORA_EXCLUDE = r".*gate.*"


def dit_name(name: str) -> str | None:
    """Our name for a name in a file."""
    return name.removeprefix("diffusion_model.")


def arrange(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[Rows, ...]]:
    """One tensor of a file is one of ours."""
    return renamed(shapes, dit_name)


def diffusers_parts(path: str) -> tuple[str, ...]:
    """diffusers has no toy, so its layers would be called the same."""
    return (path,)


def lora_pieces(name: str) -> tuple[str, ...]:
    """No layout joins or cuts layers."""
    return ()


def is_fp8_weight(name: str) -> bool:
    """The matrices of the blocks may be kept in fp8."""
    return name.startswith("blocks.") and "gate" not in name
