"""Which options make a job fit: the first settings that do, tried in rows, cheapest in time and precision first.

What was asked for is never taken back, only added to. The caller measures what settings take; nothing here knows models
or formulas. Results stay the same (bit for bit, if nothing is compiled) in all rows before fp8.

    training     checkpoints, of as few blocks as will do; blocks streamed, as few as will do; checkpoints in main
                 memory; the optimizer's state too; the same in fp8; token-wise parts in pieces; all of it with
                 attention recomputed (slower); one buffer for streamed blocks (slower)
    generation   blocks streamed, as few as will do; the same in fp8
    both         then all of that once more with the streamed blocks on disk (slower by far), for little main memory;
                 weights that are not used as the checkpoint has them need room there too, in a scratch file
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

PIECES = (2, 4, 8)
"""Of what treats each token by itself. The fewer the faster, most of all where tokens are few: Wan 14B's 14,040 take
8 % longer in 2, 12 % in 4, 32,760 tokens 4 % and 5 % (benchmarks/optimisations.md). Computing attention again costs
more, so that comes last. With more than 8, something else takes most."""
Options = dict[str, Any]
"""Option name -> value, where it differs from what was asked for."""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Bytes that settings take: of the card, of main memory and of the disk for scratch files."""

    card: int
    main: int
    disk: int = 0


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bytes that there are; None: no limit."""

    card: int | None = None
    main: int | None = None
    disk: int | None = None

    def allow(self, needs: Needs) -> bool:
        return self.card_allows(needs) and self.allow_but_for_the_card(needs)

    def allow_but_for_the_card(self, needs: Needs) -> bool:
        return self.main_allows(needs) and self.disk_allows(needs)

    def card_allows(self, needs: Needs) -> bool:
        return self.card is None or needs.card <= self.card

    def main_allows(self, needs: Needs) -> bool:
        return self.main is None or needs.main <= self.main

    def disk_allows(self, needs: Needs) -> bool:
        return self.disk is None or needs.disk <= self.disk


@dataclass(frozen=True, kw_only=True)
class Choice:
    """`options`: to be added to the job's. `fits` False: these take the least, and it is still too much."""

    options: Options
    needs: Needs
    fits: bool


Measure = Callable[[Options], Needs]
Row = Sequence[Options]
"""Settings, each of which takes no more of the card than the one before it. Main memory rises along a row, or falls: if
streamed blocks are on disk and a waiting expert is streamed too, more of them leave less of it to wait. The scratch
file grows along it."""


def choose(measure: Measure, rows: Iterable[Row], limits: Limits) -> Choice:
    """The first settings within the limits, else those that take the least of the card within the other limits."""
    least: Choice | None = None
    for row in rows:
        needs = cache(lambda place, row=row: measure(row[place]))
        if least is not None and _no_better(needs(len(row) - 1), least.needs, limits):
            continue
        found = _of_row(row, needs, limits)
        if found.fits:
            return found
        if least is None or _rank(found.needs, limits) < _rank(least.needs, limits):
            least = found
    assert least is not None
    return least


def _of_row(row: Row, needs: Callable[[int], Needs], limits: Limits) -> Choice:
    """As `choose`, for one row; only a few of its settings are measured. `needs`: of the one at a place."""
    place = bisect_left(range(len(row)), True, key=lambda place: limits.card_allows(needs(place)))
    if place < len(row) and not limits.main_allows(needs(place)):  # then only if main memory falls along the row
        place = bisect_left(range(len(row)), True, lo=place, key=lambda place: limits.main_allows(needs(place)))
    fits = place < len(row) and limits.disk_allows(needs(place))
    if not fits:
        allowed = bisect_left(range(len(row)), True, key=lambda place: not limits.main_allows(needs(place)))
        place = (allowed or len(row)) - 1
        if not limits.disk_allows(needs(place)):  # then as far as the disk allows, if main memory has room there
            on_disk = bisect_left(range(place), True, key=lambda place: not limits.disk_allows(needs(place)))
            place = on_disk - 1 if on_disk and limits.main_allows(needs(on_disk - 1)) else place
    return Choice(options=row[place], needs=needs(place), fits=fits)


def _no_better(smallest: Needs, least: Needs, limits: Limits) -> bool:
    """Whether nothing in a row fits or takes less than `least`. `smallest`: of the row's last settings."""
    worse = smallest.card >= least.card and limits.allow_but_for_the_card(least)
    return worse and not limits.card_allows(smallest)


def _rank(needs: Needs, limits: Limits) -> tuple[bool, int]:
    """Sort key: not fitting into main memory or onto the disk is worse than not fitting onto the card."""
    return not limits.allow_but_for_the_card(needs), needs.card


