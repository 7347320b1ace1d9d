"""What a family tells the memory planner about its networks: how many tokens its blocks process, and how its VAE goes
through a clip. memory/estimate.py works out what that costs. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["cross", "double", "single"]
"""cross: attention, attention to the text, feed-forward, one after the other. double: image and text with layers of
their own and one attention. single: attention and feed-forward in parallel, on one sequence of tokens."""


@dataclass(frozen=True, kw_only=True)
class BlockRun:
    """Consecutive blocks of one kind. Their weights' names begin with `prefix.0.`, `prefix.1.` …; `first` is the first
    number, for runs with blocks of another prefix in between.

    `joined`, for "double" and "single" blocks: one layer makes q, k and v, in the latter the feed-forward's hidden
    values too; else each has a layer of its own."""

    kind: Kind
    prefix: str
    count: int
    ffn_dim: int
    first: int = 0
    joined: bool = True


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a DiT's blocks process for one sample: tokens that go through all of them, and tokens they attend to."""

    dim: int
    tokens: int
    runs: tuple[BlockRun, ...]
    text_tokens: int = 0
    image_tokens: int = 0
    waiting: int = 0  # full-width rows of tokens held besides those in the blocks, as by VACE or a step cache
    at_once: int = 1  # samples in one call in generation: 2 if guidance computes both predictions in one


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
    """(T, H, W) of the latents of 4n + 1 frames: one for the first, one for every four more, of 8 x 8 pixels each."""
    return (frames - 1) // 4 + 1, height // 8, width // 8


def video_pixels(latents: tuple[int, int, int]) -> tuple[int, int, int]:
    """(width, height, frames) of the clip with latents (T, H, W): the reverse of `video_latents`."""
    frames, height, width = latents
    return 8 * width, 8 * height, 4 * (frames - 1) + 1
