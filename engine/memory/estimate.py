"""How much memory a job takes, worked out from sizes alone: the planner's formulas, and the numbers in them.

Two kinds of numbers. `BLOCKS` and `VAES` count what the networks keep and make for a moment; they follow from the code
of the blocks, are compared with it by running these on tensors that only have sizes (tests/memory/test_counted.py), and
agree with what an H100 took to 3 % (tests/memory/test_estimate.py). The constants below them were measured.
What is predicted is the most that tensors take at a time, "allocated" in PyTorch's words; `Stage.needed_bytes` is what
has to be free for it. Bytes everywhere. Standard library only. Knows no family, no option and no file.
Given up: attention that builds the whole matrix (GPUs before Ampere), and what cuDNN takes for a moment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ..parts.workload import BlockRun, Kind, VaeWork, Work
from .rules import keeps_attention, spread

Parts = dict[str, int]
"""What takes memory, in words -> bytes."""

HALF, FLOAT = 2, 4  # bytes of a number in 16 bits, which activations have, and in 32
GIB = 1 << 30


# --------------------------------------------------------------------------------------- the numbers, and their reasons


@dataclass(frozen=True)
class Activations:
    """Sizes in tokens x width and in tokens x feed-forward width, of 16-bit numbers, as pairs (of width, of the other).

    `kept` is what one block's backward pass needs of its forward pass; `backward` the most that there is at a time
    while a block is run again and differentiated, its input not counted; `forward` the same without gradients.
    `pieces` is `backward` where what treats each token by itself runs in pieces of the tokens (memory/pieces.py): of
    width, and, divided by their number, of width and of feed-forward width; but at least `elsewhere` of width, which
    attention takes or what is not in pieces.
    """

    kept: tuple[float, float]
    backward: tuple[float, float]
    forward: tuple[float, float]
    pieces: tuple[float, float, float]
    elsewhere: float


BLOCKS: dict[Kind, Activations] = {
    # float32 copies that layer norms keep: 2 each; q, k, v before and after norm and rotation; inputs of LoRA layers;
    # two feed-forward rows. In backward comes: gradients of the feed-forward rows, the base's and the LoRA's.
    "cross": Activations(
        kept=(18.1, 2.05), backward=(20.95, 4.1), forward=(4.36, 2.06), pieces=(7.3, 7.1, 4.36), elsewhere=10.1
    ),
    "double": Activations(
        kept=(13.1, 2.0), backward=(15.2, 4.0), forward=(5.1, 2.0), pieces=(8.36, 1.8, 4.0), elsewhere=10.34
    ),
    # linear1 makes q, k, v and the feed-forward row in one piece, which stays whole
    "single": Activations(
        kept=(10.05, 2.0), backward=(17.1, 4.0), forward=(8.1, 3.0), pieces=(15.2, 6.1, 3.0), elsewhere=20.2
    ),
}
IMAGE_ATTENTION = 2.1
"""Sizes in tokens x width more, where "cross" blocks attend to image tokens as well: a second result, and the sum."""
TEXT_WIDTHS = 5.4
"""What "cross" blocks make of the text tokens they look at, in text tokens x width."""
COMPILED: dict[Kind, tuple[float, float]] = {"cross": (1.4, 2.8), "double": (5, 1.5), "single": (5, 1.5)}
"""Sizes in tokens x width that a compiled block takes more in training, whole and in pieces. H100: Wan 14B 1.57 at
14,040 tokens, 1.25 at 32,760; HunyuanVideo 9.2, FramePack 4.0 at 19,000. H200, in two pieces: Wan 14B 3.0 at 14,040 and
2.9 at 32,760 tokens (in four 1.3 and 1.0), HunyuanVideo 1.5."""
COMPILED_FORWARD = 1
"""The same without gradients. H200: Wan 14B at 32,760 tokens none in bf16 and in fp8; H100: HunyuanVideo 0.9."""
PLAIN_QUANTIZING = 4.26
"""Sizes in tokens x feed-forward width more, where fp8 layers quantise their inputs without Triton: float32 copies.
H100: 4.3 with Wan 1.3B, 4.26 with 14B, streamed or not."""
ON_THE_WAY = 4
"""Inputs and attention results on the device while blocks' own wait in main memory: those of the block at work, and of
the one that is fetched. H100, 6 blocks of Wan 14B: 4.0 at 14,040 and at 32,760 tokens."""


@dataclass(frozen=True)
class VaeNumbers:
    """Bytes that encoding and decoding take in 16 bits: for each pixel (of a frame, or of a tile times its frames), and
    besides; `result` for each pixel and frame of what is put together from tiles; `past` for each pixel of features
    that wait between two chunks."""

    encode: float
    decode: float
    besides: int = 0
    result: float = 0
    past: tuple[float, float] = (0, 0)


VAES: dict[str, VaeNumbers] = {
    # Wan's: four frames at a time; the widest layer is that of whole pictures, 96 channels
    "chunks": VaeNumbers(encode=6_692, decode=8_672, past=(2_808, 4_729)),
    # HunyuanVideo's: all frames of a tile at once, convolutions in slices of SLICE_ELEMENTS
    "tiles": VaeNumbers(encode=773, decode=1_024, besides=int(0.6 * GIB), result=24),
}

OPTIMIZER_BYTES: dict[str, float] = {
    "adamw": 8, "adam": 8, "adamw8bit": 2, "pagedadamw8bit": 0, "pagedadamw": 0, "lion": 4, "lion8bit": 1, "sgd": 0,
    "adafactor": 0.1, "came": 4.1, "prodigy": 16, "adamwschedulefree": 8, "muon": 4,
}  # fmt: skip
"""State of an optimizer for each parameter, in bytes. Prodigy's are four float32 numbers, AdamW's two."""
OTHER_OPTIMIZER_BYTES = 8
OPTIMIZER_STEP_BYTES = 8
"""For each parameter, for a moment, while all are changed at once: torch's foreach implementation."""

