"""How much memory a job takes, worked out from sizes alone: the planner's formulas, and the numbers in them.

activations.py works out what a DiT's blocks take; this module has everything else, and adds it up. `VAES` and the
constants below it were measured, on an H100 unless stated otherwise.
The prediction is the most that tensors take at a time, "allocated" in PyTorch's words; `Stage.needed_bytes` is what has
to be free for it. Bytes everywhere. Standard library only. Knows no family, no option and no file.
Given up: attention that builds the whole matrix (GPUs before Ampere); where gradients of attention need no whole tiles
(before Hopper), the memory for these is counted all the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ..parts.workload import VaeWork, Work
from .activations import FLOAT, HALF, How, forward_bytes, worst_moment
from .rules import keeps_attention, spread

Parts = dict[str, int]
"""What takes memory, in words -> bytes."""

GIB = 1 << 30


# --------------------------------------------------------------------------------------- the numbers, and their reasons


@dataclass(frozen=True)
class VaeNumbers:
    """Bytes that encoding and decoding take in 16 bits, per pixel (of a frame, or of a tile times its frames).
    `besides`: a constant amount more, (encoding, decoding). `result`: per pixel and frame of the clip that decoded
    tiles are put together in. `past`: per pixel, of features that wait between two chunks, (encoding, decoding)."""

    encode: float
    decode: float
    besides: tuple[int, int] = (0, 0)
    result: float = 0
    past: tuple[float, float] = (0, 0)


VAES: dict[str, VaeNumbers] = {
    # Wan's: four frames at a time; the widest layer is the one at full size, with 96 channels, and 32 more of zeros in
    # the six frames that a convolution reads
    "chunks": VaeNumbers(encode=6_692 + 384, decode=8_672 + 384, past=(2_808, 4_729)),
    # HunyuanVideo's: all frames of a tile at once, three maps of 128 channels, or two and one of 256; besides: what
    # convolutions, in slices of SLICE_ELEMENTS, hold temporarily; in decoding cuDNN chose kernels that hold 0.18 GiB on
    # one machine and none on another
    "tiles": VaeNumbers(encode=768, decode=1_024, besides=(int(0.26 * GIB), int(0.1 * GIB)), result=24),
}

OPTIMIZER_BYTES: dict[str, float] = {
    "adamw": 8, "adam": 8, "adamw8bit": 2, "pagedadamw8bit": 0, "pagedadamw": 0, "lion": 4, "lion8bit": 1, "sgd": 0,
    "adafactor": 0.1, "came": 4.1, "prodigy": 16, "adamwschedulefree": 8, "muon": 4,
}  # fmt: skip
"""Bytes of an optimizer's state per parameter. Prodigy's are four float32 numbers, AdamW's two."""
OTHER_OPTIMIZER_BYTES = 8
OPTIMIZER_STEP_BYTES = 8
"""Temporary, per parameter, while all are changed at once. AdamW, which is mostly one kernel on a GPU, is counted like
all others."""

CONTEXT = int(0.55 * GIB)
"""What CUDA and its libraries take before the first tensor; torch does not count it."""
SLACK = 0.25
"""Gaps between tensors, as a share of what comes and goes. H100: 0.1 to 0.5 if there is room; on a full card the
allocator closes most of them, in a flush of 6 to 60 ms: with 0.1 to 0.16, once per block. Wan 14B held 0.3 without
one."""
SETTLED_SLACK = 0.03
"""The same share of what compiled blocks keep until they are differentiated, if that settles (`How.settles`). H100, Wan
14B: gaps of 1.5 GiB besides 74.5 GiB with 44 of these and besides 69.5 with 39, 1.3 besides 59.5 with 30, 1.2 besides
29.3 with none. Even a card as full as that flushes nothing: each block that is not recomputed saved as much time as the
one before."""
PROGRAM = int(3.0 * GIB)
"""Main memory of Python, torch and CUDA's libraries."""
TEXT_ACTIVATIONS = int(0.35 * GIB)
"""One caption of 512 tokens in UMT5-XXL or LLaMA-8B."""


