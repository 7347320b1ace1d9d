"""How much a DiT's blocks take while they run, from sizes alone: the planner's numbers for blocks.

`BLOCKS` counts the tensors that blocks keep and make for a moment; it follows from the code of the blocks, and is
compared with it by running these on tensors that only have sizes (tests/memory/test_counted.py). What says "H100" or
"H200" was measured there. Bytes everywhere. Standard library only. Knows no family, no option and no file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

from ..ops.attention_sizes import CODES, SHORTEST, gradient_sizes, is_room
from ..parts.workload import BlockRun, Kind, Work

HALF, FLOAT = 2, 4  # bytes of a number in 16 bits, which activations have, and in 32

Sizes = tuple[float, float]
"""In tokens x width and in tokens x feed-forward width, of 16-bit numbers."""


@dataclass(frozen=True, kw_only=True)
class Activations:
    """What one block has at a time, its input not counted.

    `forward` without gradients. With them `backward`, while the block is run again and differentiated, and `attending`
    beside what attention's own backward pass takes then. `kept` is what it keeps where nothing is run again, and `last`
    what comes to that while the last block is differentiated.
    Where what treats each token by itself runs in pieces of the tokens (memory/pieces.py) there are `whole` tensors of
    all of them and `piece` of one piece; `joining`, while gradients of pieces are put together; and in their place
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
    # two feed-forward rows. In backward comes: gradients of the feed-forward rows, the base's and the LoRA's.
    # attending in between: q, k, v, the result, its gradient and the tokens'
    "cross": Activations(
        forward=(4.36, 2.06), backward=(18.85, 4.1), attending=(11.1, 0), kept=(18.1, 2.05), last=(1.65, 1.57),
        whole=(7.3, 0), piece=(7.1, 4.2), joining=(0, 0), attending_between=(6, 0), kept_between=(5.05, 0),
    ),
    "double": Activations(
        forward=(5.1, 2.0), backward=(14.15, 4.0), attending=(12.3, 0), kept=(13.1, 2.0), last=(2.7, 1),
        whole=(8.36, 0), piece=(1.8, 3.5), joining=(0, 0), attending_between=(6.4, 0), kept_between=(5.23, 0),
    ),
    # linear1 makes q, k, v and the feed-forward row in one piece, which stays whole; while that row's gradient is
    # joined it is there once more, whole and in pieces
    "single": Activations(
        forward=(8.1, 3.0), backward=(13.55, 4.0), attending=(11.4, 3.0), kept=(10.1, 2.0), last=(5.2, 2.0),
        whole=(19.25, 0), piece=(2.0, 1.0), joining=(8.2, 3.0), attending_between=(6.2, 1.0), kept_between=(5.1, 1.0),
    ),
}  # fmt: skip
IMAGE_ATTENTION = 2.1
"""Sizes in tokens x width more, where "cross" blocks attend to image tokens as well: a second result, and the sum."""
TEXT_WIDTHS = 5.4
"""What "cross" blocks make of the text tokens they look at, in text tokens x width."""
COMPILED: dict[Kind, tuple[Sizes, float]] = {
    "cross": ((-2.6, -0.75), 1.4),
    "double": ((5, 0), 3),
    "single": ((5, 0), 3),
}
"""What a compiled block takes more in training: whole, and of one piece where it runs in pieces, in tokens x width.
What a compiler computes together it does not write (copies of norms in 32 bits), or holds together (feed-forward rows
and their gradients). H100: with these numbers five trainings of Wan 14B and 1.3B, whole and in two pieces, and two of
HunyuanVideo are predicted within 1 %."""
JOINED = 8.7
"""What compiled "double" and "single" blocks take less, in tokens x width, where q, k, v and the feed-forward row have
layers of their own: a part of what one layer made keeps all of it, and their gradients need not be joined. H100:
FramePack, kept and streamed."""
COMPILED_KEPT: dict[Kind, float] = {"cross": -2.5, "double": 0, "single": -1.3}
"""What it keeps more where nothing is run again, in tokens x width. H100: Wan 14B with 13 of 40 blocks so, HunyuanVideo
with 15 of 60, its last ones."""
COMPILED_FORWARD = -1
"""The same without gradients: in a graph the result of attention goes as soon as it was used, which a caller in Python
may hold. H200: Wan 14B at 32,760 tokens takes 1.5 sizes less."""
PLAIN_QUANTIZING = 4.26
"""Sizes in tokens x feed-forward width more, where fp8 layers quantise their inputs without Triton: float32 copies.
H100: 4.3 with Wan 1.3B, 4.26 with 14B, streamed or not."""
ON_THE_WAY = 2
"""Inputs, and results of attention, on the device while blocks' own wait in main memory: those of the block at work,
and of the one that is fetched."""