CONTEXT = int(0.55 * GIB)
"""What CUDA and its libraries take before the first tensor; torch does not count it."""
SLACK = 0.15
"""Gaps between tensors, as a share of what comes and goes. H100: 0.1 to 0.5 unhurried; the allocator closes most of
them when the card is full."""
PROGRAM = int(3.0 * GIB)
"""Main memory of Python, torch and CUDA's libraries."""
TEXT_ACTIVATIONS = int(0.35 * GIB)
"""One caption of 512 tokens in UMT5-XXL or LLaMA-8B."""


# ------------------------------------------------------------------------------------------------- what is asked about


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A DiT as it will lie on the device: bytes outside of its blocks and of each block, and parameters of each block's
    adapter."""

    outside: int
    blocks: tuple[int, ...]
    adapters: tuple[int, ...] = ()
    others: int = 0  # bytes of further DiTs that wait on the device, without blocks that are streamed
    waiting: int = 0  # bytes of further DiTs that wait in main memory

    @property
    def total(self) -> int:
        return self.outside + sum(self.blocks)


@dataclass(frozen=True, kw_only=True)
class How:
    """How a DiT is kept and run; the fields mean what the options of these names do."""

    blocks_to_swap: int = 0
    block_swap_ring_size: int = 2
    shared_by: int = 1  # processes that share out the blocks
    gradient_checkpointing: bool = True
    gradient_checkpointing_cpu_offload: bool = False
    gradient_checkpointing_attention: Literal["auto", "keep", "recompute"] = "recompute"
    ffn_chunks: int = 1
    compile: bool = False
    plain_quantizing: bool = False  # fp8 layers without Triton
    batch: int = 1
    gradient_accumulation_steps: int = 1
    optimizer_bytes: float = 8
    parameter_bytes: int = FLOAT  # of the adapters, and of their gradients
    average_bytes: int = 0  # of the adapters' average, for each parameter
    fused_backward_pass: bool = False


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One part of a job, and what is in memory during it. The job needs what its largest stage needs."""

    name: str
    device: Parts
    main: Parts
    passing: int = 0  # of the device's bytes those that come and go, between which gaps arise

    @property
    def device_bytes(self) -> int:
        return sum(self.device.values())

    @property
    def main_bytes(self) -> int:
        return PROGRAM + sum(self.main.values())

    @property
    def needed_bytes(self) -> int:
        """What has to be free on the card: the tensors, the gaps between them, and CUDA itself."""
        return CONTEXT + self.device_bytes + int(SLACK * self.passing)


