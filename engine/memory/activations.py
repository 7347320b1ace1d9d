"""How much memory a DiT's blocks take while they run, from sizes alone: the planner's numbers for blocks.

`BLOCKS` counts the tensors that blocks keep or hold temporarily; it follows from the blocks' code, and a test compares
the two by running blocks on tensors that only have sizes (tests/memory/test_counted.py). Numbers with "H100" or "H200"
were measured there. Bytes everywhere. Standard library only. Knows no family, no option and no file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

from ..ops.attention_sizes import CODES, EIGHT_BIT_GRADIENTS, SHORTEST, gradient_sizes, is_room
from ..parts.workload import BlockRun, Kind, Work

HALF, FLOAT = 2, 4  # bytes of a number in 16 bits, as in activations, and in 32

Sizes = tuple[float, float]
"""Tensors of 16-bit numbers: in sizes of tokens x width, and in sizes of tokens x feed-forward width."""


@dataclass(frozen=True, kw_only=True)
class Activations:
    """The most that one block holds at a time, besides its input.

    `forward`: without gradients. `backward`: while it is recomputed and differentiated; `attending`: besides what
    attention's own backward pass takes then. `kept`: what it keeps if it is not recomputed; `last`: what is added to
    that while the last block is differentiated.
    If parts that treat each token separately run in pieces of the tokens (memory/pieces.py): `whole` tensors of all
    tokens and `piece` of one piece; `joining`: while gradients of pieces are joined; and instead of the above
    `attending_between` and `kept_between`: only what goes from one part to the next.
    """

    forward: Sizes
    backward: Sizes
    attending: Sizes
    kept: Sizes
    last: Sizes
    whole: Sizes
    piece: Sizes
    joining: Sizes
    attending_between: Sizes
    kept_between: Sizes


BLOCKS: dict[Kind, Activations] = {
    # kept: float32 copies of layer norms, 2 each; q, k, v before and after norm and rotation; inputs of LoRA layers;
    # two feed-forward rows. Backward adds gradients of the feed-forward rows, the base's and the LoRA's.
    # attending_between: q, k, v, the result, its gradient and the tokens'
    "cross": Activations(
        forward=(4.36, 2.06), backward=(18.85, 4.1), attending=(11.1, 0), kept=(18.1, 2.05), last=(1.65, 1.57),
        whole=(7.3, 0), piece=(7.1, 4.2), joining=(0, 0), attending_between=(6, 0), kept_between=(5.05, 0),
    ),
    "double": Activations(
        forward=(5.1, 2.0), backward=(14.15, 4.0), attending=(12.3, 0), kept=(13.1, 2.0), last=(2.7, 1),
        whole=(8.36, 0), piece=(1.8, 3.5), joining=(0, 0), attending_between=(6.4, 0), kept_between=(5.23, 0),
    ),
    # linear1 makes q, k, v and the feed-forward row as one tensor, which stays whole; while that row's gradient is
    # joined, it exists twice: whole and in pieces
    "single": Activations(
        forward=(8.1, 3.0), backward=(13.55, 4.0), attending=(11.4, 3.0), kept=(10.1, 2.0), last=(5.2, 2.0),
        whole=(19.25, 0), piece=(2.0, 1.0), joining=(8.2, 3.0), attending_between=(6.2, 1.0), kept_between=(5.1, 1.0),
    ),
}  # fmt: skip
IMAGE_ATTENTION = 2.1
"""Added, in tokens x width, if "cross" blocks attend to image tokens as well: a second result, and the sum."""
TEXT_WIDTHS = 5.4
"""What "cross" blocks make from the text tokens that they attend to, in text tokens x width."""
COMPILED: dict[Kind, tuple[Sizes, float]] = {
    "cross": ((-3.2, -0.75), -4.4),
    "double": ((4.1, 0), 1),
    "single": ((4.1, 0), 1),
}
"""Added for a compiled block in training: if it runs whole, and for one piece if it runs in pieces, in tokens x width.
What a compiler fuses is not written (copies of norms in 32 bits), or held at the same time (feed-forward rows and their
gradients). H100: with these numbers compiled trainings of Wan 14B, HunyuanVideo and FramePack are predicted within 1 %,
of Wan 1.3B within 2 %. The number for a piece is from two pieces of Wan 14B's 81 frames with attention in 8 bits: with
attention in bf16 the peak is not there but in attention's gradients, which are copied into whole tiles. Those for
pieces of double and single blocks are from HunyuanVideo and FramePack in two pieces (H200)."""
JOINED = 8.7
"""Saved by compiled "double" and "single" blocks, in tokens x width, if q, k, v and the feed-forward row have layers of
their own: a part of one layer's result would keep all of it alive, and gradients need not be joined. H100: FramePack,
kept and streamed."""
COMPILED_KEPT: dict[Kind, float] = {"cross": -2.5, "double": 0, "single": -1.3}
"""Added to what a compiled block keeps if it is not recomputed, in tokens x width. H100: Wan 14B with 13 such blocks of
40, HunyuanVideo with its last 15 of 60."""
COMPILED_FORWARD = -1
"""The same without gradients: a graph frees the result of attention as soon as it is used, while a caller in Python may
hold it. H200: Wan 14B at 32,760 tokens takes 1.5 sizes less."""
PLAIN_QUANTIZING = 4.26
"""Added, in tokens x feed-forward width, if fp8 layers quantise their inputs without Triton: float32 copies. H100: 4.3
with Wan 1.3B, 4.26 with 14B, streamed or not."""
ON_THE_WAY = 2
"""Blocks whose inputs and results of attention are on the device while the others' wait in main memory: the one at work
and the one being fetched."""
STAYING = 1
"""Inputs that never wait in main memory: the first block's, which needs no gradient (memory/checkpointing.py)."""
STATISTICS = 1 / 64
"""What is kept with a result of attention, in sizes of it: a float32 number per token and head of 128 channels, or two
if attention is in 8 bits. H100, 39 results of Wan 14B's 81 frames: 8 bits take 0.20 GiB more, counted 0.19."""


