"""What a family tells the memory planner of its networks: how many tokens its blocks work on, and how its VAE goes
through a clip. What that costs is memory/estimate.py's. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["cross", "double", "single"]
"""cross: attention, attention to the text, feed-forward, one after the other. double: image and text with layers of
their own and one attention. single: attention and feed-forward side by side, on one row of tokens."""


@dataclass(frozen=True, kw_only=True)
class BlockRun:
    """Blocks of one kind that follow each other; `prefix` begins their weights' names: `prefix.0.`, `prefix.1.` …, or
    from another number on, `first`, where blocks of another prefix run in between.

    `joined`, of "double" and "single" blocks: one layer makes q, k and v, and in the latter the feed-forward row too;
    else each has its own."""

    kind: Kind
    prefix: str
    count: int
    ffn_dim: int
    first: int = 0
    joined: bool = True


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a DiT's blocks work on for one sample: tokens that go through all of them, and those that are looked at."""

    dim: int
    tokens: int
    runs: tuple[BlockRun, ...]
    text_tokens: int = 0
    image_tokens: int = 0
    waiting: int = 0  # rows of tokens of full width that wait beside the blocks: a second row, what it has to add
    at_once: int = 1  # samples that one call takes in generation: 2 where guidance asks for both in one


@dataclass(frozen=True, kw_only=True)
class VaeWork:
    """How a VAE goes through a clip, by kind: "chunks" of a few frames of whole pictures, or "tiles" of all frames, up
    to `frames`, in squares of `tile` pixels a side (None: whole pictures).

    `past_on_cpu`: features wait in main memory between two chunks.
    """

    kind: Literal["chunks", "tiles"]
    tile: int | None = None
    frames: int = 65
    past_on_cpu: bool = False


def video_latents(*, width: int, height: int, frames: int) -> tuple[int, int, int]:
    """(T, H, W) of the latents of 4n + 1 frames: one of the first frame, one of every four, of 8 x 8 pixels each."""
    return (frames - 1) // 4 + 1, height // 8, width // 8


def video_pixels(latents: tuple[int, int, int]) -> tuple[int, int, int]:
    """(width, height, frames) of what latents (T, H, W) are made of: the reverse of `video_latents`."""
    frames, height, width = latents
    return 8 * width, 8 * height, 4 * (frames - 1) + 1