# ----------------------------------------------------------------------------------------------------------- the DiT


def training(weights: Weights, work: Work, how: How, *, room: int | None = None) -> Stage:
    """One training step. `room` is what may be taken of the card, for "auto"; None: more than enough."""
    parameters = sum(weights.adapters)
    device = {**_resident(weights, how), **adapters(weights, how)}
    if how.gradient_checkpointing_attention == "auto":
        how = replace(how, gradient_checkpointing_attention=_auto(weights, work, how, sum(device.values()), room))
    activations, main = _backward(work, how)
    largest = max(weights.adapters, default=0)
    held = parameters if how.gradient_accumulation_steps > 1 else largest
    activations["gradients"] = how.parameter_bytes * held
    moved = 0 if how.fused_backward_pass else parameters
    step = {"gradients": how.parameter_bytes * moved, "optimizer step": OPTIMIZER_STEP_BYTES * moved}
    passing = activations if sum(activations.values()) > sum(step.values()) else step
    return Stage(
        name="training step",
        device={**device, **passing},
        main={**_streamed(weights, how), **main},
        passing=sum(passing.values()),
    )


def denoising(weights: Weights, work: Work, how: How, *, name: str = "denoising", beside: Parts | None = None) -> Stage:
    """One call of the DiT without gradients. `beside`: what else is on the device, such as a LoRA in training."""
    samples = how.batch * work.at_once
    each = [_block(work, run, BLOCKS[run.kind].forward) + _quantizing(work, run, how) for run in work.runs]
    inside = samples * max(each) + _beside(work, samples)
    inside += int(samples * COMPILED_FORWARD * work.tokens * work.dim * HALF) if how.compile else 0
    device = {**_resident(weights, how), **(beside or {}), "tokens of one block": inside}
    return Stage(name=name, device=device, main=_streamed(weights, how), passing=inside)


def adapters(weights: Weights, how: How) -> Parts:
    """What a LoRA in training takes for good."""
    parameters = sum(weights.adapters)
    average = {"average of the LoRA": how.average_bytes * parameters} if how.average_bytes else {}
    lora, state = how.parameter_bytes * parameters, int(how.optimizer_bytes * parameters)
    return {"LoRA": lora, "optimizer state": state, **average}


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
    """Main memory: weights are read there whole, then streamed blocks get a place of their own, one by one."""
    waiting = {"idle expert": weights.waiting} if weights.waiting else {}
    if not how.blocks_to_swap:
        return {"reading weights": 2 * max(weights.blocks, default=0), **waiting}
    return {"weights of streamed blocks": weights.total + max(weights.blocks), **waiting}


def _auto(weights: Weights, work: Work, how: How, resident: int, room: int | None) -> Literal["keep", "recompute"]:
    free = None if room is None else room - CONTEXT - resident
    tokens = how.batch * work.tokens * work.dim * HALF
    return "keep" if free is None or keeps_attention(tokens, blocks=len(weights.blocks), free=free) else "recompute"