@dataclass(frozen=True, kw_only=True)
class How:
    """How a DiT is kept and run; the fields mean what the options of these names do."""

    blocks_to_swap: int = 0
    block_swap_ring_size: int = 2
    block_swap_from_disk: bool = False
    shared_by: int = 1  # processes that share the blocks
    gradient_checkpointing: bool = True
    gradient_checkpointing_blocks: int | None = None
    gradient_checkpointing_cpu_offload: bool = False
    gradient_checkpointing_attention: Literal["auto", "keep", "recompute"] = "recompute"
    ffn_chunks: int = 1
    compile: bool = False
    settles: bool = False  # all steps allocate the same in the same order, and the allocator joins freed memory
    plain_quantizing: bool = False  # fp8 layers without Triton
    whole_tiles: Literal["always", "kept", "never"] = "always"  # which gradients of attention need them
    eight_bit: bool = False  # attention, if it is not short
    batch: int = 1
    gradient_accumulation_steps: int = 1
    optimizer_bytes: float = 8
    parameter_bytes: int = FLOAT  # of the adapters, and of their gradients
    average_bytes: int = 0  # of the adapters' average, per parameter
    fused_backward_pass: bool = False
    optimizer_cpu_offload: bool = False

    def checkpointed(self, blocks: int) -> int:
        """How many of `blocks` blocks are checkpointed: the first ones."""
        return min(self.gradient_checkpointing_blocks or blocks, blocks) if self.gradient_checkpointing else 0

    @property
    def keeps(self) -> bool:
        """Whether results of attention are kept."""
        return self.gradient_checkpointing and self.gradient_checkpointing_attention != "recompute"


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What is in memory at a moment of a step, by name: on the `device` and in `main` memory. `spare`: how much of the
    former is taken only if there is room. `settled`: how much of it is allocated in the same order in each step."""

    device: dict[str, int]
    main: dict[str, int]
    spare: int = 0
    settled: int = 0

    @property
    def total(self) -> int:
        return sum(self.device.values())


def worst_moment(work: Work, how: How, adapters: Sequence[int], free: int | None) -> Moment:
    """The moment of a training step with the most on the device; its `spare` is what the whole step could do without.
    `adapters`: parameters of each block's adapters, all of which get a gradient. `free`: bytes of the card besides what
    stays there; None: more than enough."""
    moments = [_moment(work, how, run, place, adapters, free) for run, place in _places(work, how)]
    worst = max(moments, key=lambda moment: moment.total)
    return replace(worst, spare=worst.total - max(moment.total - moment.spare for moment in moments))


def _places(work: Work, how: How) -> Iterator[tuple[BlockRun, int]]:
    """(run, place of a block in the model) for each block that may be the worst. At the last block of a run most inputs
    are there, at the first most gradients. If inputs wait in main memory, one is being fetched, except at the very
    first; from the third on it is another than the one that stays. Of blocks that keep all they compute, the last one
    finds the most there."""
    blocks = sum(run.count for run in work.runs)
    checkpointed = how.checkpointed(blocks)
    if checkpointed < blocks:
        yield work.runs[-1], blocks - 1
    for first, end, run in _ranges(work):
        last = min(end, checkpointed) - 1
        yield from ((run, place) for place in sorted({first, first + 1, first + 2, last}) if place <= last)


def _ranges(work: Work) -> Iterator[tuple[int, int, BlockRun]]:
    """(place of the first block, one past the last, the run) of each run."""
    ends = accumulate(run.count for run in work.runs)
    return ((end - run.count, end, run) for end, run in zip(ends, work.runs, strict=True))


def _moment(
    work: Work, how: How, run: BlockRun, place: int, adapters: Sequence[int], free: int | None
) -> Moment:  # fmt: skip
    """The moment when the block at `place` is recomputed and differentiated: what the blocks before it kept is still
    there, and gradients of those after it already are."""
    unit = how.batch * work.tokens * work.dim * HALF
    main: dict[str, int] = {}
    device = {"gradients": _gradients(how, adapters, place)}
    checkpointed = how.checkpointed(sum(one.count for one in work.runs))
    again, settled = place < checkpointed, 0
    if not again:
        name = "activations of the last blocks" if checkpointed else "activations of all blocks"
        device[name] = how.batch * sum(
            max(0, end - max(first, checkpointed)) * _kept(work, one, how) for first, end, one in _ranges(work)
        )
        if how.ffn_chunks > 1:  # its own, except its input, are counted in "one block forward and back" below
            device[name] -= how.batch * _kept(work, run, how) - unit
        settled = device[name] if how.compile and how.settles else 0
    inputs, results = min(place + 1, checkpointed), min(place, checkpointed)
    result = unit + int(unit * STATISTICS * (2 if _in_8_bits(work, how) else 1)) if how.keeps else 0
    if how.gradient_checkpointing_cpu_offload:
        inputs, results = min(ON_THE_WAY + STAYING, inputs), min(ON_THE_WAY - 1, results)
        main = {"block inputs": checkpointed * unit, "attention results": checkpointed * result}
    if checkpointed:
        device |= {"block inputs": inputs * unit, "attention results": results * result}
    left = None if free is None else free - sum(device.values())
    inside, spare = _differentiated(work, run, how, left, again=again)
    device["one block forward and back"] = inside
    return Moment(device=device, main=main, spare=spare, settled=settled)


def _gradients(how: How, adapters: Sequence[int], place: int) -> int:
    """Bytes of gradients while the block at `place` is differentiated: one block's if each is used, or moved away, at
    once; all, from the batch before, if they accumulate; else those of this block and the ones after it."""
    if how.fused_backward_pass or how.optimizer_cpu_offload:
        return how.parameter_bytes * max(adapters, default=0)
    if how.gradient_accumulation_steps > 1:
        return how.parameter_bytes * sum(adapters)
    return how.parameter_bytes * sum(adapters[place:])


def _kept(work: Work, run: BlockRun, how: How) -> int:
    """Bytes of one sample that one block keeps if it is not recomputed, except in pieces."""
    numbers = BLOCKS[run.kind]
    compiled = _bytes(work, run, (COMPILED_KEPT[run.kind], 0)) if how.compile and how.ffn_chunks == 1 else 0
    return compiled + _block(work, run, numbers.kept_between if how.ffn_chunks > 1 else numbers.kept)


def _differentiated(work: Work, run: BlockRun, how: How, free: int | None, *, again: bool) -> tuple[int, int]:
    """Bytes while one block is differentiated, and how many of them are taken only if there is room. `again`: it is
    recomputed for that."""
    numbers, pieces = BLOCKS[run.kind], how.ffn_chunks
    attending = numbers.attending_between if pieces > 1 else numbers.attending
    if pieces > 1:
        (whole, _), (of_width, of_ffn) = numbers.whole, numbers.piece
        found = max(_block(work, run, (whole + of_width / pieces, of_ffn / pieces)), _block(work, run, numbers.joining))
    elif again:
        found = _block(work, run, numbers.backward)
    else:
        found = _block(work, run, numbers.last)
    unit = how.batch * work.tokens * work.dim * HALF
    apart = 0 if run.joined or not how.compile or pieces > 1 else _bytes(work, run, (JOINED, 0))
    inside = how.batch * (found + _quantizing(work, run, how) + _compiled(work, run, how) - apart)
    beside = seen_bytes(work, how.batch)
    if pieces == 1 and not again:
        return inside + beside, 0  # when attention is differentiated, what was kept after it is freed
    before = how.batch * (_block(work, run, attending) - apart)
    room = is_room(None if free is None else free - before, unit)
    least, most = (
        max(inside, before + int(unit * _gradient_sizes(work, run, how, at_once=at_once))) for at_once in (False, room)
    )
    return most + beside, most - least


def _gradient_sizes(work: Work, run: BlockRun, how: How, *, at_once: bool) -> float:
    """The peak while gradients of self-attention are computed, in sizes of the tokens (ops/attention_sizes.py)."""
    if _in_8_bits(work, how):
        return EIGHT_BIT_GRADIENTS
    # the captions' tokens are added to the video's, and their number is known only at run time
    length = work.tokens if run.kind == "cross" else None
    tiles = how.whole_tiles == "always" or (how.whole_tiles == "kept" and how.keeps)
    return gradient_sizes(length, whole_tiles=tiles, at_once=at_once)


def _in_8_bits(work: Work, how: How) -> bool:
    """Whether self-attention is."""
    return how.eight_bit and work.tokens >= SHORTEST


def forward_bytes(work: Work, how: How) -> int:
    """Bytes while one block runs without gradients."""
    samples = how.batch * work.at_once
    each = [_block(work, run, BLOCKS[run.kind].forward) + _quantizing(work, run, replace(how, ffn_chunks=1))
            for run in work.runs]  # fmt: skip
    # H200, Wan 14B with 81 frames, streamed or not: codes are added to the peak without them
    codes = CODES * HALF * work.tokens * work.dim if _in_8_bits(work, how) else 0
    compiled = COMPILED_FORWARD * HALF * work.tokens * work.dim if how.compile else 0
    return samples * (max(each) + int(codes) + compiled) + seen_bytes(work, samples)


def seen_bytes(work: Work, samples: int) -> int:
    """Bytes that blocks make from the tokens that they attend to, and those of tokens that wait."""
    seen = TEXT_WIDTHS * (work.text_tokens + work.image_tokens) + work.waiting * work.tokens
    return int(samples * seen * work.dim * HALF)


def _block(work: Work, run: BlockRun, sizes: Sizes) -> int:
    """Bytes of one sample in one block."""
    of_width, of_ffn = sizes
    return _bytes(work, run, (of_width + (IMAGE_ATTENTION if work.image_tokens else 0), of_ffn))


def _bytes(work: Work, run: BlockRun, sizes: Sizes) -> int:
    of_width, of_ffn = sizes
    return int(HALF * work.tokens * (of_width * work.dim + of_ffn * run.ffn_dim))


def _compiled(work: Work, run: BlockRun, how: How) -> int:
    whole, piece = COMPILED[run.kind]
    sizes = whole if how.ffn_chunks == 1 else (piece / how.ffn_chunks, 0)
    return _bytes(work, run, sizes) if how.compile else 0


def _quantizing(work: Work, run: BlockRun, how: How) -> int:
    return int(PLAIN_QUANTIZING * HALF * work.tokens * run.ffn_dim) // how.ffn_chunks if how.plain_quantizing else 0