# ------------------------------------------------------------------------------------------------- what is asked about


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A DiT as it will be on the device: bytes outside of its blocks and of each block, and parameters of each block's
    adapters."""

    outside: int
    blocks: tuple[int, ...]
    adapters: tuple[int, ...] = ()
    others: int = 0  # bytes of further DiTs that wait on the device, without blocks that are streamed
    waiting: int = 0  # bytes of further DiTs that wait in main memory
    scratch: int = 0  # bytes of all DiTs that go to scratch files on disk

    @property
    def total(self) -> int:
        return self.outside + sum(self.blocks)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One part of a job, and what is in memory during it. The job needs what its largest stage needs."""

    name: str
    device: Parts
    main: Parts
    passing: int = 0  # those of the device's bytes that come and go, between which gaps arise
    settled: int = 0  # those of the passing ones that come in the same order in each step (How.settles): few gaps
    spare: int = 0  # those of the passing ones that are taken only if there is room for them
    scratch: int = 0  # bytes of scratch files on disk

    @property
    def device_bytes(self) -> int:
        return sum(self.device.values())

    @property
    def main_bytes(self) -> int:
        return PROGRAM + sum(self.main.values())

    @property
    def needed_bytes(self) -> int:
        """What has to be free on the card: the tensors, the gaps between them, and CUDA itself."""
        gaps = SLACK * (self.passing - self.settled - self.spare) + SETTLED_SLACK * self.settled
        return CONTEXT + self.device_bytes - self.spare + int(gaps)


# ----------------------------------------------------------------------------------------------------------- the DiT


def training(weights: Weights, work: Work, how: How, *, room: int | None = None) -> Stage:
    """One training step. `room`: bytes of the card that may be taken, for "auto"; None: more than enough."""
    parameters = sum(weights.adapters)
    device = {**_resident(weights, how), **adapters(weights, how)}
    if how.gradient_checkpointing_attention == "auto":
        how = replace(how, gradient_checkpointing_attention=_auto(weights, work, how, sum(device.values()), room))
    free = None if room is None else room - CONTEXT - sum(device.values())
    worst = worst_moment(work, how, weights.adapters, free)
    moved = 0 if how.fused_backward_pass else parameters
    step = {"gradients": how.parameter_bytes * moved, "optimizer step": OPTIMIZER_STEP_BYTES * moved}
    state = _state_bytes(weights, how)
    waiting = {"optimizer state": 2 * state, "gradients": step["gradients"]}  # a second copy while it is saved
    if how.optimizer_cpu_offload and moved:
        step["optimizer state"] = state
    in_blocks = worst.total > sum(step.values())
    passing = worst.device if in_blocks else step
    return Stage(
        name="training step",
        device={**device, **passing},
        main={**_streamed(weights, how), **worst.main, **(waiting if how.optimizer_cpu_offload else {})},
        passing=sum(passing.values()),
        settled=worst.settled if in_blocks else 0,
        spare=min(worst.spare, worst.total - sum(step.values())) if in_blocks else 0,
        scratch=weights.scratch,
    )


def denoising(weights: Weights, work: Work, how: How, *, name: str = "denoising", beside: Parts | None = None) -> Stage:
    """One call of the DiT without gradients. `beside`: what else is on the device, such as a LoRA in training."""
    inside = forward_bytes(work, how)
    device = {**_resident(weights, how), **(beside or {}), "tokens of one block": inside}
    main = _streamed(weights, how)
    return Stage(name=name, device=device, main=main, passing=inside, scratch=weights.scratch)


def adapters(weights: Weights, how: How) -> Parts:
    """What a LoRA in training takes throughout."""
    parameters = sum(weights.adapters)
    average = {"average of the LoRA": how.average_bytes * parameters} if how.average_bytes else {}
    state = {} if how.optimizer_cpu_offload else {"optimizer state": _state_bytes(weights, how)}
    return {"LoRA": how.parameter_bytes * parameters, **state, **average}


def _state_bytes(weights: Weights, how: How) -> int:
    return int(how.optimizer_bytes * sum(weights.adapters))