def _backward(work: Work, how: How) -> tuple[Parts, Parts]:
    """Activations at the worst moment of a step, on the device and in main memory: as a run's last block is run again,
    what the blocks before it kept is still there."""
    unit = how.batch * work.tokens * work.dim * HALF
    if not how.gradient_checkpointing:
        kept = sum(run.count * how.batch * _block(work, run, BLOCKS[run.kind].kept) for run in work.runs)
        last = work.runs[-1]
        more = _differentiated(work, last, 1) - _block(work, last, BLOCKS[last.kind].kept)
        more += _quantizing(work, last, how)
        more = how.batch * more + _compiled(last, unit, how)
        return {"activations of all blocks": kept, "one block forward and back": more}, {}
    keeps = how.gradient_checkpointing_attention != "recompute"
    worst: Parts = {}
    before = 0
    for run in work.runs:
        before += run.count
        inside = how.batch * (_differentiated(work, run, how.ffn_chunks) + _quantizing(work, run, how))
        inside += _beside(work, how.batch) + _compiled(run, unit, how)
        found = {"block inputs": before * unit, "attention results": (before - 1) * unit if keeps else 0}
        if how.gradient_checkpointing_cpu_offload:
            found = {"block inputs": min(ON_THE_WAY, before) * unit}
        found["one block forward and back"] = inside
        worst = max(worst, found, key=lambda parts: sum(parts.values()))
    if not how.gradient_checkpointing_cpu_offload:
        return worst, {}
    return worst, {"block inputs": before * unit, "attention results": before * unit if keeps else 0}


def _block(work: Work, run: BlockRun, sizes: tuple[float, float]) -> int:
    """Bytes of one sample in one block."""
    of_width, of_ffn = sizes
    if work.image_tokens:
        of_width += IMAGE_ATTENTION
    return int(HALF * work.tokens * (of_width * work.dim + of_ffn * run.ffn_dim))


def _differentiated(work: Work, run: BlockRun, pieces: int) -> int:
    """Bytes of one sample while one block is run again and differentiated."""
    numbers = BLOCKS[run.kind]
    if pieces == 1:
        return _block(work, run, numbers.backward)
    whole, of_width, of_ffn = numbers.pieces
    cut = (whole + of_width / pieces, of_ffn / pieces)
    return max(_block(work, run, cut), _block(work, run, (numbers.elsewhere, 0)))


def _compiled(run: BlockRun, unit: int, how: How) -> int:
    return int(COMPILED[run.kind][how.ffn_chunks > 1] * unit) if how.compile else 0


def _quantizing(work: Work, run: BlockRun, how: How) -> int:
    return int(PLAIN_QUANTIZING * HALF * work.tokens * run.ffn_dim) // how.ffn_chunks if how.plain_quantizing else 0


def _beside(work: Work, samples: int) -> int:
    """What blocks make of the tokens that they look at, and tokens that wait."""
    seen = TEXT_WIDTHS * (work.text_tokens + work.image_tokens) + work.waiting * work.tokens
    return int(samples * seen * work.dim * HALF)


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
        inside, past = int(each * tile * at_once) + numbers.besides, 0
        inside += int(numbers.result * pixels * at_once) if tile < pixels or frames > work.frames else 0
    inside = batch * inside * number_bytes // HALF
    device = {**(beside or {}), "VAE weights": weights, "frames in the VAE": inside}
    clip = 3 * 4 * pixels * frames * batch
    return Stage(
        name=name or ("decoding" if decoding else "encoding clips"),
        device=device,
        main={"the clip": 2 * clip, "features between chunks": batch * past},
        passing=inside,
    )


def text_stage(weights: Mapping[str, int], *, beside: Parts | None = None) -> Stage:
    """Encoding captions. `weights`: bytes of each encoder by its name."""
    device = {**(beside or {}), **weights, "captions": TEXT_ACTIVATIONS}
    return Stage(name="encoding text", device=device, main={"reading weights": GIB}, passing=TEXT_ACTIVATIONS)


def largest(stages: Sequence[Stage]) -> Stage:
    """The stage that needs most of the card."""
    return max(stages, key=lambda stage: stage.needed_bytes)