@dataclass(frozen=True, kw_only=True)
class How:
    """How a DiT is kept and run; the fields mean what the options of these names do."""

    blocks_to_swap: int = 0
    block_swap_ring_size: int = 2
    block_swap_from_disk: bool = False
    shared_by: int = 1  # processes that share out the blocks
    gradient_checkpointing: bool = True
    gradient_checkpointing_blocks: int | None = None
    gradient_checkpointing_cpu_offload: bool = False
    gradient_checkpointing_attention: Literal["auto", "keep", "recompute"] = "recompute"
    ffn_chunks: int = 1
    compile: bool = False
    settles: bool = False  # all steps ask for the same in the same order, of an allocator that joins what is freed
    plain_quantizing: bool = False  # fp8 layers without Triton
    whole_tiles: Literal["always", "kept", "never"] = "always"  # which gradients of attention are made of such
    eight_bit: bool = False  # attention without gradients
    batch: int = 1
    gradient_accumulation_steps: int = 1
    optimizer_bytes: float = 8
    parameter_bytes: int = FLOAT  # of the adapters, and of their gradients
    average_bytes: int = 0  # of the adapters' average, for each parameter
    fused_backward_pass: bool = False
    optimizer_cpu_offload: bool = False

    def checkpointed(self, blocks: int) -> int:
        """How many of so many blocks are: the first ones."""
        return min(self.gradient_checkpointing_blocks or blocks, blocks) if self.gradient_checkpointing else 0

    @property
    def keeps(self) -> bool:
        """Whether results of attention are kept."""
        return self.gradient_checkpointing and self.gradient_checkpointing_attention != "recompute"


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What is there at a moment of a step: by name on the device, in main memory; and how much of the former is only
    taken where there is room, and how much comes in the same order in each step."""

    device: dict[str, int]
    main: dict[str, int]
    spare: int = 0
    settled: int = 0

    @property
    def total(self) -> int:
        return sum(self.device.values())


def worst_moment(work: Work, how: How, adapters: Sequence[int], free: int | None) -> Moment:
    """Of one training step: the one with most on the device. No more of it is `spare` than every other moment can do
    without, too. `adapters`: parameters of each block's, all of which get a gradient; `free`: bytes of the card beside
    what is there for good, None: more than enough."""
    moments = [_moment(work, how, run, place, adapters, free) for run, place in _places(work, how)]
    worst = max(moments, key=lambda moment: moment.total)
    return replace(worst, spare=worst.total - max(moment.total - moment.spare for moment in moments))


def _places(work: Work, how: How) -> Iterator[tuple[BlockRun, int]]:
    """Runs of blocks with the place of a block to look at. As the last of a run is at work, most inputs are there;
    as the first, most gradients. Where inputs wait in main memory there is one on its way but for the very first.
    Of blocks that keep all they compute it is the last that finds most there."""
    blocks = sum(run.count for run in work.runs)
    checkpointed = how.checkpointed(blocks)
    if checkpointed < blocks:
        yield work.runs[-1], blocks - 1
    for first, end, run in _ranges(work):
        last = min(end, checkpointed) - 1
        yield from ((run, place) for place in sorted({first, first + 1, last}) if place <= last)


def _ranges(work: Work) -> Iterator[tuple[int, int, BlockRun]]:
    """(place of the first block, that after the last, the run) of each run."""
    ends = accumulate(run.count for run in work.runs)
    return ((end - run.count, end, run) for end, run in zip(ends, work.runs, strict=True))


def _moment(
    work: Work, how: How, run: BlockRun, place: int, adapters: Sequence[int], free: int | None
) -> Moment:  # fmt: skip
    """As the block at `place` of all is run again and differentiated: what the blocks before it kept is still there,
    and gradients of those after it already."""
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
        if how.ffn_chunks > 1:  # its own, but for its input, are a part of what is there while it is differentiated
            device[name] -= how.batch * _kept(work, run, how) - unit
        settled = device[name] if how.compile and how.settles else 0
    inputs, results = min(place + 1, checkpointed), min(place, checkpointed)
    if how.gradient_checkpointing_cpu_offload:
        inputs = min(ON_THE_WAY, inputs)
        results = inputs - 1
        main = {"block inputs": checkpointed * unit, "attention results": checkpointed * unit if how.keeps else 0}
    if checkpointed:
        device |= {"block inputs": inputs * unit, "attention results": results * unit if how.keeps else 0}
    left = None if free is None else free - sum(device.values())
    inside, spare = _differentiated(work, run, how, left, again=again)
    device["one block forward and back"] = inside
    return Moment(device=device, main=main, spare=spare, settled=settled)


def _gradients(how: How, adapters: Sequence[int], place: int) -> int:
    """Those that are there as the block at `place` is differentiated: one block's where each is used, or sent away, at
    once; all from the step before where they are added up; else those of the blocks that come after it."""
    if how.fused_backward_pass or how.optimizer_cpu_offload:
        return how.parameter_bytes * max(adapters, default=0)
    if how.gradient_accumulation_steps > 1:
        return how.parameter_bytes * sum(adapters)
    return how.parameter_bytes * sum(adapters[place:])


def _kept(work: Work, run: BlockRun, how: How) -> int:
    """Bytes of one sample that one block keeps where nothing but pieces is run again."""
    numbers = BLOCKS[run.kind]
    compiled = _bytes(work, run, (COMPILED_KEPT[run.kind], 0)) if how.compile and how.ffn_chunks == 1 else 0
    return compiled + _block(work, run, numbers.kept_between if how.ffn_chunks > 1 else numbers.kept)


def _differentiated(work: Work, run: BlockRun, how: How, free: int | None, *, again: bool) -> tuple[int, int]:
    """Bytes while one block is differentiated, and how many of them are taken only where there is room. `again`: it is
    run again for that."""
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
        return inside + beside, 0  # when it comes to attention, what was kept after it is gone
    before = how.batch * (_block(work, run, attending) - apart)
    # tokens of captions come to those of the video, and are known only when they are there
    length = work.tokens if run.kind == "cross" else None
    tiles = how.whole_tiles == "always" or (how.whole_tiles == "kept" and how.keeps)
    least, most = (
        max(inside, before + int(unit * gradient_sizes(length, whole_tiles=tiles, at_once=at_once)))
        for at_once in (False, is_room(None if free is None else free - before, unit))
    )
    return most + beside, most - least


def forward_bytes(work: Work, how: How) -> int:
    """While one block runs without gradients."""
    samples = how.batch * work.at_once
    each = [_block(work, run, BLOCKS[run.kind].forward) + _quantizing(work, run, replace(how, ffn_chunks=1))
            for run in work.runs]  # fmt: skip
    # H200, Wan 14B with 81 frames, streamed or not: codes come to the most that there was before
    codes = CODES * HALF * work.tokens * work.dim if how.eight_bit and work.tokens >= SHORTEST else 0
    compiled = COMPILED_FORWARD * HALF * work.tokens * work.dim if how.compile else 0
    return samples * (max(each) + int(codes) + compiled) + seen_bytes(work, samples)


def seen_bytes(work: Work, samples: int) -> int:
    """What blocks make of the tokens that they look at, and tokens that wait."""
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