def _resident(weights: Weights, how: How) -> Parts:
    if how.shared_by > 1:
        slots = min(how.block_swap_ring_size, len(weights.blocks))
        return {
            "DiT weights": weights.outside + sum(-(-size // how.shared_by) for size in weights.blocks),
            "buffers of shared blocks": slots * max(weights.blocks),
        }
    streamed = spread(how.blocks_to_swap, len(weights.blocks)) if how.blocks_to_swap else []
    stay = sum(size for index, size in enumerate(weights.blocks) if index not in set(streamed))
    found = {"DiT weights": weights.outside + stay}
    if streamed:
        slots = min(how.block_swap_ring_size, len(streamed))
        found["buffers of streamed blocks"] = slots * max(weights.blocks[index] for index in streamed)
    return found | ({"idle expert": weights.others} if weights.others else {})


def _streamed(weights: Weights, how: How) -> Parts:
    """Main memory: weights are read there whole, then streamed blocks get memory of their own, one by one. If blocks
    are on disk, each buffer on the card has a counterpart in main memory."""
    waiting = {"idle expert": weights.waiting} if weights.waiting else {}
    largest_block = max(weights.blocks, default=0)
    if not how.blocks_to_swap:
        return {"reading weights": 2 * largest_block, **waiting}
    if how.block_swap_from_disk:
        buffers = min(how.block_swap_ring_size, how.blocks_to_swap)
        return {"reading weights": 2 * largest_block, "buffers of streamed blocks": buffers * largest_block, **waiting}
    return {"weights of streamed blocks": weights.total + max(weights.blocks), **waiting}


def _auto(weights: Weights, work: Work, how: How, resident: int, room: int | None) -> Literal["keep", "recompute"]:
    free = None if room is None else room - CONTEXT - resident
    tokens = how.batch * work.tokens * work.dim * HALF
    blocks = how.checkpointed(len(weights.blocks))
    others = len(weights.blocks) - blocks
    kept = free is None or keeps_attention(tokens, blocks=blocks, free=free, others=others)
    return "keep" if kept else "recompute"


# ------------------------------------------------------------------------------------------------------ other models


def vae_stage(
    weights: int, work: VaeWork, *, width: int, height: int, frames: int, decoding: bool, batch: int = 1,
    number_bytes: int = HALF, beside: Parts | None = None, name: str = "",
) -> Stage:  # fmt: skip
    """Encoding or decoding clips of a size in pixels. `weights`: bytes of the VAE."""
    numbers, pixels = VAES[work.kind], width * height
    each = numbers.decode if decoding else numbers.encode
    at_once = min(frames, work.frames)
    if work.kind == "chunks":
        inside = int(each * pixels)
        past = int(numbers.past[decoding] * pixels) if work.past_on_cpu else 0
        inside -= past
    else:
        tile = min(pixels, work.tile * work.tile) if work.tile else pixels
        inside, past = int(each * tile * at_once) + numbers.besides[decoding], 0
        in_tiles = tile < pixels or frames > work.frames
        inside += int(numbers.result * pixels * at_once) if in_tiles and decoding else 0
    inside = batch * inside * number_bytes // HALF
    device = {**(beside or {}), "VAE weights": weights, "frames in the VAE": inside}
    values = 3 * pixels * frames * batch
    if not decoding:
        device["the clip"] = number_bytes * values
    clip = FLOAT * values
    return Stage(
        name=name or ("decoding" if decoding else "encoding clips"),
        device=device,
        main={"the clip": 2 * clip, "features between chunks": batch * past},
        passing=sum(device.values()) - sum((beside or {}).values()) - weights,
    )


def text_stage(weights: Mapping[str, int], *, beside: Parts | None = None) -> Stage:
    """Encoding captions. `weights`: bytes of each encoder by its name."""
    device = {**(beside or {}), **weights, "captions": TEXT_ACTIVATIONS}
    return Stage(name="encoding text", device=device, main={"reading weights": GIB}, passing=TEXT_ACTIVATIONS)


def largest(stages: Sequence[Stage]) -> Stage:
    """The stage that needs most of the card."""
    return max(stages, key=lambda stage: stage.needed_bytes)