def training_rows(asked: Mapping[str, Any], *, blocks: int, may_fp8: bool = True) -> Iterator[Row]:
    """Settings of a training, by the names of options; `asked` are the job's."""
    yield [{}]
    if partly := list(_partly(asked, blocks)):
        yield partly
    attention = asked["gradient_checkpointing_attention"]
    kept = [attention] if attention != "auto" else ["keep", "recompute"]
    every = blocks if asked["gradient_checkpointing_blocks"] else None
    rows = list(product(_slots(asked), kept, _pieces(asked), _fp8(asked, may_fp8), _away(asked)))
    for streamed in (_streamed, _from_disk):
        for slots, keep, pieces, fp8, away in rows:
            wanted = {
                "gradient_checkpointing": True, "gradient_checkpointing_blocks": every,
                "gradient_checkpointing_attention": keep, **away, **fp8, **pieces, **slots,
            }  # fmt: skip
            yield from streamed(asked, wanted, blocks)


def generation_rows(asked: Mapping[str, Any], *, blocks: int, may_fp8: bool = True) -> Iterator[Row]:
    """Settings of a generation."""
    for streamed in (_streamed, _from_disk):
        for fp8 in _fp8(asked, may_fp8):
            yield from streamed(asked, fp8, blocks)


def _partly(asked: Mapping[str, Any], blocks: int) -> Iterator[Options]:
    """More and more blocks checkpointed."""
    given = asked["gradient_checkpointing_blocks"]
    if asked["gradient_checkpointing"] and not given:
        return
    attention = asked["gradient_checkpointing_attention"]
    for count in range((given or 0) + 1, blocks):
        wanted = {
            "gradient_checkpointing": True, "gradient_checkpointing_blocks": count,
            "gradient_checkpointing_attention": "keep" if attention == "auto" else attention,
        }  # fmt: skip
        yield _differing(asked, wanted)


def _away(asked: Mapping[str, Any]) -> list[Options]:
    """What waits in main memory; the larger and cheaper first. Not the optimizer's state if steps are fused into the
    backward pass: each parameter's would wait for copies of its own."""
    names = ("gradient_checkpointing_cpu_offload", "optimizer_cpu_offload")
    ways = [(False, False), (True, False)]
    if asked["optimizer_cpu_offload"] or not asked["fused_backward_pass"]:
        ways += [(False, True), (True, True)]
    found = [dict(zip(names, way, strict=True)) for way in ways]
    return [way for way in found if all(way[name] or not asked[name] for name in names)]


def _fp8(asked: Mapping[str, Any], may: bool) -> list[Options]:
    return [{}, {"fp8_scaled": True}] if may and not asked["fp8_scaled"] else [{}]


def _pieces(asked: Mapping[str, Any]) -> list[Options]:
    return [{}, *({"ffn_chunks": count} for count in PIECES if count > asked["ffn_chunks"])]


def _slots(asked: Mapping[str, Any]) -> list[Options]:
    return [{}, {"block_swap_ring_size": 1}] if asked["block_swap_ring_size"] > 1 else [{}]


def _streamed(asked: Mapping[str, Any], wanted: Options, blocks: int) -> Iterator[Row]:
    """`wanted`, and the same with more and more streamed blocks. A few streamed blocks save nothing, since there are as
    many buffers, each for the largest block: so `wanted` is a row of its own.

    No streaming if processes share the blocks, which does the same from GPU to GPU.
    """
    yield [_differing(asked, wanted)]
    if asked.get("shard_base"):
        return
    pinned = {} if asked["block_swap_from_disk"] else {"use_pinned_memory_for_block_swap": True}
    counts = range(max((asked["blocks_to_swap"] or 0) + 1, 3), blocks + 1)
    if counts:
        yield [_differing(asked, {**wanted, "blocks_to_swap": count, **pinned}) for count in counts]


def _from_disk(asked: Mapping[str, Any], wanted: Options, blocks: int) -> Iterator[Row]:
    """`wanted` with streamed blocks on disk. If that was asked for, with or without a number of blocks, all other rows
    have it already."""
    if asked.get("shard_base") or asked["block_swap_from_disk"]:
        return
    counts = range(max(asked["blocks_to_swap"] or 0, 3), blocks + 1)
    if counts:
        yield [_differing(asked, {**wanted, "blocks_to_swap": count, "block_swap_from_disk": True}) for count in counts]


def _differing(asked: Mapping[str, Any], wanted: Options) -> Options:
    return {name: value for name, value in wanted.items() if asked[name] != value}
